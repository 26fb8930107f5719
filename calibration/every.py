"""`bench --all`: every precision of one bundle, on every engine that this machine has, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..runtime.bench.measure import Contender, contender_of, measure, opened_or_why
from ..runtime.bench.record import Record
from ..runtime.bench.request import BenchRequest
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.errors import Cancelled, DitedgeError, EngineError, RequestError, first_line
from ..runtime.loop.engine_openvino import OPENVINO
from ..runtime.loop.engines import ENGINES
from ..runtime.plans.build import build_bundle, engine_folder
from ..runtime.plans.library import first_gpu, load_library
from ..runtime.plans.options import TARGETS, BuildOptions
from ..runtime.replacing import scratch_folder
from ..runtime.report import Report, silent
from .convert import convert_bundle
from .formats import FORMATS
from .options import ConvertOptions, QuantizeOptions
from .quantize import quantize_bundle

FLOAT = "float32"


@dataclass(frozen=True)
class Variant:
    """A precision of the bundle. make: writes it to a folder; None: the bundle itself.

    static: in TensorRT's form, whose scales are fixed: for plans and OpenVINO, and on ONNX Runtime a mere simulation.
    """

    name: str
    make: Callable[[Path, Report], object] | None
    static: bool = False


def bench_every(request: BenchRequest, report: Report = silent) -> Record:
    """Makes each variant, then times all that was made in turns. Whatever one of them cannot do is its row's reason.

    Raises RequestError for what cannot be asked, and EngineError when the float32 bundle itself does not run.
    """
    if len(request.engines) != 1:
        raise RequestError(f"--all makes every precision of one bundle: give --engine once, not {len(request.engines)}")
    bundle = open_bundle(request.engines[0], trusted_keys=request.trusted_keys or None)
    if bundle.manifest.quantization is not None or bundle.manifest.graphs["step"].precision != "float32":
        raise RequestError(f"{bundle.folder} is not in float32: give --all the float32 bundle that it was made from")
    with scratch_folder() as scratch:
        folder = scratch if request.keep is None else request.keep
        folder.mkdir(parents=True, exist_ok=True)
        contenders = list(_contenders(bundle, request, folder, scratch, report))
        what = f"every precision of {bundle.manifest.name}, {bundle.program().name}"
        return measure(contenders, request.settings, what, bundle, report)


def variants(bundle: Bundle, providers: Iterable[str]) -> list[Variant]:
    """float32 first, then every format of the table in ONNX Runtime's form; in TensorRT's where something runs it."""
    made, gpu = [Variant(FLOAT, None)], first_gpu() is not None
    for name, entry in FORMATS.items():
        if entry.command == "convert":
            made.append(Variant(name, partial(_converted, bundle.folder, name)))
            continue
        made.append(Variant(name, partial(_quantised, bundle.folder, name, "onnxruntime")))
        if gpu or (name == "int8" and any(map(OPENVINO.has, providers))):
            made.append(Variant(f"{name}-static", partial(_quantised, bundle.folder, name, "tensorrt"), static=True))
    return made


def providers_here() -> list[str]:
    """Of every engine, those that this machine can run."""
    return [name for kind in ENGINES.values() for name in kind.providers if not kind.refusal(name)]


def _contenders(
    bundle: Bundle, request: BenchRequest, folder: Path, scratch: Path, report: Report
) -> Iterator[Contender]:
    """folder: for the bundles; scratch: for latents."""
    providers, targets = list(request.providers) or providers_here(), _targets()
    if not providers:
        raise EngineError("no engine can run here: see `ditedge doctor`")
    for variant in variants(bundle, providers):
        path = bundle.folder if variant.make is None else folder / variant.name
        if variant.make is not None and (failure := _failure(partial(variant.make, path, report))):
            yield Contender(variant.name, failure=failure)
            continue
        opened = bundle if variant.make is None else opened_or_why(path, keys=())
        if isinstance(opened, DitedgeError):
            yield Contender(variant.name, failure=str(opened))
            continue
        on = {name: (path, name) for name in providers if not variant.static or OPENVINO.has(name)}
        for target in targets if variant.make is not None else ():  # the user's own plans stay as they are
            options = BuildOptions(target, max_batch=request.settings.batch, force=True)
            if failure := _failure(partial(build_bundle, opened, options, report)):
                yield Contender(f"{variant.name} on {target}", failure=failure)
            else:
                on[target] = (next(engine_folder(opened, target).glob("*.plan")), "plan")
        for where, (file, provider) in on.items():
            name = f"{variant.name} on {where}"
            yield contender_of(name, file, opened, provider, request.settings, bundle, scratch / f"{name}.npy")


def _targets() -> list[str]:
    """Libraries of plans that are installed; without a GPU nothing runs them."""
    return [target for target in TARGETS if not _failure(partial(load_library, target))] if first_gpu() else []


def _failure(work: Callable[[], object]) -> str:
    """Does it -> why it could not be done; empty when it is. Whatever a library raises ends this variant alone."""
    try:
        work()
    except Cancelled:
        raise
    except DitedgeError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _converted(source: Path, precision: str, out: Path, report: Report) -> None:
    convert_bundle(source, out, ConvertOptions(precision, force=True), report)


def _quantised(source: Path, precision: str, form: str, out: Path, report: Report) -> None:
    quantize_bundle(source, out, QuantizeOptions(precision, form, force=True), report)
