"""`verify --layers`: an engine against ONNX Runtime in float32, tensor by tensor, and the first layer that breaks."""
