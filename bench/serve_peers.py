"""Servers to compare `ditedge serve` with, of the same address and fields: one request at a time, nothing shared.

    python bench/serve_peers.py naive --engine build/demo/fashion --port 8001      # `generate`, one after the other
    python bench/serve_peers.py diffusers --pipeline PixArt-XL-2-512x512 --port 8002  # diffusers, in the same way
    ditedge serve --engine build/demo/fashion --max-batch 1 --port 8003              # ours, one image at a time
    python bench/serve.py --address http://127.0.0.1:8001 --rate 4 --steps 4,50

Both answer `POST /v1/images/generations` as a first version would: a lock around the model, a thread a request.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

Paint = Callable[[str, int, int], np.ndarray]  # prompt, steps, seed -> uint8 [h, w, 1 or 3]


def of_bundle(engine: Path, threads: int) -> Paint:
    """A loaded bundle of classes or prompts, one run at a time."""
    from ditedge.runtime import Session, generate, open_bundle
    from ditedge.runtime.loop.engine import EngineOptions

    bundle, lock = open_bundle(engine), threading.Lock()
    session = Session(bundle, EngineOptions(threads=threads))

    def paint(prompt: str, steps: int, seed: int) -> np.ndarray:
        of = {"prompts": [prompt]} if bundle.manifest.text is not None else {"labels": [bundle.label(prompt)]}
        with lock:
            return generate(bundle, seeds=[seed], program=bundle.program(steps=steps), session=session, **of)[0]

    return paint


def of_pipeline(folder: Path, threads: int) -> Paint:
    """A diffusers pipeline of classes or prompts, one run at a time."""
    import torch
    from diffusers import DiffusionPipeline, DiTPipeline

    torch.set_num_threads(threads)
    pipeline, lock = DiffusionPipeline.from_pretrained(folder), threading.Lock()
    pipeline.set_progress_bar_config(disable=True)
    classes = isinstance(pipeline, DiTPipeline)

    def paint(prompt: str, steps: int, seed: int) -> np.ndarray:
        of = {"class_labels": [int(prompt)]} if classes else {"prompt": prompt}
        with lock:
            generator = torch.Generator().manual_seed(seed)
            picture = pipeline(**of, num_inference_steps=steps, generator=generator, output_type="np").images[0]
        return np.asarray(picture * 255).round().astype(np.uint8)

    return paint


def naive(paint: Paint) -> Any:
    """Starlette, which FastAPI is made of: the same threads."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def generations(request: Request) -> JSONResponse:
        wish = await request.json()
        steps, seed = int(wish.get("num_inference_steps", 25)), int(wish.get("seed", 0))
        image = await run_in_threadpool(paint, str(wish["prompt"]), steps, seed)
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
        return JSONResponse({"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]})

    return Starlette(routes=[Route("/v1/images/generations", generations, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["naive", "diffusers"])
    parser.add_argument("--engine", type=Path, help="the bundle of `naive`")
    parser.add_argument("--pipeline", type=Path, help="the folder of `diffusers`")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    make, what = (of_bundle, given.engine) if given.peer == "naive" else (of_pipeline, given.pipeline)
    if what is None:
        parser.error("naive needs --engine, diffusers --pipeline")
    import uvicorn

    uvicorn.run(naive(make(what, given.threads)), port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
