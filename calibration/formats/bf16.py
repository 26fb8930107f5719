"""bfloat16: float32's range with 8 bits. Each rounding is 8 times coarser than float16's: 2.5e-2 on the demo model."""

from .format import Half

FORMAT = Half("bfloat16", tolerance=1e-1, overflows=False)
