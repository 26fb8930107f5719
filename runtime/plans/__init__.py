"""TensorRT: building plans, their record, what the library says."""
