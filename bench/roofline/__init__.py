"""How near the machine's limit a bundle's graphs come: `python -m bench.roofline` (docs/performance.md).

Peaks are measured through the libraries that run the graphs (peaks.py); multiply-adds and bytes are counted node by
node as ONNX Runtime executes them (counts.py, profiles.py).
"""
