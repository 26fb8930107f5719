"""`Session`: the loaded engines of one bundle, on the host or on a device."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of
from ..errors import RequestError
from ..samplers.program import STEP_GRAPH, Program, is_step_graph
from . import engine_ort_cuda
from .device_loop import DeviceLoop
from .engine import Engine, EngineOptions
from .given import FromLatent, encoded
from .host_loop import HostLoop
from .image_run import ImageRun, advance, is_prepared, prepare
from .loop import Loop, Told
from .noise import NoiseSource, SeededNoise
from .prompts import Prompt
from .request import check_program, whole_numbers
from .subjects import one_subject, picture_of, told_besides
from .tables import Mixed, StepTables, Subject, image_tables, step_tables


class Session:
    """The loaded engines of one bundle. One caller at a time; `close` frees them (or use it in a `with`)."""

    def __init__(
        self, bundle: Bundle, options: EngineOptions | None = None, engines: Mapping[str, Engine] | None = None
    ) -> None:
        """engines: by graph name, instead of those of the bundle's files; `close` closes them, too."""
        self.bundle = bundle
        self._options = options or EngineOptions()
        self._host = HostLoop(bundle, self._options, engines)
        self._device: DeviceLoop | None = None
        on_cuda = self._options.provider == engine_ort_cuda.PROVIDER and engines is None
        self._on_device = self._options.plans is not None or on_cuda

    @property
    def loop(self) -> Loop:
        """Where the work is done: on a GPU, by plans or by ONNX Runtime, loaded at first use; or on the host."""
        if not self._on_device:
            return self._host
        if self._device is None:
            self._device = DeviceLoop(self.bundle, self._options.plans, self._options, on_host=self._host.engine)
        return self._device

    def load(self, graph: str) -> None:
        """Loads a graph now rather than at first use. Raises RequestError when the bundle has none."""
        self.bundle.require(graph)
        (self._host if _is_further(graph) else self.loop).load(graph)

    def engine(self, graph: str) -> Engine:
        """The engine of a graph in ONNX, loaded at first use."""
        return self._host.engine(graph)

    def latents(
        self,
        program: Program,
        subjects: Sequence[Subject],
        guidance: float,
        noise: NoiseSource,
        on_step: Told | None = None,
        cancel: threading.Event | None = None,
        away_from: Sequence[int | Prompt | None] | None = None,
        size: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """Runs the whole program on one batch -> latents [B, C, H, W] float32. Raises Cancelled, RequestError.

        subjects: classes, or prompts, or several of them together (`Mixed`); of prompts `size` is height and width of
        the picture.
        """
        self._check_graphs(program)
        guidance, besides = told_besides(self.bundle, guidance, size)
        tables = step_tables(program, self.bundle.manifest.model, subjects, guidance, away_from, besides)
        loop = self._host if any(map(_is_further, program.graph or ())) else self.loop
        if isinstance(noise, FromLatent) and noise.keep is not None:
            loop = self._blending()
        if self._on_device and any(isinstance(subject, Mixed) for subject in subjects):
            raise RequestError(
                "images of several classes or prompts are for the host's loop so far: without plans and CUDA"
            )
        return loop.latents(program, tables, noise, on_step, cancel)

    def _blending(self) -> Loop:
        """The loop that runs the graph `blend`. Raises RequestError."""
        self.bundle.require("blend")
        if self._on_device:
            raise RequestError("a mask is for the host's loop so far: give the bundle itself, without plans and CUDA")
        return self._host

    def encode(self, prompt: Prompt) -> dict[str, np.ndarray]:
        """What the bundle's text encoders make of a prompt, by name: `hidden` [tokens, Dh] float32 and its like.

        Raises RequestError.
        """
        return self._host.text.rows(prompt)

    def encode_images(self, pictures: np.ndarray, latent: tuple[int, int, int]) -> np.ndarray:
        """uint8 [n, h, w, c] -> latents [n, C, H, W] float32 by the graph `encoder`. latent: C, H, W of each."""
        self.bundle.require("encoder")
        return encoded(self.engine, pictures, latent)

    def step_inputs(
        self, tables: StepTables, step: int, state: np.ndarray, noise: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """All that the step graph reads at one step of the tables, computed here. noise None: zeros."""
        return self._host.step_inputs(tables, step, state, noise)

    def start(
        self,
        program: Program,
        subject: int | str | Prompt,
        seed: int,
        *,
        guidance: float | None = None,
        away_from: int | str | Prompt | None = None,
        size: tuple[int, int] | None = None,
        given: np.ndarray | None = None,
        force_program: bool = False,
    ) -> ImageRun:
        """An image to be sampled step by step with `advance`. guidance: None is the bundle's default.

        subject: a class, or a prompt where the model takes those; away_from: another of the kind, None is no class or
        the prompt of no words. size: (width, height) of the picture in pixels, of a model that takes prompts.
        given: the latent [C, H, W] float32 that a program with init[0] other than 0 starts from.
        Raises RequestError for what does not fit the bundle.
        """
        manifest = self.bundle.manifest
        guidance = manifest.defaults.guidance if guidance is None else guidance
        [seed] = whole_numbers("seed", [seed])
        subject, away_from = one_subject(self.bundle, subject, away_from, seed, guidance, size)
        shape = latent_of(self.bundle, size)
        self._check_graphs(program)
        if not force_program:
            check_program(self.bundle, program)
        if given is not None and (given.shape != shape or given.dtype != np.float32 or not np.isfinite(given).all()):
            raise RequestError(f"the given latent is not {list(shape)} finite float32 numbers")
        guidance, besides = told_besides(self.bundle, guidance, picture_of(self.bundle, shape))
        tables = image_tables(program, manifest.model, subject, guidance, away_from, besides)
        return ImageRun(program, tables, SeededNoise([seed], shape), None if given is None else given[None])

    def prepare(self, run: ImageRun, cancel: threading.Event | None = None) -> None:
        """Encodes the run's prompts, as its first `advance` does otherwise. For another thread than `advance`'s, too.

        Raises Cancelled, RequestError.
        """
        prepare(self._host.text, run, cancel)

    def is_prepared(self, run: ImageRun) -> bool:
        """Whether `prepare` has nothing to do, as where the run has no prompts. For any thread."""
        return is_prepared(self._host.text, run)

    def advance(
        self, runs: Sequence[ImageRun], cancel: threading.Event | None = None, a_call: int | None = None
    ) -> None:
        """One step of every run that is not done, on ONNX Runtime. Raises Cancelled, RequestError.

        a_call: images that a call of the step graph takes at most; None: all of them. A processor that is full with
        one image is no quicker with more, and slower where they outgrow its caches.
        """
        if self._options.plans is not None:
            raise RequestError("plans run whole programs: sample step by step with the bundle's ONNX graphs")
        advance(self.engine, self._host.text, runs, self.bundle.manifest.modulation_width, cancel, a_call)

    def images(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]. Raises RequestError without a decoder."""
        self.bundle.require("decoder")  # raises when there is none
        return self.loop.images("decoder", latents)

    def preview(self, latents: np.ndarray) -> np.ndarray:
        """latents [B, C, H, W] float32 -> uint8 [B, h, w, 1 or 3]: by the graph `preview`, else by the decoder."""
        latents = np.where(np.isfinite(latents), latents, np.float32(0))  # no number has no colour
        if "preview" not in self.bundle.manifest.graphs:
            return self.images(latents)
        return self.loop.images("preview", latents)

    def _check_graphs(self, program: Program) -> None:
        """Raises RequestError when the program runs a graph that the bundle lacks, or that plans do not have."""
        for graph in set(program.graph or ()):
            self.bundle.require(graph)
            if graph != STEP_GRAPH and self._options.plans is not None:
                raise RequestError(
                    f"program '{program.name}' runs graph '{graph}', and plans have '{STEP_GRAPH}' alone"
                )

    def close(self) -> None:
        self._host.close()
        if self._device is not None:
            self._device.close()
            self._device = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_further(graph: str) -> bool:
    """Whether it is a step graph beside "step": the host's loop runs those."""
    return is_step_graph(graph) and graph != STEP_GRAPH
