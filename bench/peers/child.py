"""The process of one peer: python child.py NAME CHECKPOINT HEADS BATCH THREADS FOLDER, in turns with others."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import torch

    from bench.peers import PEERS, Task
    from ditedge.export.sources.read import read_source
    from ditedge.runtime.bench.turns import Made, serve

    name, checkpoint, heads, batch, threads, folder = sys.argv[1:]
    peer = PEERS[name]

    def ready() -> Made:
        torch.set_num_threads(int(threads))
        source = read_source(Path(checkpoint), heads=int(heads) or None)
        model, inputs = source.model(), inputs_of(source.config, int(batch))
        with torch.no_grad():
            exact = model(*inputs).numpy()
        task = Task(model, inputs, Path(folder), int(threads))
        evaluate = importlib.import_module(f"bench.peers.{peer.module}").make(task, peer.variant)
        output = evaluate()
        output = np.asarray(output.cpu() if isinstance(output, torch.Tensor) else output, np.float64)
        drift = float(np.linalg.norm(output - exact) / np.linalg.norm(exact))
        return Made({"step": evaluate}, {"drift": drift if np.isfinite(drift) else float("inf")})

    serve(ready)


def inputs_of(config: object, batch: int) -> tuple[object, object, object]:
    """Of a guided step: both evaluations of every image, one timestep."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size, generator=generator)
    label = torch.arange(2 * batch) % config.num_classes
    label[batch:] = config.num_classes if config.null_class else 0
    return x.repeat(2, 1, 1, 1), torch.full((2 * batch,), 500.0), label


if __name__ == "__main__":
    main()
