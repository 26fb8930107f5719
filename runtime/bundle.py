"""A bundle on disk: found, validated, its files hashed, its programs read. Loads no engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError, RequestError
from .files import sha256_of_file
from .json_files import read_bounded
from .manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, manifest_from_json
from .programs import Program, read_program
from .samplers.settings import SamplerSettings, implied_sampler, make_program, settings_from_made
from .schedule import Schedule, schedule_from_info


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: a folder and its validated manifest."""

    folder: Path
    manifest: Manifest
    sha256: str  # of manifest.json, which holds the hash of every other file

    @property
    def schedule(self) -> Schedule | None:
        """The model's betas; None for a flow model, which has none."""
        info = self.manifest.schedule
        return None if info is None else schedule_from_info(info)

    def file(self, name: str) -> Path:
        """The path of a file listed in the manifest."""
        return self.folder / name

    def graph_file(self, graph: str) -> Path:
        """Path of graph "conditioner", "step" or "decoder". Raises RequestError when the bundle has none."""
        info = self.manifest.graphs.get(graph)  # type: ignore[call-overload]
        if info is None:
            raise RequestError(f"bundle {self.folder} has no {graph}: its latents cannot become images; save latents")
        return self.file(info.file)

    def program(self, name: str | None = None, **settings: Any) -> Program:
        """A ready program of the bundle by name (None: its default), or one made from sampler settings.

        settings: the fields of `SamplerSettings`: sampler, steps, respacing, spacing, sigmas, order, shift, eta,
        variance, clip_x0, guidance_interval. Any of them makes a new program; sampler and steps that are not given are
        those of the default program (eta alone means ddim, variance ddpm). Raises ProgramError or RequestError.
        """
        settings = {key: value for key, value in settings.items() if value is not None and value is not False}
        if name is not None and settings:
            raise RequestError(f"program '{name}' is ready-made: give either its name or sampler settings")
        chosen = name or self.manifest.defaults.program
        if chosen not in self.manifest.programs:
            raise RequestError(f"no program '{chosen}' in the bundle; it has {', '.join(self.manifest.programs)}")
        program = read_program(self.file(self.manifest.programs[chosen]))
        if not settings:
            return program
        default = settings_from_made(program.made)
        settings.setdefault("sampler", implied_sampler(settings, default.sampler))
        if "steps" not in settings and "respacing" not in settings:
            settings["steps"] = program.steps
        return make_program(
            self.schedule,
            SamplerSettings(**settings),
            learned_variance=self.manifest.model.learned_variance,
            prediction=self.manifest.model.prediction,
            timestep_range=self.manifest.model.timestep_range,
        )

    def label(self, text: str) -> int:
        """The number of a class given by name, by number, or by one of its names. Raises RequestError.

        An exact name comes first, so that a class may be called 1990; then numbers; then names in any case.
        """
        model, labels = self.manifest.model, self.manifest.labels
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


def open_bundle(path: str | Path, *, check_hashes: bool = True) -> Bundle:
    """Opens the bundle at `path`: its folder, or any file inside it (an .onnx, a .plan).

    Raises BundleError when something is missing, leaves the folder, has a wrong hash, or is of another version.
    """
    folder = bundle_folder(Path(path))
    manifest_path = folder / MANIFEST_NAME
    raw = read_bounded(manifest_path, MAX_MANIFEST_BYTES, BundleError)
    manifest = manifest_from_json(raw, manifest_path)
    for name, info in manifest.files.items():
        file = _inside(folder, name)
        if not file.is_file():
            raise BundleError(f"{folder}: file {name} is missing; export the checkpoint again")
        if file.stat().st_size != info.bytes or (check_hashes and sha256_of_file(file) != info.sha256):
            raise BundleError(f"{file}: does not match its hash in the manifest: damaged or tampered with")
    return Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())


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
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts
    if outside or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{folder / MANIFEST_NAME}: path {name!r} leaves the bundle")
    return folder / name
