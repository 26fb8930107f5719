"""A bundle on disk: found, validated, its files hashed, its programs read. Loads no engine."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError, ProgramError, RequestError
from ..json_files import read_bounded
from ..samplers.process import ProcessInfo
from ..samplers.program import Program, program_from_json, read_program
from ..samplers.schedule import Schedule, schedule_from_info
from ..samplers.settings import SamplerSettings, implied_sampler, make_program, settings_from_made
from .graph_contract import GraphInfo, check_loaded
from .held_files import HeldFile, HeldGraph, check_all
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, manifest_from_json
from .onnx_files import read_onnx
from .signatures import check_signed, read_trusted_keys

MAX_PROGRAMS_BYTES = 64 << 20
OPTIONAL = ("golden/", "quality/")  # no runtime reads them: a device may leave them out


REMEDIES = {  # where a bundle has no such graph
    "decoder": "its latents cannot become images; save latents",
    "encoder": "it cannot start from a picture; export it again with --encoder",
    "blend": "it keeps no part of a picture; export it again with --encoder",
}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: a folder, its validated manifest, and its files as they were hashed.

    One that `open_bundle` did not make (graphs of our own in a scratch folder) holds no files: they are read by name.
    """

    folder: Path
    manifest: Manifest
    sha256: str  # of manifest.json, which holds the hash of every other file
    trusted: tuple[bytes, ...] = ()  # public keys: one of them signed it, and has to have signed its plans
    held: Mapping[str, HeldFile] = field(
        default_factory=dict, repr=False, compare=False
    )  # graphs, their weights, golden files
    graphs: Mapping[str, HeldGraph] = field(default_factory=dict, repr=False, compare=False)  # by name
    programs: Mapping[str, Program] = field(default_factory=dict, repr=False, compare=False)  # by name

    @property
    def schedule(self) -> Schedule | None:
        """The model's betas; None for a flow model, which has none."""
        info = self.manifest.schedule
        return None if info is None else schedule_from_info(info)

    @property
    def process(self) -> ProcessInfo:
        """What the model was trained on: what a program for it has to be made for."""
        model = self.manifest.model
        return ProcessInfo(
            prediction=model.prediction, timestep_range=model.timestep_range, schedule=self.manifest.schedule
        )

    def file(self, name: str) -> Path:
        """The path of a listed file, for one who reads by name. Raises BundleError when it is another one by now."""
        if name in self.held:
            return self.held[name].check_path()
        if name.startswith(OPTIONAL) and not self.has(name):
            raise BundleError(f"{self.folder}: {name} is left out here: work on a complete copy of the bundle")
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether a listed file is there: those of golden/ and quality/ may be left out on a device."""
        return name in self.held or (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        """A small listed file as it was hashed. Raises BundleError."""
        if name in self.held:
            return self.held[name].read()
        return HeldFile(self.folder / name, self.manifest.files[name]).read()

    def graph_file(self, graph: str) -> Path:
        """`file` of graph "conditioner", "step" or "decoder". Raises RequestError when the bundle has none."""
        self.require(graph)
        for weights in self.graphs[graph].external.values() if graph in self.graphs else ():
            weights.check_path()
        return self.file(self.manifest.graphs[graph].file)  # type: ignore[index]

    def require_classes(self, what: str) -> None:
        """Raises RequestError for a model that takes prompts, which `what` cannot do yet."""
        if self.manifest.text is not None:
            raise RequestError(f"{self.folder} takes prompts, and {what} is for models of classes so far")

    def require(self, graph: str) -> None:
        """Raises RequestError, with the remedy, when the bundle has no such graph."""
        if graph not in self.manifest.graphs:
            remedy = REMEDIES.get(graph, "take another program")
            raise RequestError(f"bundle {self.folder} has no {graph}: {remedy}")

    def graph(self, graph: str) -> HeldGraph | Path:
        """What an engine loads: the graph as it was hashed. Raises RequestError when the bundle has none."""
        return self.graphs[graph] if graph in self.graphs else self.graph_file(graph)

    def program(self, name: str | None = None, tokens: int | None = None, **settings: Any) -> Program:
        """A ready program of the bundle by name (None: its default), or one made from sampler settings.

        settings: the fields of `SamplerSettings`: sampler, steps, respacing, spacing, sigmas, order, shift, eta,
        variance, clip_x0, guidance_interval. Any of them makes a new program; sampler and steps that are not given are
        those of the default program, or, where that is tuned, of the first that is not (eta alone means ddim, variance
        ddpm). Raises ProgramError or RequestError.
        tokens: of the picture (`TextInfo.patches`), where steps depend on them; None is the model's own size.
        """
        settings = {key: value for key, value in settings.items() if value is not None and value is not False}
        if name is not None and settings:
            raise RequestError(f"program '{name}' is ready-made: give either its name or sampler settings")
        chosen = name or self.manifest.defaults.program
        if chosen not in self.manifest.programs:
            raise RequestError(f"no program '{chosen}' in the bundle; it has {', '.join(self.manifest.programs)}")
        program, own = self._ready(chosen), self._own_tokens()
        flow = self.manifest.flow
        moves = name is None and flow is not None and flow.by_size is not None and tokens not in (None, own)
        if not settings and not moves:
            return program
        base, default = self._made_from_settings(program)
        settings.setdefault("sampler", implied_sampler(settings, str(default.sampler)))
        if "steps" not in settings and "respacing" not in settings:
            settings["steps"] = base.steps
        return make_program(
            self.schedule,
            SamplerSettings(**settings),
            learned_variance=self.manifest.model.learned_variance,
            prediction=self.manifest.model.prediction,
            timestep_range=self.manifest.model.timestep_range,
            flow=flow,
            tokens=own if tokens is None else tokens,
        )

    def _made_from_settings(self, default: Program) -> tuple[Program, SamplerSettings]:
        """The default program, or the first ready one, that has sampler settings: a tuned one has none."""
        for program in (default, *map(self._ready, self.manifest.programs)):
            with suppress(ProgramError):
                return program, settings_from_made(program.made)
        return default, settings_from_made(default.made)  # says why there are none

    def _own_tokens(self) -> int | None:
        text, side = self.manifest.text, self.manifest.model.input_size
        return None if text is None else text.patches((side, side))

    def _ready(self, name: str) -> Program:
        return self.programs[name] if name in self.programs else read_program(self.file(self.manifest.programs[name]))

    def label(self, text: str) -> int:
        """The number of a class given by name, by number, or by one of its names. Raises RequestError.

        An exact name comes first, so that a class may be called 1990; then numbers; then names in any case.
        """
        model, labels = self.manifest.model, self.manifest.labels
        if self.manifest.text is not None:
            raise RequestError(f"{self.folder} takes prompts, and no classes: give --prompt instead of class {text!r}")
        if labels.count(text) == 1:
            return labels.index(text)
        if text.isascii() and text.isdigit():
            if len(text) > 18 or int(text) >= model.num_classes:  # Python reads no number of thousands of digits
                raise RequestError(f"class {text}: the model has classes 0 to {model.num_classes - 1}")
            return int(text)
        wanted = text.strip().lower()
        found = [i for i, label in enumerate(labels) if label.lower() == wanted]
        if not found:  # ImageNet's names are lists: "great white shark, white shark, ..."
            found = [i for i, label in enumerate(labels) if wanted in map(str.strip, label.lower().split(","))]
        if len(found) > 1:
            raise RequestError(f"class '{text}' has several meanings: give its number, {' or '.join(map(str, found))}")
        if not found:
            have = f"one of {', '.join(labels[:20])}" if labels else f"a number, 0 to {model.num_classes - 1}"
            raise RequestError(f"class '{text}' is unknown: give {have}")
        return found[0]

    def label_name(self, label: int) -> str:
        return self.manifest.labels[label] if self.manifest.labels else str(label)


def open_bundle(
    path: str | Path, *, check_hashes: bool = True, trusted_keys: Iterable[str | Path] | None = None
) -> Bundle:
    """Opens the bundle at `path`: its folder, or any file inside it (an .onnx, a .plan).

    trusted_keys: PEM files of public keys, one of which has to have signed the manifest (signatures.py), and later any
    plan; hashes are checked then. None: those of $DITEDGE_TRUSTED_KEYS, if any; (): no signature is asked for.
    Raises BundleError when something is missing, leaves the folder, has a wrong hash, is of another version, or is not
    signed; RequestError for a key that cannot be read.
    """
    trusted = read_trusted_keys(trusted_keys)
    folder = bundle_folder(Path(path))
    manifest_path = folder / MANIFEST_NAME
    raw = read_bounded(manifest_path, MAX_MANIFEST_BYTES, BundleError)
    check_signed(manifest_path, raw, trusted)
    manifest = manifest_from_json(raw, manifest_path)
    programs = set(manifest.programs.values())
    if sum(manifest.files[name].bytes for name in programs) > MAX_PROGRAMS_BYTES:
        raise BundleError(f"{manifest_path}: its programs are larger than {MAX_PROGRAMS_BYTES >> 20} MB together")
    files = {name: _opened(folder, name, manifest, check_hashes or bool(trusted)) for name in manifest.files}
    held = {name: file for name, file in files.items() if file is not None}
    check_all([file for name, file in held.items() if name not in programs])
    ready = {file: program_from_json(held[file].read(), folder / file) for file in programs}
    graphs = {str(name): _held_graph(info, held, folder) for name, info in manifest.graphs.items()}
    used = {graph.file for graph in manifest.graphs.values()} | {golden.file for golden in manifest.golden}
    used |= set(manifest.text.files) if manifest.text is not None else set()
    kept = {name: held[name] for name in used & held.keys()}
    return Bundle(
        folder,
        manifest,
        hashlib.sha256(raw).hexdigest(),
        trusted,
        kept,
        graphs,
        {name: ready[file] for name, file in manifest.programs.items()},
    )


def _opened(folder: Path, name: str, manifest: Manifest, check_hash: bool) -> HeldFile | None:
    """None: an optional file that is not there."""
    path = _inside(folder, name)
    if path.is_file():
        return HeldFile(path, manifest.files[name], check_hash=check_hash)
    needed = {*manifest.programs.values(), *(graph.file for graph in manifest.graphs.values())}
    needed |= set(manifest.text.files) if manifest.text is not None else set()
    if name.startswith(OPTIONAL) and name not in needed:
        return None
    raise BundleError(f"{folder}: file {name} is missing; export the checkpoint again")


def _held_graph(info: GraphInfo, held: Mapping[str, HeldFile], folder: Path) -> HeldGraph:
    """The graph with the weights that it keeps elsewhere, once its tensors are those of the manifest."""
    file, external = held[info.file], {}
    with file.map() as data:
        found = read_onnx(data, file.path)
    try:
        check_loaded(info, found.inputs, found.outputs)
    except ValueError as error:
        raise BundleError(f"{file.path}: {error}") from None
    for location in sorted(found.locations):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(info.file), location))
        if _leaves(location) or name not in held:
            raise BundleError(
                f"{file.path}: keeps weights in {location!r}, which is not listed in files, so its hash is unknown"
            )
        external[location] = held[name]
    return HeldGraph(file, external)


def bundle_folder(path: Path) -> Path:
    """The folder with manifest.json: `path` itself, or the nearest folder above a file inside a bundle."""
    if not path.exists():
        raise BundleError(f"{path} does not exist")
    if path.is_dir():
        if not (path / MANIFEST_NAME).is_file():
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST_NAME} (make one with `ditedge export`)")
        return path
    for folder in list(path.absolute().parents)[:3]:
        if (folder / MANIFEST_NAME).is_file():
            return folder
    raise BundleError(f"{path} is not inside a bundle: no {MANIFEST_NAME} in the folders above it")


def _inside(folder: Path, name: str) -> Path:
    """folder / name, refused when it would leave the folder by '..', an absolute path or a symbolic link."""
    if _leaves(name) or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder / MANIFEST_NAME}: path {name!r} leaves the bundle")
    return folder / name


def _leaves(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts
