"""What a step's noise costs the host: milliseconds for one image, in Python and, where it was built, in C++.

    python bench/noise.py [build/cpp/libditedge.so]

Plans draw it in a thread while the device works (runtime/loop/noise_ahead.py): it costs time where a step takes less.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ditedge.runtime.loop.noise import standard_normal

SHAPES = {"demo": (1, 32, 32), "256 x 256 by a VAE": (4, 32, 32), "512 x 512 by a VAE": (4, 64, 64)}
REPEATS = 200


def milliseconds(draw: Callable[[], object]) -> tuple[float, float]:
    """The quickest, and the median."""
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        draw()
        taken.append(1000 * (time.perf_counter() - begin))
    return min(taken), sorted(taken)[REPEATS // 2]


def main(library: str = "build/cpp/libditedge.so") -> None:
    loaded = ctypes.CDLL(str(Path(library).resolve())) if Path(library).exists() else None
    for name, shape in SHAPES.items():
        numbers = np.empty(int(np.prod(shape)), np.float32)
        least, median = milliseconds(lambda numbers=numbers: standard_normal(7, 1, numbers.size))  # type: ignore[misc]
        said = f"{name}, {list(shape)}: Python {least:.3f} ms (median {median:.3f})"
        if loaded is not None:
            draw = lambda numbers=numbers: loaded.ditedge_noise(  # type: ignore[misc]  # noqa: E731
                ctypes.c_uint64(7),
                ctypes.c_uint64(1),
                ctypes.c_void_p(numbers.ctypes.data),
                ctypes.c_size_t(numbers.size),
            )
            least, median = milliseconds(draw)
            assert np.array_equal(numbers, standard_normal(7, 1, numbers.size))
            said += f", C++ {least:.3f} ms (median {median:.3f})"
        print(said)


if __name__ == "__main__":
    main(*sys.argv[1:])
