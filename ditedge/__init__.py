"""ditedge: compile a trained Diffusion Transformer, run it anywhere.

In a checkout the folders `export/`, `runtime/` and `calibration/` and the file `cli.py` live one level up; in an
installed wheel they live beside this file. The three lines below make `import ditedge.runtime` work in both.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

_checkout = _Path(__file__).resolve().parents[1]
if (_checkout / "cli.py").is_file() and (_checkout / "runtime").is_dir():
    __path__.append(str(_checkout))
