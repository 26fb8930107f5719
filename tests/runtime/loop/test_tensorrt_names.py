"""The fakes have no name that TensorRT lacks: 10.3's bindings, as their source says, and TensorRT-RTX's that are here."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.runtime.loop import test_nvidia_gpu as fakes

# Every name of three classes in python/src/infer/pyCore.cpp of TensorRT 10.3.0
CONTEXT = """
    active_optimization_profile all_binding_shapes_specified all_shape_inputs_specified debug_sync device_memory engine
    enqueue_emits_profile error_recorder execute_async_v3 execute_v2 get_debug_listener get_debug_state
    get_input_consumed_event get_max_output_size get_output_allocator get_tensor_address get_tensor_shape
    get_tensor_strides infer_shapes name nvtx_verbosity persistent_cache_limit profiler report_to_profiler
    set_all_tensors_debug_state set_aux_streams set_debug_listener set_device_memory set_input_consumed_event
    set_input_shape set_optimization_profile_async set_output_allocator set_tensor_address set_tensor_debug_state
    temporary_allocator update_device_memory_size_for_shapes
"""
ENGINE = """
    create_engine_inspector create_execution_context create_execution_context_without_device_memory
    create_serialization_config device_memory_size device_memory_size_v2 engine_capability error_recorder
    get_device_memory_size_for_profile get_device_memory_size_for_profile_v2 get_tensor_bytes_per_component
    get_tensor_components_per_element get_tensor_dtype get_tensor_format get_tensor_format_desc get_tensor_location
    get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_profile_values get_tensor_shape
    get_tensor_vectorized_dim get_weight_streaming_automatic_budget hardware_compatibility_level
    has_implicit_batch_dimension is_debug_tensor is_shape_inference_io minimum_weight_streaming_budget name
    num_aux_streams num_io_tensors num_layers num_optimization_profiles profiling_verbosity refittable serialize
    serialize_with_config streamable_weights_size tactic_sources weight_streaming_budget weight_streaming_budget_v2
    weight_streaming_scratch_memory_size
"""
RUNTIME = """
    DLA_core deserialize_cuda_engine engine_host_code_allowed error_recorder get_plugin_registry gpu_allocator
    load_runtime logger max_threads num_DLA_cores tempfile_control_flags temporary_directory
"""


def methods(*fake: type[Any]) -> set[str]:
    """What the adapter can call of a fake, or read as a property."""
    return {
        name
        for kind in fake
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    }


def test_the_fake_of_10_3_has_its_names() -> None:
    assert methods(fakes.FakeContext) <= set(CONTEXT.split())
    assert methods(fakes.FakeEngine, fakes.OldEngine) <= set(ENGINE.split())
    assert methods(fakes.fake_trt(None, None, "tensorrt").Runtime) <= set(RUNTIME.split())


def test_the_fake_of_tensorrt_rtx_has_its_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert methods(fakes.FakeContext, fakes.NewContext) <= set(dir(trt.IExecutionContext))
    assert methods(fakes.FakeEngine, fakes.NewEngine) <= set(dir(trt.ICudaEngine))
    assert methods(fakes.FakeCache) <= set(dir(trt.IRuntimeCache))
