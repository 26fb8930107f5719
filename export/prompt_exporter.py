"""A model that takes prompts, and its pipeline, to a bundle: the same order of work as `exporter.py`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from ..runtime.bundle.graph_contract import GraphInfo
from ..runtime.bundle.manifest import INSTRUCTION, TEXT, DefaultsInfo, Manifest, ModelInfo
from ..runtime.bundle.open import open_bundle
from ..runtime.bundle.text_info import EncoderInfo, InstructionInfo, TextInfo
from ..runtime.bundle.writing import check_target, new_bundle
from ..runtime.errors import RequestError
from ..runtime.files import write_text
from ..runtime.loop.prompts import write_prompt
from ..runtime.loop.verify import check_replayed, replay_golden
from ..runtime.report import Report
from ..runtime.samplers.program import Program
from .graphs.write_text import write_encoder, write_prompt_graphs
from .manifests import model_info, write_manifest
from .options import ExportOptions, vae_dtype
from .pictures import image_graphs, note_on_pictures, vae_info, vae_of, works_on_pixels, write_pictures
from .sources.lora import read_lora, read_with
from .sources.places import is_lone_file
from .sources.prompt_checkpoint import PromptCheckpoint
from .sources.text_folder import TextFolder, sha256_of_encoders, text_folders
from .sources.vae_checkpoint import VaeCheckpoint
from .truth.golden_prompts import write_golden_prompts
from .truth.programs import Flow, given_programs, golden_steps, write_programs, write_sized_programs

EMPTY = "text/empty.safetensors"
# Options that say something of such a model.
UNDERSTOOD = ("opset", "vae", "pixels", "vae_precision", "text", "encoder", "lora", "program", "golden_steps", "force")
OF_FILES = ("heads", "image_size")  # and of one that is a lone file
# Usual sizes, as parts of the side of training: what FLUX.1's users ask for at 1024, and quicker drafts.
USUAL = ((1, 1), (13 / 16, 19 / 16), (7 / 8, 9 / 8), (3 / 4, 21 / 16), (3 / 4, 3 / 4), (1 / 2, 1 / 2), (5 / 4, 5 / 4))


@dataclass(frozen=True)
class _Ready:
    """All that a bundle is written from, read and checked."""

    checkpoint: PromptCheckpoint
    info: ModelInfo
    vae: VaeCheckpoint | None
    pixels: bool  # the model makes pictures itself
    text: Sequence[TextFolder]  # the text encoders; none: prompts come recorded
    programs: tuple[Program, ...]  # what the user gave


def prompt_bundle(
    read: Callable[[Path], PromptCheckpoint],
    source: Path,
    out: Path,
    options: ExportOptions,
    report: Report,
    note: Callable[[str], object],
) -> Manifest:
    """`bundle_from_checkpoint` of a folder whose network takes prompts. read: its family's. Raises as that does."""
    _check_options(options, OF_FILES if is_lone_file(source) else ())
    loras = [read_lora(text) for text in options.lora]
    inputs = [path for path in (source, options.vae, *(lora.path for lora in loras)) if path is not None]
    check_target(out, options.force, inputs)
    report(f"reading {source}")
    checkpoint = read_with(loras, lambda: read(source))
    info = _model_info(checkpoint)
    vae = vae_of(options, info, source)
    pixels = vae is None and works_on_pixels(info, options.pixels, None)
    if options.encoder and vae is None and not pixels:
        raise RequestError("--encoder turns pictures into latents by a VAE: give --vae, too")
    text = text_folders(checkpoint.folder, checkpoint.encoders)
    given = given_programs(options.program, info, checkpoint.process.schedule)
    ready = _Ready(checkpoint, info, vae, pixels, text, given)
    hint = note_on_pictures(info, pixels, options.pixels is not None) if vae is None else None
    for said in (*checkpoint.notes, *(vae.notes if vae is not None else ()), *([hint] if hint else ())):
        note(said)
    with new_bundle(out, options.force, inputs) as folder:
        manifest = _write(ready, folder, out.name, options, report)
        del checkpoint, ready  # a large model's weights: the replay needs their memory
        for result in replay_golden(open_bundle(folder, check_hashes=False, trusted_keys=()), report=report):
            check_replayed(result, result.allowed)
    return manifest


def _check_options(options: ExportOptions, further: Sequence[str]) -> None:
    default = ExportOptions()
    for field in fields(ExportOptions):
        if field.name not in (*UNDERSTOOD, *further) and getattr(options, field.name) != getattr(default, field.name):
            name = "classes" if field.name == "labels" else field.name.replace("_", "-")
            raise RequestError(f"--{name} says nothing of a model that takes prompts: leave it out")


def _model_info(checkpoint: PromptCheckpoint) -> ModelInfo:
    config = checkpoint.config
    return model_info(
        checkpoint,
        architecture=checkpoint.architecture,
        input_size=config.input_size,
        num_classes=0,
        null_class=None,
        guided_channels=config.in_channels,
        timestep_range=checkpoint.process.timestep_range,
        **checkpoint.facts,
    )


def _write(ready: _Ready, folder: Path, name: str, options: ExportOptions, report: Report) -> Manifest:
    checkpoint, info, vae, process = ready.checkpoint, ready.info, ready.vae, ready.checkpoint.process
    model, precision, opset = checkpoint.model(), vae_dtype(options.vae_precision), options.opset
    graphs = write_prompt_graphs(model, info, ready.pixels, folder, opset, report)
    graphs |= write_pictures(vae, info, ready.pixels, folder, precision, opset, report, checkpoint.factor)
    if options.encoder:
        graphs |= image_graphs(vae, info, folder, opset, report, any_size=True)
    flow = _flow(checkpoint, model.interface.multiple)
    steps = golden_steps(info, options.golden_steps)
    programs, default = write_programs(info, process.schedule, process.sampling, folder, steps, flow, ready.programs)
    by_tokens = write_sized_programs(info, flow, default, folder, programs) if flow is not None else {}
    factor = 1 if ready.pixels else vae.decoder.config.factor if vae is not None else checkpoint.factor
    golden = write_golden_prompts(model, info, checkpoint, factor, folder, steps, report)
    sha256, encoders = sha256_of_encoders(ready.text), [use.info for use in checkpoint.encoders]
    written = ready.text if options.text else ()
    if written:
        encoders = _write_encoders(written, process.kind == "true", folder, report, opset, graphs)
    return write_manifest(
        folder,
        requires=[TEXT, *([INSTRUCTION] if any(info.instruction for info in encoders) else [])],
        name=name,
        source_sha256=checkpoint.sha256,
        model=info,
        schedule=process.schedule,
        flow=process.flow,
        labels=[],
        text=TextInfo(
            **encoders[0].model_dump(),
            further=encoders[1:],
            encoder_sha256=sha256,
            empty=EMPTY if written and process.kind == "true" else None,
            multiple=model.interface.multiple,
            largest=checkpoint.largest,
            factor=factor,
            guidance=process.kind,  # type: ignore[arg-type]  # pydantic checks it
        ),
        graphs=graphs,
        programs=programs,
        golden=golden,
        vae=vae_info(vae, precision) if vae is not None else None,
        defaults=DefaultsInfo(program=default, guidance=process.guidance, by_tokens=by_tokens),
    )


def _flow(checkpoint: PromptCheckpoint, multiple: int) -> Flow | None:
    """Which programs of a flow are made, and for which sizes."""
    process, side = checkpoint.process, checkpoint.config.input_size
    if process.flow is None or process.steps is None:
        return None
    sizes = [[max(1, round(part * side / multiple)) for part in parts] for parts in USUAL]
    fitting = [h * w for h, w in sizes if max(h, w) * multiple <= checkpoint.largest]
    return Flow(process.flow, process.steps, (side // multiple) ** 2, sorted(set(fitting)))


def _write_encoders(
    text: Sequence[TextFolder], empty: bool, folder: Path, report: Report, opset: int, graphs: dict[str, GraphInfo]
) -> list[EncoderInfo]:
    """The graphs `text`, `text_2` ... into `graphs` too, the tokenizers, and where it is wanted the recorded prompt of
    no words -> what the manifest says of each."""
    (folder / "text").mkdir()
    infos: list[EncoderInfo] = []
    rows: dict[str, np.ndarray] = {}
    for number, own in enumerate(text, start=1):
        suffix = f"_{number}" if number > 1 else ""
        tokenizer = f"text/tokenizer{suffix}.json"
        write_text(folder / tokenizer, own.tokenizer_json())
        said = {"tokenizer": tokenizer, "pad": own.pad(), "instruction": _instruction(own, folder / tokenizer)}
        info = own.use.info.model_copy(update=said)
        encoder = own.load()
        graphs[f"text{suffix}"] = write_encoder(f"text{suffix}", encoder, info, folder, opset, report)
        infos.append(info)
        rows |= {f"{name}{suffix}": values for name, values in _no_words(encoder, info, folder / tokenizer).items()}
    if empty:
        write_prompt(folder / EMPTY, "", rows, sha256_of_encoders(text))
    return infos


def _instruction(own: TextFolder, tokenizer: Path) -> InstructionInfo | None:
    from tokenizers import Tokenizer

    if own.use.instruction is None:
        return None
    count = len(Tokenizer.from_file(str(tokenizer)).encode(own.use.instruction).ids)
    return InstructionInfo(text=own.use.instruction, tokens=count, whole=own.use.whole)


def _no_words(encoder: torch.nn.Module, info: EncoderInfo, tokenizer: Path) -> dict[str, np.ndarray]:
    """What an encoder makes of no words, in PyTorch: a bundle's own graph says the same within its tolerance."""
    from tokenizers import Tokenizer

    ids = list(Tokenizer.from_file(str(tokenizer)).encode("").ids)
    padded = torch.full((1, info.tokens), info.pad, dtype=torch.int64)
    padded[0, : len(ids)] = torch.tensor(ids)
    mask = (torch.arange(info.tokens) < len(ids)).long()[None]
    with torch.no_grad():
        found = encoder(padded, mask) if info.masked else encoder(padded)
    shapes = info.rows("", len(ids))
    made = zip(shapes.items(), found if isinstance(found, tuple) else (found,), strict=True)
    return {name: np.ascontiguousarray(values[0, : shape[0]].numpy()) for (name, shape), values in made}
