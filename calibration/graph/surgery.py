"""ONNX graphs read, edited in place and written: what every rewrite of a bundle's graphs shares, the exporter, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...runtime.bundle.manifest import weights_file
from ...runtime.errors import EngineError, first_line

# Weights of more than this lie in a .data file: ONNX Runtime maps it, where those inside the graph's file are read,
# parsed and copied (DiT-S/2: half the time to load, three quarters of the memory); and protobuf files end at 2 GB.
EXTERNAL_DATA_BYTES = 64 << 20


def load_graph(path: Path) -> Any:
    """The ONNX file as ir.Model; weights in .data files stay on disk until they are read. Raises EngineError."""
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir raises protobuf's own types
        raise EngineError(f"{path}: not a readable ONNX graph ({first_line(error)})") from None


def save_graph(model: Any, path: Path) -> None:
    """Writes `path`, and `path.data` above 64 MB of weights; initializers that nothing uses are left out."""
    drop_unused(model)
    if sum(value.const_value.nbytes for value in model.graph.initializers.values()) > EXTERNAL_DATA_BYTES:
        ir.save(model, path, external_data=weights_file(path.name))
        return
    ir.external_data.load_to_model(model)  # what was read lazily from the source's .data file and never touched
    ir.save(model, path)


def drop_unused(model: Any) -> None:
    """Removes the initializers that nothing reads any more. Nodes stay: an engine may be asked for what they give."""
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]:
        del initializers[name]


def drop_unread(model: Any) -> None:
    """Removes the nodes, too, that nothing reads any more: ONNX Runtime would compute them all the same."""
    RemoveUnusedNodesPass()(model)


def check_graph(path: Path) -> None:
    """The ONNX checker's verdict, types and shapes of every node included: for rewrites that change types."""
    from onnx import checker

    checker.check_model(str(path), full_check=True)


def constant(model: Any, name: str, array: np.ndarray, dtype: Any = None) -> Any:
    """An initializer (ir.Value) of this name, made at first use."""
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = ir.tensor(array, dtype=dtype, name=name) if dtype is not None else ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def insert(
    model: Any, before: Any, op_type: str, inputs: list[Any], name: str, domain: str = "", **attributes: Any
) -> Any:
    """A new node before `before` -> its only output (ir.Value), called `name`."""
    node = ir.node(op_type, inputs, attributes or None, domain=domain, name=f"node_{name}")
    node.outputs[0].name = name
    model.graph.insert_before(before, node)
    if domain:
        model.graph.opset_imports.setdefault(domain, 1)
    return node.outputs[0]


def take_place(old: Any, new: Any) -> None:
    """Whoever reads `old` reads `new` instead, of the same shape and type; what made `old` stays."""
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new)


def only_reader(value: Any, op_type: str | None = None) -> Any:
    """The node, of this type if one is given, that alone reads the value; None where there is another, or none."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0][0]
    return node if op_type is None or (node.op_type == op_type and not node.domain) else None


def require_opset(model: Any, opset: int) -> None:
    """Raises the graph's operator set to at least `opset`.

    Between 18 and 21 the operators that the exporter writes gained types, not meanings, so the number is all there is
    to change.
    """
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], opset)
