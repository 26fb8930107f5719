"""The C interface (runtime/cpp/include/ditedge.h) from Python by ctypes: a picture without the Python runtime.

    cmake -S runtime/cpp -B build/cpp && cmake --build build/cpp
    python examples/capi_ctypes.py build/cpp/libditedge.so build/demo/fashion 9 7      # class 9, seed 7 -> capi.png

Any language with a foreign-function interface does the same: structs start with their size, and every call returns a
status whose sentence ditedge_last_error() has.
"""

from __future__ import annotations

import ctypes as c
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Info(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *[(n, c.c_int64) for n in ("num_classes", "null_class", "latent_channels", "latent_height", "latent_width")],
        *[(n, c.c_int64) for n in ("image_height", "image_width", "image_channels")],
        ("default_guidance", c.c_double),
        *[(n, c.c_int64) for n in ("prompt_tokens", "size_multiple", "size_largest", "size_factor")],
        ("text_encoders", c.c_int64),
    ]


class Options(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *[(n, c.c_char_p) for n in ("engine", "provider", "library")],
        *[(n, c.c_int32) for n in ("threads", "device", "spin", "tf32", "no_cuda_graph")],
    ]


class Progress(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *[(n, c.c_int64) for n in ("done", "total", "first", "batch")],
        ("latents", c.POINTER(c.c_float)),
    ]


class Preview(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        *[(n, c.c_int64) for n in ("step", "first", "batch", "height", "width", "channels")],
        ("images", c.POINTER(c.c_uint8)),
    ]


OnProgress = c.CFUNCTYPE(None, c.POINTER(Progress), c.c_void_p)
OnPreview = c.CFUNCTYPE(None, c.POINTER(Preview), c.c_void_p)


class Params(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("count", c.c_int64),
        *[(n, c.c_void_p) for n in ("labels", "seeds", "away_from")],
        ("guidance", c.c_double),
        *[(n, c.c_char_p) for n in ("program", "program_file")],
        ("batch", c.c_int64),
        *[(n, c.c_void_p) for n in ("initial_noise", "step_noise")],
        ("step_noise_bytes", c.c_size_t),
        ("on_progress", OnProgress),
        ("on_preview", OnPreview),
        ("user", c.c_void_p),
        ("preview_every", c.c_int64),
        ("request", c.c_uint64),
        *[(n, c.c_int32) for n in ("check_finite", "other_process")],
        *[(n, c.c_void_p) for n in ("prompts", "negatives")],
        *[(n, c.c_int64) for n in ("width", "height")],
    ]


class RunParams(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("label", c.c_int64),
        ("seed", c.c_uint64),
        ("away_from", c.c_int64),
        ("guidance", c.c_double),
        *[(n, c.c_char_p) for n in ("program", "program_file")],
        ("given_latent", c.c_void_p),
        ("other_process", c.c_int32),
        *[(n, c.c_void_p) for n in ("prompt", "negative")],
        *[(n, c.c_int64) for n in ("width", "height")],
    ]


class DitedgeError(Exception):
    """status: a number of ditedge_status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Ditedge:
    """One bundle and its session. `engine_library`: path of libonnxruntime.so or libnvinfer.so; None: the system's.

    options are the other fields of ditedge_session_options: engine=b"tensorrt", threads=2 ...
    """

    def __init__(self, library: Path, bundle: Path, engine_library: Path | None = None, **options: Any) -> None:
        self.c = load(library)
        self.bundle, self.session, self.info = c.c_void_p(), c.c_void_p(), Info(size=c.sizeof(Info))
        self._check(self.c.ditedge_bundle_open(str(bundle).encode(), 1, c.byref(self.bundle)))
        self._check(self.c.ditedge_bundle_info(self.bundle, c.byref(self.info)))
        chosen = Options()
        self._check(self.c.ditedge_session_options_init(c.byref(chosen), c.sizeof(chosen)))
        chosen.library = str(engine_library).encode() if engine_library else None
        for name, value in options.items():
            setattr(chosen, name, value)
        self._check(self.c.ditedge_session_open(self.bundle, c.byref(chosen), c.byref(self.session)))

    def prompt(self, *given: Sequence[int] | Path) -> c.c_void_p:
        """A prompt by its token ids, a list for each text encoder; or one that `ditedge encode` recorded, by its file.

        Close it with `close_prompt`.
        """
        prompt = c.c_void_p()
        if isinstance(given[0], Path):
            self._check(self.c.ditedge_prompt_open(self.bundle, str(given[0]).encode(), c.byref(prompt)))
            return prompt
        lists = [list(own) for own in given if not isinstance(own, Path)]
        ids, counts = [token for own in lists for token in own], [len(own) for own in lists]
        arrays = (c.c_int64 * len(ids))(*ids), (c.c_size_t * len(counts))(*counts)
        status = self.c.ditedge_prompt_of_ids(self.bundle, *arrays, c.c_size_t(len(lists)), c.byref(prompt))
        self._check(status)
        return prompt

    def close_prompt(self, prompt: c.c_void_p) -> None:
        self.c.ditedge_prompt_close(prompt)

    def generate(
        self,
        labels: Sequence[int] | None,
        seeds: Sequence[int],
        *,
        images: bool = True,
        noise: tuple[np.ndarray, np.ndarray] | None = None,
        away_from: Sequence[int] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_preview: Callable[[int, np.ndarray], None] | None = None,
        out: np.ndarray | None = None,
        **fields: Any,
    ) -> np.ndarray:
        """Images uint8 [n, h, w, 1 or 3], or latents float32 [n, C, H, W]; fields are those of ditedge_params.

        Of a model that takes prompts, labels is None, and fields have prompts=[...], negatives=[...], both of `prompt`,
        and pixels=(width, height), 0 is the model's own.
        out: written to instead of a new array; it keeps the good images when status 10 (some not finite) is raised.
        """
        keep, params, count = [np.array(seeds, np.uint64)], Params(), len(seeds)
        self._check(self.c.ditedge_params_init(c.byref(params), c.sizeof(params)))
        pixels = fields.pop("pixels", (0, 0))
        params.count, params.seeds, (params.width, params.height) = count, keep[0].ctypes.data, pixels
        of_images = {"labels": labels} | {name: fields.pop(name, None) for name in ("prompts", "negatives")}
        for name, given in of_images.items():
            if given is not None:
                keep.append(np.array([_number(own) for own in given], np.int64 if name == "labels" else np.uintp))
                setattr(params, name, keep[-1].ctypes.data)
        if noise is not None:
            keep += [np.ascontiguousarray(part, dtype=np.float32) for part in noise]
            params.initial_noise, params.step_noise = keep[-2].ctypes.data, keep[-1].ctypes.data
            params.step_noise_bytes = keep[-1].nbytes
        if away_from is not None:
            keep.append(np.array(away_from, np.int64))
            params.away_from = keep[-1].ctypes.data
        if on_progress is not None:
            params.on_progress = OnProgress(lambda event, _: on_progress(event.contents))
        if on_preview is not None:
            params.on_preview = OnPreview(lambda event, _: on_preview(event.contents.step, _picture(event.contents)))
        for name, value in fields.items():
            setattr(params, name, value)
        if out is None:
            out = np.empty((count, *self.shape(images, pixels)), np.uint8 if images else np.float32)
        run = self.c.ditedge_generate_images if images else self.c.ditedge_generate_latents
        self._check(run(self.session, c.byref(params), out.ctypes.data_as(c.c_void_p), c.c_size_t(out.nbytes)))
        return out

    def shape(self, images: bool, pixels: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
        """Of a picture (h, w, 1 or 3), or of a latent (C, H, W). pixels: (width, height), 0 is the model's own."""
        info, factor = self.info, max(1, self.info.size_factor)
        width, height = pixels
        if images:
            return height or info.image_height, width or info.image_width, info.image_channels
        return info.latent_channels, height // factor or info.latent_height, width // factor or info.latent_width

    def start(self, label: int, seed: int, given: np.ndarray | None = None, **fields: Any) -> c.c_void_p:
        """An image to be sampled step by step; fields are those of ditedge_run_params. Close it with `close_run`."""
        params, run = RunParams(), c.c_void_p()
        self._check(self.c.ditedge_run_params_init(c.byref(params), c.sizeof(params)))
        params.label, params.seed = label, seed
        params.given_latent = None if given is None else given.ctypes.data
        for name, value in fields.items():
            setattr(params, name, value)
        self._check(self.c.ditedge_run_open(self.bundle, c.byref(params), c.byref(run)))
        return run

    def advance(self, runs: Sequence[c.c_void_p]) -> None:
        """One step of each run that is not done, in a batch; they may be at different steps of different programs."""
        handles = (c.c_void_p * len(runs))(*(run.value for run in runs))
        self._check(self.c.ditedge_advance(self.session, handles, c.c_size_t(len(runs))))

    def steps(self, run: c.c_void_p) -> tuple[int, int]:
        """Steps done, and all of them."""
        done, steps = c.c_int64(), c.c_int64()
        self._check(self.c.ditedge_run_steps(run, c.byref(done), c.byref(steps)))
        return done.value, steps.value

    def latent(self, run: c.c_void_p, pixels: tuple[int, int] = (0, 0)) -> np.ndarray:
        """[C, H, W] float32: where the image is. pixels: (width, height) of its picture."""
        latent = np.empty(self.shape(False, pixels), np.float32)
        self._check(self.c.ditedge_run_latent(run, latent.ctypes.data_as(c.c_void_p), c.c_size_t(latent.nbytes)))
        return latent

    def close_run(self, run: c.c_void_p) -> None:
        self.c.ditedge_run_close(run)

    def cancel(self) -> None:
        """From any thread: a `generate` that runs raises DitedgeError with status 7 (DITEDGE_CANCELLED)."""
        self.c.ditedge_cancel(self.session)

    def warnings(self) -> list[str]:
        """What went on otherwise than it was asked for: plans that cannot be captured as a CUDA graph, say."""
        said: list[str] = []
        while (text := self.c.ditedge_session_warning(self.session, len(said))) is not None:
            said.append(text.decode(errors="replace"))
        return said

    def close(self) -> None:
        self.c.ditedge_session_close(self.session)
        self.c.ditedge_bundle_close(self.bundle)
        self.session, self.bundle = c.c_void_p(), c.c_void_p()

    def _check(self, status: int) -> None:
        if status != 0:
            raise DitedgeError(status, self.c.ditedge_last_error().decode(errors="replace"))


def load(library: Path) -> c.CDLL:
    """The shared library, with the types that ctypes cannot guess."""
    loaded = c.CDLL(str(library))
    for name in ("last_error", "version", "status_name", "class_name", "program_name", "default_program", "graph_name"):
        getattr(loaded, f"ditedge_{name}").restype = c.c_char_p
    for name in ("program_count", "graph_count"):
        getattr(loaded, f"ditedge_{name}").restype = c.c_int64
    for name in ("class_name", "program_name", "graph_name"):
        getattr(loaded, f"ditedge_{name}").argtypes = [c.c_void_p, c.c_int64]
    loaded.ditedge_session_warning.restype = c.c_char_p
    loaded.ditedge_session_warning.argtypes = [c.c_void_p, c.c_int64]
    loaded.ditedge_cancel_request.argtypes = [c.c_void_p, c.c_uint64]
    loaded.ditedge_noise.argtypes = [c.c_uint64, c.c_uint64, c.c_void_p, c.c_size_t]
    return loaded


def _number(given: Any) -> int:
    """A label; the address of a prompt's handle, 0 for none."""
    return (given.value or 0) if isinstance(given, c.c_void_p) else int(given or 0)


def _picture(event: Preview) -> np.ndarray:
    shape = (event.batch, event.height, event.width, event.channels)
    return np.ctypeslib.as_array(event.images, shape).copy()


def main(library: str, bundle: str, label: str, seed: str, onnxruntime: str | None = None) -> None:
    from PIL import Image

    ditedge = Ditedge(Path(library), Path(bundle), Path(onnxruntime) if onnxruntime else None)
    image = ditedge.generate([int(label)], [int(seed)], on_progress=lambda p: print(f"\r{p.done}/{p.total}", end=""))[0]
    ditedge.close()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save("capi.png")
    print("\ncapi.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
