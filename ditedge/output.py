"""The standard output is for results alone: JSON stays JSON, whatever a library prints."""

import os
import sys


def keep_output_for_results() -> None:
    """Libraries in C print on descriptor 1: it becomes the standard error, and `sys.stdout` keeps the real output.

    Child processes inherit it so, too. Nothing happens where either descriptor is closed.
    """
    out = sys.__stdout__
    if out is None or sys.stderr is None or sys.stdout is not out:
        return
    try:
        out.flush()
        real = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        return
    buffering = 1 if os.isatty(real) else -1
    sys.stdout = os.fdopen(real, "w", buffering, encoding=out.encoding, errors=out.errors)
