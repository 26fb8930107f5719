"""ditedge: compile a trained Diffusion Transformer, run it anywhere.

In a checkout the folders `export/`, `runtime/` and `calibration/` and the file `cli.py` live one level up; in an
installed wheel they live beside this file. The three lines below make `import ditedge.runtime` work in both.
"""

import os as _os  # nothing larger: interrupt.py comes first

__version__ = "0.1.0"

_checkout = _os.path.dirname(_os.path.dirname(_os.path.realpath(__file__)))
if _os.path.isfile(_os.path.join(_checkout, "cli.py")) and _os.path.isdir(_os.path.join(_checkout, "runtime")):
    __path__.append(_checkout)
