"""What the images are of that a bundle is measured on: its classes; or prompts, of a file or what stands in for one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..runtime.bundle.open import Bundle
from ..runtime.bundle.sizes import text_of
from ..runtime.errors import RequestError
from ..runtime.loop.loop import StepEvent
from ..runtime.loop.noise import NoiseSource
from ..runtime.loop.prompts import Prompt, empty_prompt, prompt_of_rows
from ..runtime.loop.session import Session
from ..runtime.loop.subjects import any_subject, told_besides
from ..runtime.loop.tables import StepTables, step_tables
from ..runtime.loop.verify import golden_prompts
from ..runtime.options import option
from ..runtime.pictures.words import prompt_lines, words
from ..runtime.report import Report, silent
from ..runtime.samplers.program import Program

Subject = int | Prompt
PROMPTS = option(
    "--prompts", help="Of a model that takes prompts: a file with one a line to measure on. [default: some of ours]"
)
CAPTIONS = (
    "a red fox in the snow",
    "portrait of an old fisherman with a grey beard, soft light",
    "a small wooden house by a lake at sunset, mountains behind it, reflections in the water",
    "two cups of coffee and a croissant on a marble table, seen from above",
    "watercolour painting of a city street in the rain, people with umbrellas, yellow street lamps and wet asphalt",
    "an astronaut riding a horse",
    'a shop window with a neon sign that says "open"',
    "close-up of a green leaf with drops of dew",
)
GIVE = "give --prompts FILE with some that the model will be asked"
CAPTIONED = f"no prompts given: {len(CAPTIONS)} captions of ours and no words stand in for them; {GIVE}"
RECORDED = (
    "no prompts given, and no text encoder: those of the golden trajectories, which are random rows, stand in for them"
)


@dataclass(frozen=True)
class Pool:
    """of: every class, or some prompts. away_from: what prompts are guided away from; None: the null class.

    size: height and width of the pictures of prompts, in pixels: that of training.
    """

    of: tuple[Subject, ...]
    away_from: Prompt | None = None
    size: tuple[int, int] = (0, 0)

    def cycled(self, first: int, count: int) -> list[Subject]:
        """`count` of them from number `first` on, over and over."""
        return [self.of[i % len(self.of)] for i in range(first, first + count)]

    def spread(self, count: int) -> list[Subject]:
        """`count` of them, evenly spread, or over and over where there are enough images."""
        return [self.of[i] for i in spread(count, len(self.of))]

    def tables(self, bundle: Bundle, program: Program, subjects: Sequence[Subject], guidance: float) -> StepTables:
        """Of a batch of images of these subjects."""
        others = None if self.away_from is None else [self.away_from] * len(subjects)
        guidance, besides = told_besides(bundle, guidance, self.size)
        return step_tables(program, bundle.manifest.model, subjects, guidance, others, besides)

    def latents(
        self,
        session: Session,
        program: Program,
        subjects: Sequence[Subject],
        guidance: float,
        noise: NoiseSource,
        on_step: Callable[[StepEvent], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> np.ndarray:
        """The final latents [B, C, H, W] of a batch of images of these subjects."""
        others = None if self.away_from is None else [self.away_from] * len(subjects)
        return session.latents(program, subjects, guidance, noise, on_step, cancel, others, self.size)

    def with_recorded(self, bundle: Bundle) -> Pool:
        """Those of the golden trajectories, and what all are guided away from, besides: whatever else must not fail."""
        if self.away_from is None:
            return self
        here = any(bundle.has(golden.file) for golden in bundle.manifest.golden)
        of, others = golden_prompts(bundle) if here else ([], self.away_from)
        return replace(self, of=tuple(dict.fromkeys((*self.of, *of, others, self.away_from))))

    def told(self) -> list[str]:
        """What the images are made of, for a fingerprint: nothing where they are of classes."""
        return [subject.key for subject in (*self.of, self.away_from) if isinstance(subject, Prompt)]


def spread(count: int, kinds: int) -> list[int]:
    """`count` numbers below `kinds`, evenly spread, or cycling through them when there are enough."""
    return [i * kinds // count if count < kinds else i % kinds for i in range(count)]


def pool_of(bundle: Bundle, prompts: Path | None = None, report: Report = silent, *, encode: bool = True) -> Pool:
    """prompts: a file with one a line, for the bundle's own text encoder; the report says what stands in for it.

    encode: texts become rows now, so that whoever samples them loads no text encoder.
    Raises RequestError for prompts that a model of classes is given, or that cannot be encoded; BundleError.
    """
    check_prompts(bundle, prompts)
    if bundle.manifest.text is None:
        return Pool(tuple(range(bundle.manifest.model.num_classes)))
    side = bundle.manifest.model.input_size * text_of(bundle).factor
    away = empty_prompt(bundle)
    if prompts is not None or "text" in bundle.manifest.graphs:
        if prompts is None:
            report(CAPTIONED)
        texts = [*CAPTIONS, ""] if prompts is None else prompt_lines(prompts)
        of = words(bundle, list(dict.fromkeys(texts)), report)
        of = _encoded(bundle, of) if encode else of
    else:
        report(RECORDED)
        of, others = golden_prompts(bundle)
        of, away = [*of, *([away] if away is not None else ())], away or others
    if away is None:
        [away] = words(bundle, [""], report, negative=True)
    return Pool(tuple(of), away, (side, side))


def any_pool(bundle: Bundle) -> Pool:
    """Where only the work counts: every class, or one prompt of nothing; no text encoder is asked."""
    if bundle.manifest.text is None:
        return pool_of(bundle)
    subject, away_from, size = any_subject(bundle)
    return Pool((subject,), away_from, size)


def check_prompts(bundle: Bundle, prompts: Path | None) -> None:
    """Raises RequestError, before any work, for prompts that a model of classes is given."""
    if bundle.manifest.text is None and prompts is not None:
        raise RequestError(f"{bundle.folder} takes classes: leave --prompts {prompts} out")


def _encoded(bundle: Bundle, prompts: Sequence[Prompt]) -> list[Prompt]:
    with Session(bundle) as session:
        return [prompt_of_rows(session.encode(prompt), prompt.text) for prompt in prompts]


def subject_name(bundle: Bundle, subject: Subject, number: int) -> str:
    """For people: a class's name, a prompt's text. number: of the subject, for a recorded prompt of unknown words."""
    if not isinstance(subject, Prompt):
        return bundle.label_name(subject)
    return f"recorded prompt {number + 1}" if subject.text is None else subject.text or "(no words)"
