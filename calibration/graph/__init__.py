"""ONNX surgery that every format shares: its linears, attention."""
