"""What pictures are compared with: real ones in the user's features, or the model's own many-step ones in ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.bundle.open import Bundle
from ...runtime.errors import RequestError
from ...runtime.files import sha256_of_file, written_atomically
from ...runtime.loop.session import Session
from ...runtime.report import Report
from ..quality.features import FeatureExtractor
from ..quality.pictures import picture_graph
from ..quality.real_pictures import reference_features
from .judge import Drawn, Judge, Seen
from .own_features import own_features
from .record import Judged
from .request import FRESH, TuneRequest

MANY_STEPS = 50  # of the model's own samples
OWN = "the model's own samples"
OWN_FILE = "own-samples.npy"  # their features


@dataclass(frozen=True)
class Sight:
    """How pictures are seen. path: of real pictures; None: the model samples its own, `count` of them."""

    see: Callable[[np.ndarray], Seen]
    path: Path | None
    count: int
    extractor: FeatureExtractor | None
    seed: int

    def real(self, bundle: Bundle, report: Report) -> np.ndarray | None:
        """Features [N, F] of the real pictures; None without any. Raises RequestError."""
        if self.extractor is None or self.path is None:
            return None
        shape = bundle.manifest.picture_size(picture_graph(bundle))
        return reference_features(self.path, self.extractor, shape, report)

    def own(
        self, session: Session, judge: Judge, note: Callable[[str], object], folder: Path, study: Any
    ) -> np.ndarray:
        """Features [count, F] of the model's many-step samples, kept in `folder`: the study knows the file's hash, so
        that what another search left is not taken for them. Raises RequestError for overflows.
        """
        program = session.bundle.program(steps=MANY_STEPS)
        name = session.bundle.folder.absolute().name
        note(
            f"no --features and no --reference: distances are to {self.count} samples of {name} itself "
            f"({program.name}), in features of an untrained network. They say what few steps change, not how real "
            "pictures look, and guidance at every step counts as right"
        )
        kept = folder / OWN_FILE
        if kept.is_file() and sha256_of_file(kept) == study.user_attrs.get(OWN_FILE):
            return np.load(kept)  # type: ignore[no-any-return]
        drawn = Drawn()
        if not judge.draw(session, program, self.seed, self.count, drawn):
            raise RequestError(f"{session.bundle.folder}: its own pictures of {program.name} overflowed")
        with written_atomically(kept, is_result=False) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate(drawn.features))
        study.set_user_attr(OWN_FILE, sha256_of_file(kept))
        return np.concatenate(drawn.features)


def seen_by(request: TuneRequest, bundle: Bundle) -> Sight:
    """What the request asks for, tried on a black picture. Raises RequestError."""
    rungs = request.images
    seed = request.seed + FRESH + rungs[1]
    if request.features is None:
        return Sight(lambda images: (None, own_features(images)), None, 2 * rungs[1], None, seed)
    extractor = FeatureExtractor(request.features, request.options)
    shape = bundle.manifest.picture_size(picture_graph(bundle))
    extractor.check_classes(shape, bundle.manifest.model.num_classes)
    return Sight(extractor, request.reference, 0, extractor, seed)


def judged_by(request: TuneRequest, judge: Judge) -> Judged:
    """For the record."""
    return Judged(
        features=None if request.features is None else request.features.name,
        features_sha256=None if request.features is None else sha256_of_file(request.features),
        dimensions=judge.reference.shape[1],
        reference=OWN if request.reference is None else request.reference.name,
        reference_count=len(judge.reference),
    )
