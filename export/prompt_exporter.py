"""A model that takes prompts, and its pipeline, to a bundle: the same order of work as `exporter.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runtime.bundle.graph_contract import GraphInfo
from ..runtime.bundle.manifest import TEXT, DefaultsInfo, Manifest, ModelInfo, TextInfo
from ..runtime.bundle.open import open_bundle
from ..runtime.bundle.writing import check_target, new_bundle
from ..runtime.errors import RequestError
from ..runtime.files import write_text
from ..runtime.loop.prompts import Prompt, write_prompt
from ..runtime.loop.verify import check_replayed, replay_golden
from ..runtime.report import Report
from .graphs.write_text import write_encoder, write_prompt_graphs
from .manifests import model_info, write_manifest
from .options import ExportOptions, vae_dtype
from .pictures import note_on_pictures, read_fitting_vae, vae_info, write_pictures
from .sources.pixart_folder import PixArtCheckpoint, read_pixart
from .sources.places import vae_folder
from .sources.shapes import LATENT_FACTOR
from .sources.text_folder import TextFolder, text_folder
from .sources.vae_checkpoint import VaeCheckpoint
from .truth.golden_prompts import write_golden_prompts
from .truth.programs import write_programs

GUIDANCE = 4.5  # of PixArt's pipelines
LARGEST = 2  # times the side of training: positions are interpolated, quality beyond is nobody's promise
TOKENIZER, EMPTY = "text/tokenizer.json", "text/empty.safetensors"
UNDERSTOOD = ("opset", "vae", "vae_precision", "text", "force")  # options that say something of such a model


def prompt_bundle(
    source: Path, out: Path, options: ExportOptions, report: Report, note: Callable[[str], object]
) -> Manifest:
    """`bundle_from_checkpoint` of a folder whose network takes prompts. Raises as that does."""
    _check_options(options)
    inputs = [path for path in (source, options.vae) if path is not None]
    check_target(out, options.force, inputs)
    report(f"reading {source}")
    checkpoint = read_pixart(source)
    info, vae_path = _model_info(checkpoint), options.vae or vae_folder(checkpoint.folder)
    vae = read_fitting_vae(vae_path, info) if vae_path is not None else None
    text = text_folder(checkpoint.folder)
    hint = note_on_pictures(info, False, False) if vae is None else None
    for said in (*checkpoint.notes, *(vae.notes if vae is not None else ()), *([hint] if hint else ())):
        note(said)
    with new_bundle(out, options.force, inputs) as folder:
        manifest = _write(checkpoint, info, vae, text, folder, out.name, options, report)
        del checkpoint
        for result in replay_golden(open_bundle(folder, check_hashes=False, trusted_keys=()), report=report):
            check_replayed(result, result.allowed)
    return manifest


def _check_options(options: ExportOptions) -> None:
    default = ExportOptions()
    for field in fields(ExportOptions):
        if field.name not in UNDERSTOOD and getattr(options, field.name) != getattr(default, field.name):
            name = "classes" if field.name == "labels" else field.name.replace("_", "-")
            raise RequestError(f"--{name} says nothing of a model that takes prompts: leave it out")


def _model_info(checkpoint: PixArtCheckpoint) -> ModelInfo:
    config = checkpoint.config
    return model_info(
        checkpoint,
        architecture="pixart",
        input_size=config.sample_size,
        num_classes=0,
        null_class=None,
        guided_channels=config.in_channels,
        timestep_range=(float(checkpoint.schedule.steps - 1), 0.0),
        mlp_norm_eps=config.norm_eps,
    )


def _write(
    checkpoint: PixArtCheckpoint,
    info: ModelInfo,
    vae: VaeCheckpoint | None,
    text: TextFolder | None,
    folder: Path,
    name: str,
    options: ExportOptions,
    report: Report,
) -> Manifest:
    model, precision, opset = checkpoint.model(), vae_dtype(options.vae_precision), options.opset
    graphs = write_prompt_graphs(model, info, folder, opset, report)
    graphs |= write_pictures(vae, info, False, folder, precision, opset, report, any_size=True)
    programs, default = write_programs(info, checkpoint.schedule, {}, folder)
    golden = write_golden_prompts(model, info, checkpoint.schedule, folder, report)
    written = _write_encoder(text, checkpoint, folder, opset, report) if text and options.text else {}
    written_graphs: dict[str, GraphInfo] = written.pop("graphs", {})
    return write_manifest(
        folder,
        requires=[TEXT],
        name=name,
        source_sha256=checkpoint.sha256,
        model=info,
        schedule=checkpoint.schedule,
        labels=[],
        text=TextInfo(
            tokens=checkpoint.config.tokens,
            width=checkpoint.config.caption_channels,
            encoder_sha256=text.sha256 if text is not None else None,
            multiple=info.patch_size,
            largest=LARGEST * info.input_size,
            factor=vae.decoder.config.factor if vae is not None else LATENT_FACTOR,
            **written,
        ),
        graphs=graphs | written_graphs,
        programs=programs,
        golden=golden,
        vae=vae_info(vae, precision) if vae is not None else None,
        defaults=DefaultsInfo(program=default, guidance=GUIDANCE),
    )


def _write_encoder(
    text: TextFolder, checkpoint: PixArtCheckpoint, folder: Path, opset: int, report: Report
) -> dict[str, Any]:
    """The graph `text`, the tokenizer and the recorded prompt of no words -> the fields of TextInfo, and `graphs`."""
    (folder / "text").mkdir()
    write_text(folder / TOKENIZER, text.tokenizer_json())
    encoder, config, pad = text.load(), checkpoint.config, text.pad()
    graph = write_encoder(encoder, config.caption_channels, folder, opset, report)
    ids = _no_words(folder / TOKENIZER)
    padded = torch.full((1, config.tokens), pad, dtype=torch.int64)
    padded[0, : len(ids)] = torch.tensor(ids)
    with torch.no_grad():
        hidden = encoder(padded, (torch.arange(config.tokens) < len(ids)).long()[None])[0, : len(ids)]
    rows = np.ascontiguousarray(hidden.numpy())
    write_prompt(folder / EMPTY, Prompt("", "", tuple(ids)), rows, text.sha256)
    return {"graphs": {"text": graph}, "tokenizer": TOKENIZER, "empty": EMPTY, "pad": pad}


def _no_words(tokenizer: Path) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(tokenizer)).encode("").ids)
