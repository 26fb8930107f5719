"""`compare`: the same seeds, and classes or prompts, through two bundles, and what differs. Without torch.

A is the reference, B what is judged: a quantised bundle, another export, or the same bundle on another provider
(`options_b`). What is measured is in METRICS. Batches are streamed: memory holds two trajectories [N, batch, C, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditedge import __version__

from ...runtime.bundle.open import Bundle, open_bundle
from ...runtime.loop.engine import EngineOptions
from ...runtime.report import Report, silent
from ...runtime.samplers.process import check_process
from ..pool import Pool, pool_of, subject_name
from .comparable import check_comparable
from .gate import Gate, check_gate
from .metric import Comparing
from .metrics import METRICS
from .pairs import batches_of, samples_of_a
from .record import MEASURED, Contender, GateResult, Quality, Settings
from .request import CompareRequest


@dataclass(frozen=True)
class Comparison:
    """What was measured, and the first pictures of both, uint8 [n, h, w, 1 or 3]; none without decoders."""

    quality: Quality
    labels: list[str]  # of the pictures
    images_a: np.ndarray | None
    images_b: np.ndarray | None

    def with_gate(self, gate: Gate) -> tuple[Comparison, list[GateResult]]:
        """The comparison with the gate's verdicts in its report, and those limits that B does not keep."""
        results = check_gate(self.quality, gate)
        quality = self.quality.model_copy(update={"gates": results})
        return replace(self, quality=quality), [result for result in results if not result.passed]


def compare_bundles(
    a: Path | Bundle, b: Path | Bundle, request: CompareRequest | None = None, report: Report = silent
) -> Comparison:
    """Samples the same images from both and measures what B costs and saves.

    The program is A's (its default, or made from sampler and steps), and B runs the same table. Chance is measured
    beside it: A again with the next `count` seeds, or with a batch of them when there are no features.
    Raises RequestError (bundles that cannot be compared, files that do not fit), BundleError, EngineError.
    """
    request = request or CompareRequest()
    a, b = (bundle if isinstance(bundle, Bundle) else open_bundle(bundle) for bundle in (a, b))
    check_comparable(a, b, request)
    program = a.program(sampler=request.sampler, steps=request.steps)
    check_process(program.name, program.process, b.process, f"{a.folder} and {b.folder} cannot be compared")
    guidance = a.manifest.defaults.guidance if request.guidance is None else request.guidance
    pool = _pool(a, b, request, report)
    comparing = Comparing(a, b, request, program, guidance, report, pool, samples_of_a(a, request))
    measures = [measure for metric in METRICS.values() if (measure := metric.start(comparing)) is not None]
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches_of(comparing):
        for measure in measures:
            measure.add(batch)
        have = sum(len(pictures) for pictures, _ in shown)
        if batch.pictures_a is not None and batch.pictures_b is not None and have < request.pictures:
            left = request.pictures - have
            shown.append((batch.pictures_a[:left], batch.pictures_b[:left]))
    fields: dict[str, Any] = dict.fromkeys(MEASURED)
    for measure in measures:
        fields |= measure.fields()
    subjects = [subject_name(a, subject, i) for i, subject in enumerate(comparing.pool.of[: request.count])]
    quality = Quality(
        made_by=f"ditedge {__version__}",
        a=_contender(a, request.options_a),
        b=_contender(b, request.options_b),
        settings=Settings(
            count=request.count,
            seed=request.seed,
            batch=request.batch,
            program=program.name,
            steps=program.steps,
            guidance=guidance,
            prompts=subjects if a.manifest.text is not None else [],
            sample_set=request.sample_set.absolute().name if request.sample_set is not None else None,
        ),
        **fields,
    )
    labels = [subjects[i % len(subjects)] for i in range(min(request.pictures, request.count))]
    images_a, images_b = (np.concatenate(images) for images in zip(*shown, strict=True)) if shown else (None, None)
    return Comparison(quality, labels, images_a, images_b)


def _pool(a: Bundle, b: Bundle, request: CompareRequest, report: Report) -> Pool:
    """What the images are of. Prompts are rows of A's text encoder, or of B's where A has none; they are tokens, which
    each side encodes for itself, where both have one and it is not the same file."""
    files = [
        [bundle.manifest.files[info.file] for name, info in bundle.manifest.graphs.items() if name.startswith("text")]
        for bundle in (a, b)
    ]
    source = a if files[0] or not files[1] else b
    return pool_of(source, request.prompts, report, encode=not all(files) or files[0] == files[1])


def _contender(bundle: Bundle, options: EngineOptions) -> Contender:
    files: dict[str, Any] = dict(bundle.manifest.files)
    tables = {*bundle.manifest.programs.values(), *(golden.file for golden in bundle.manifest.golden)}
    return Contender(
        name=bundle.folder.absolute().name,
        manifest_sha256=bundle.sha256,
        provider=options.provider,
        threads=options.threads,
        bytes=sum(info.bytes for info in files.values()),
        graph_bytes=sum(info.bytes for name, info in files.items() if name not in tables),
    )
