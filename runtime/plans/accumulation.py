"""Sums of float16 products in float32: asked of TensorRT as it understands it, by casts around each product.

Kernels may add float16 products in float16, which is as coarse as bfloat16 where many are added (2.5e-3 of the result
for 4608 of them, against 2e-4), and which `convert` did not check. TensorRT takes Cast to float32, MatMul, Cast back
for one product of float16 numbers that is summed up in float32. The casts are made in TensorRT's network, not in the
ONNX graph: ONNX Runtime folds those of the weights and computes in float32 altogether.
"""

from __future__ import annotations

from typing import Any

from .library import Library

FOLDED = ("SHUFFLE", "CAST", "IDENTITY", "DEQUANTIZE")  # between a weight and its product


def sum_in_float32(library: Library, network: Any) -> int:
    """Puts the casts around every product of float16 numbers with a weight, in place -> how many products there are.

    Attention has none between its products, or it would be no kernel of its own; int8 and float8 products are summed up
    in 32 bits as it is.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    products = [layer for layer in layers if _is_float16_linear(library, layer, producers)]
    readers: dict[str, list[tuple[Any, int]]] = {product.get_output(0).name: [] for product in products}
    for layer in layers:
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor is not None and tensor.name in readers:
                readers[tensor.name].append((layer, i))
    for product in products:
        _cast_around(library, network, product, readers[product.get_output(0).name])
    return len(products)


def _is_float16_linear(library: Library, layer: Any, producers: dict[str, Any]) -> bool:
    half = library.module.DataType.HALF
    if _kind(layer) != "MATRIX_MULTIPLY" or layer.get_output(0).is_network_output:
        return False
    x, weight = (producers.get(layer.get_input(i).name) for i in range(2))
    while weight is not None and _kind(weight) in FOLDED:
        weight = producers.get(weight.get_input(0).name)
    is_weight = weight is not None and _kind(weight) == "CONSTANT"
    is_rounded = x is not None and _kind(x) == "DEQUANTIZE"
    return is_weight and not is_rounded and all(layer.get_input(i).dtype == half for i in range(2))


def _cast_around(library: Library, network: Any, product: Any, readers: list[tuple[Any, int]]) -> None:
    types = library.module.DataType
    for i in range(2):
        product.set_input(i, network.add_cast(product.get_input(i), types.FLOAT).get_output(0))
    back = network.add_cast(product.get_output(0), types.HALF).get_output(0)
    for layer, i in readers:
        layer.set_input(i, back)


def _kind(layer: Any) -> str:
    return str(layer.type).rsplit(".", 1)[-1]
