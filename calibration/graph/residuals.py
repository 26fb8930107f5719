"""A decoder's residual sums and its last convolution in parts of the channels, as parts.py has its norms.

What a residual block gives is read by the next norm, part by part, and by the next sum. So sums are made in the parts
that the norms have, and never joined: x is float32 (512 MB for 128 channels of 1024 x 1024 px), and what is added to
it is uint8 until a part of it is needed. The numbers are the same. The last convolution, to three colours, adds up
those of its input's parts, which are then never joined, either: the same but for rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .parts import slice_of
from .surgery import constant, drop_unread, insert, only_reader, take_place

Parts = dict[tuple[int, int], Any]  # (first channel, behind the last) -> its values [B, channels, H, W]


def residuals_in_parts(model: Any) -> int:
    """Splits the sums that norms in parts read, and what they are rounded to, in place -> how many sums."""
    split: dict[Any, Parts] = {}
    sums = [node for node in model.graph if node.op_type == "Add" and not any(v.const_value for v in node.inputs)]
    for node in sums:
        bounds = list(_slices(node.outputs[0])) or [each for value in node.inputs for each in split.get(value, {})]
        if bounds:
            split[node.outputs[0]] = _split_sum(model, node, sorted(set(bounds)), split)
    drop_unread(model)
    return len(split)


def _slices(value: Any) -> Parts:
    """The Slices of a value's channels."""
    found: Parts = {}
    for node in value.consumers():
        if node.op_type == "Slice" and all(bound.const_value is not None for bound in node.inputs[1:]):
            first, end, axis = (int(bound.const_value.numpy()[0]) for bound in node.inputs[1:])
            found |= {(first, end): node} if axis == 1 else {}
    return found


def _split_sum(model: Any, total: Any, bounds: list[tuple[int, int]], split: dict[Any, Parts]) -> Parts:
    whole, parts = total.outputs[0], {}
    for bound in bounds:
        terms = [split.get(value, {}).get(bound) or slice_of(model, total, value, bound) for value in total.inputs]
        parts[bound] = insert(model, total, "Add", terms, f"{whole.name}.{bound[0]}")
    for bound, node in _slices(whole).items():
        take_place(node.outputs[0], parts[bound])
        model.graph.remove(node, safe=True)
    for node in [node for node in whole.consumers() if node.op_type == "QuantizeLinear"]:
        rounded = [
            insert(model, node, "QuantizeLinear", [part, *node.inputs[1:]], f"{part.name}.rounded")
            for part in parts.values()
        ]
        take_place(node.outputs[0], insert(model, node, "Concat", rounded, f"{whole.name}.rounded", axis=1))
        model.graph.remove(node, safe=True)
    return parts


def last_convolution_in_parts(model: Any) -> int:
    """Splits the float convolutions of what norms in parts joined, in place -> how many."""
    done = 0
    for conv in [node for node in model.graph if node.op_type == "Conv" and node.inputs[1].const_value is not None]:
        join = conv.inputs[0].producer()
        if join is not None and join.op_type == "Concat" and only_reader(join.outputs[0]) is conv:
            _split_convolution(model, conv, join)
            done += 1
    drop_unread(model)
    return done


def _split_convolution(model: Any, conv: Any, join: Any) -> None:
    attributes = {name: attribute.value for name, attribute in conv.attributes.items()}
    weights = np.split(conv.inputs[1].const_value.numpy(), len(join.inputs), axis=1)
    total = None
    for i, (part, weight) in enumerate(zip(join.inputs, weights, strict=True)):
        name = f"{conv.outputs[0].name}.{i}"
        inputs = [part, constant(model, f"{name}.weight", weight.copy()), *(conv.inputs[2:] if i == 0 else [])]
        value = insert(model, conv, "Conv", inputs, name, **attributes)
        # ONNX Runtime computes an operand's own operands first, the last one's before: one part after the other here.
        total = value if total is None else insert(model, conv, "Add", [value, total], f"{name}.sum")
    take_place(conv.outputs[0], total)
