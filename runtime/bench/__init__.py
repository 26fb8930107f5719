"""Benchmarks: contenders in turns, each in a process of its own (`ditedge bench`). Needs neither torch nor onnx."""
