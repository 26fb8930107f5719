"""A decoder's group norms and attention in parts, one behind the other: the same but for rounding, in less memory.

A group's statistics are those of its own channels over the whole picture, so a norm falls apart between groups, with
the SiLU, and the rounding to int8, behind it; a row of attention needs no other row's scores. Tiles of a picture would
change statistics and so show their seams; parts have none. What is in float32 between two convolutions is then some
of the channels at a time, fewer the larger the picture is, which is also nearer to what a processor's cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from .surgery import constant, drop_unread, insert, only_reader, take_place

PARTS = (1, 2, 8, 16)  # behind none, one, two, ... upsamplings: SD's norms at 256 px then take 4 MB at a time
ROWS = 8  # of the queries; a picture of 49 and more latent pixels can be split so


@dataclass(frozen=True)
class GroupNorm:
    """What the exporter makes of a group norm: x -> Reshape -> InstanceNormalization -> Reshape -> Mul -> Add.

    affine: the nodes Mul and Add. behind: Sigmoid and Mul of a SiLU and a QuantizeLinear, where they are; the first
    two together or not at all. x: a value [B, C, H, W].
    """

    norm: Any
    x: Any
    affine: tuple[Any, Any]
    behind: tuple[Any, ...]

    @property
    def last(self) -> Any:
        return (self.affine + self.behind)[-1]

    @property
    def groups(self) -> int:
        return int(self.norm.inputs[1].const_value.size)

    @property
    def channels(self) -> int:
        return int(_constant(self.affine[0]).size)


def norms_in_parts(model: Any) -> int:
    """Splits the group norms of larger pictures, where PARTS divides the groups, in place -> how many."""
    upsamplings = _upsamplings(model)
    norms = [norm for node in model.graph if node.op_type == "InstanceNormalization" if (norm := _match(node))]
    done = 0
    for norm in norms:
        parts = PARTS[min(upsamplings[norm.x], len(PARTS) - 1)]
        if parts > 1 and norm.groups % parts == 0:
            _split_norm(model, norm, parts)
            done += 1
    drop_unread(model)
    return done


def _upsamplings(model: Any) -> dict[Any, int]:
    """Value -> how many Resizes it is behind."""
    behind: dict[Any, int] = {}
    for node in model.graph:
        most = max((behind.get(value, 0) for value in node.inputs), default=0) + (node.op_type == "Resize")
        behind |= dict.fromkeys(node.outputs, most)
    return behind


def attention_in_rows(model: Any, rows: int = ROWS) -> int:
    """Splits the queries of every product -> Softmax -> product, in place -> how many."""
    done = 0
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        scores, product = softmax.inputs[0].producer(), only_reader(softmax.outputs[0])
        if scores is None or product is None or {scores.op_type, product.op_type} != {"MatMul"}:
            continue
        if product.inputs[0] is softmax.outputs[0] and only_reader(scores.outputs[0]) is softmax:
            _split_attention(model, scores, softmax, product, rows)
            done += 1
    drop_unread(model)
    return done


def _constant(node: Any) -> np.ndarray:
    array = _constant_of(node)
    assert array is not None  # _match saw to it
    return array


def _constant_of(node: Any) -> np.ndarray | None:
    """The constant operand of a Mul or an Add."""
    arrays = [value.const_value.numpy() for value in node.inputs if value is not None and value.const_value is not None]
    return arrays[0] if len(arrays) == 1 else None


def _match(norm: Any) -> GroupNorm | None:
    flat, back = norm.inputs[0].producer(), only_reader(norm.outputs[0])
    if flat is None or back is None or {flat.op_type, back.op_type} != {"Reshape"}:
        return None
    scale = only_reader(back.outputs[0])
    shift = only_reader(scale.outputs[0]) if scale is not None and scale.op_type == "Mul" else None
    if shift is None or shift.op_type != "Add" or _constant_of(scale) is None or _constant_of(shift) is None:
        return None
    value = shift.outputs[0]
    behind: list[Any] = []
    sigmoid = next((node for node in value.consumers() if node.op_type == "Sigmoid"), None)
    if sigmoid is not None and len(value.consumers()) == 2:
        product = only_reader(sigmoid.outputs[0])
        if product is None or product.op_type != "Mul" or value not in product.inputs:
            return None
        behind, value = [sigmoid, product], product.outputs[0]
    rounding = only_reader(value)
    if rounding is not None and rounding.op_type == "QuantizeLinear":
        behind.append(rounding)
    return GroupNorm(norm, flat.inputs[0], (scale, shift), tuple(behind))


def _split_norm(model: Any, norm: GroupNorm, parts: int) -> None:
    last, size = norm.last, norm.channels // parts
    outputs = []
    for part in range(parts):
        name = f"{norm.norm.name}.{part}"
        x = slice_of(model, last, norm.x, (part * size, (part + 1) * size))
        outputs.append(_one_part(model, norm, x, part, parts, name))
    take_place(last.outputs[0], insert(model, last, "Concat", outputs, f"{norm.norm.name}.joined", axis=1))


def slice_of(model: Any, before: Any, value: Any, bound: tuple[int, int]) -> Any:
    """Some channels of a value [B, C, H, W] float32, in front of a node; what is rounded is split while it is small."""
    restore, name = value.producer(), f"{value.name}.{bound[0]}.for.{before.outputs[0].name}"
    rounded = restore is not None and restore.op_type == "DequantizeLinear" and restore.inputs[0].producer() is not None
    bounds = [constant(model, f"at_{place}", np.array([place], np.int64)) for place in (*bound, 1)]
    part = insert(model, before, "Slice", [restore.inputs[0] if rounded else value, *bounds], f"{name}.slice")
    return insert(model, before, "DequantizeLinear", [part, *restore.inputs[1:]], name) if rounded else part


def _one_part(model: Any, norm: GroupNorm, x: Any, part: int, parts: int, name: str) -> Any:
    """x [B, C / parts, H, W] float32 -> what the last node makes of it."""
    last, groups = norm.last, norm.groups // parts

    def of_part(node: Any) -> Any:
        array = _constant(node).reshape(-1, 1, 1)
        return constant(model, f"{node.name}.{part}", np.split(array, parts)[part].copy())

    by_group = constant(model, f"by_{groups}", np.array([0, groups, -1]))
    flat = insert(model, last, "Reshape", [x, by_group], f"{name}.flat")
    ones, zeros = (constant(model, f"{text}_{groups}", np.full(groups, value, np.float32))
                   for text, value in (("ones", 1), ("zeros", 0)))  # fmt: skip
    normal = insert(model, last, "InstanceNormalization", [flat, ones, zeros], f"{name}.norm",
                    epsilon=norm.norm.attributes.get_float("epsilon", 1e-5))  # fmt: skip
    value = insert(model, last, "Reshape", [normal, insert(model, last, "Shape", [x], f"{name}.shape")], f"{name}.back")
    for node in norm.affine:
        value = insert(model, last, node.op_type, [value, of_part(node)], f"{name}.{node.op_type}")
    affine = value
    for node in norm.behind:
        inputs = {"Sigmoid": [value], "Mul": [affine, value], "QuantizeLinear": [value, *node.inputs[1:]]}[node.op_type]
        value = insert(model, last, node.op_type, inputs, f"{name}.{node.op_type}.{len(inputs)}")
    return value


def _split_attention(model: Any, scores: Any, softmax: Any, product: Any, rows: int) -> None:
    split = ir.node("Split", [scores.inputs[0]], {"axis": 1, "num_outputs": rows}, num_outputs=rows,
                    name=f"{softmax.name}.split")  # fmt: skip
    model.graph.insert_before(product, split)
    outputs = []
    for row, queries in enumerate(split.outputs):
        name = f"{softmax.name}.{row}"
        queries.name = f"{name}.q"
        value = insert(model, product, "MatMul", [queries, scores.inputs[1]], f"{name}.scores")
        axis = softmax.attributes.get_int("axis", -1)
        value = insert(model, product, "Softmax", [value], f"{name}.softmax", axis=axis)
        outputs.append(insert(model, product, "MatMul", [value, product.inputs[1]], f"{name}.attended"))
    take_place(product.outputs[0], insert(model, product, "Concat", outputs, f"{softmax.name}.joined", axis=1))
