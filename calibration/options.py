"""What `convert`, `quantize` and `compare` can be told, each option once. Imported for their help, so no onnx is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..runtime.bundle.open import Bundle
from ..runtime.errors import RequestError
from ..runtime.options import BUNDLE_OUT, FORCE, IMAGES, SIZE, option
from ..runtime.sets.request import RayOptions
from .formats import formats_of, summary
from .pool import PROMPTS
from .quality.gate import Gate
from .quality.request import CompareRequest

SAMPLES = (1, 100_000)
ENCODERS = ("fp32", "int8", "int4")
FORMS = ("onnxruntime", "tensorrt")  # whose operators a quantised graph is written in


@dataclass(frozen=True)
class ConvertOptions:
    """What a user may decide about a 16-bit bundle. None: what suits the precision."""

    precision: str | None = field(  # None: as it is
        default=None,
        metadata=option("--precision", help=summary("convert"), choices=formats_of("convert")),
    )
    max_error: float | None = field(
        default=None,
        metadata=option(
            "--max-error", help="Of a recorded trajectory at any step, relative. [default: 0.02; bf16: 0.1]"
        ),
    )
    decoder: bool = field(
        default=True,
        metadata=option("--decoder/--no-decoder", help="A VAE's decoder, too, in float16. [default: yes]"),
    )
    prompts: Path | None = field(default=None, metadata=PROMPTS)
    text_encoder: bool = field(
        default=True,
        metadata=option("--text-encoder/--no-text-encoder", help="A text encoder, too, in 16 bit. [default: yes]"),
    )
    without_text: bool = field(
        default=False,
        metadata=option(
            "--without-text", help="Leave the text encoder out: prompts come recorded. Alone: all else stays as it is."
        ),
    )
    force: bool = field(default=False, metadata=FORCE)

    @property
    def done(self) -> str:
        """In words, once it is."""
        half = [f"{self.precision}, checked"] if self.precision is not None else []
        return ", ".join([*half, *(["without a text encoder"] if self.without_text else [])])


@dataclass(frozen=True)
class QuantizeOptions:
    """What a user may decide about a quantised bundle. None: what suits the precision and the form."""

    precision: str = field(
        default="int8", metadata=option("--precision", help=summary("quantize"), choices=formats_of("quantize"))
    )
    form: str = field(
        default="onnxruntime",
        metadata=option(
            "--form", help="Whose kernels the graph is written for; OpenVINO's are tensorrt.", choices=FORMS
        ),
    )
    arch: str | None = field(
        default=None,
        metadata=option(
            "--arch", help="GPU architecture that it is for, such as sm86: refused when it lacks the arithmetic."
        ),
    )
    smoothing: float | None = field(
        default=None,
        metadata=option("--smoothing", help="SmoothQuant's alpha, 0 is off. [default: 0.5 for static int8, else off]"),
    )
    protect: bool = field(
        default=True,
        metadata=option(
            "--protect/--no-protect",
            help="Leave the first and the last linear layer, of latents, in float32. [default: yes]",
        ),
    )
    decoder: bool = field(
        default=True,
        metadata=option(
            "--decoder/--no-decoder",
            help="A VAE's decoder, too: int8 arithmetic for ONNX Runtime, else int8 weights on disk. [default: yes]",
        ),
    )
    naive: bool = field(
        default=False,
        metadata=option("--naive", help="Static int8, one scale per tensor, nothing smoothed or protected."),
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata=option("--keep-layer", help="Leave it in float32: blocks.0.mlp.fc2, blocks.0, fc2."),
    )
    keep_count: int | None = field(
        default=None,
        metadata=option("--keep", help="Rank layers; leave the N best in float32.", range=(0, SIZE[1])),
    )
    budget: str | None = field(
        default=None,
        metadata=option(
            "--budget", help="drift=X: leave as few layers in float32 as hold the latents' relative drift below X."
        ),
    )
    program: str | None = field(
        default=None,
        metadata=option("--program", help="Calibrate on this ready program of the bundle. [default: the bundle's]"),
    )
    sampler: str | None = field(
        default=None, metadata=option("--sampler", help="... or on this sampler, as for `run`.")
    )
    steps: int | None = field(default=None, metadata=option("--steps", help="... with so many steps."))
    samples: int | None = field(
        default=None,
        metadata=option("--samples", help="Images of the calibration set. [default: 32; large DiTs: 4]", range=SAMPLES),
    )
    statistics: Path | None = field(
        default=None,
        metadata=option("--statistics", help="File for the statistics. [default: one in the user's cache]"),
    )
    prompts: Path | None = field(default=None, metadata=PROMPTS)
    text_encoder: str = field(
        default="fp32",
        metadata=option(
            "--text-encoder", help="Weights of a text encoder: in int4 blocks, or int8 at rest.", choices=ENCODERS
        ),
    )
    text_encoder_alone: bool = field(
        default=False,
        metadata=option("--text-encoder-alone", help="Nothing but the text encoder's weights, by --text-encoder."),
    )
    quality: CompareRequest | None = None  # what is sampled for the report in the bundle; None: no report
    gate: Gate = Gate()  # limits that the report must keep
    force: bool = field(default=False, metadata=FORCE)

    @property
    def drift_budget(self) -> float | None:
        """ "drift=0.02" -> 0.02. Raises RequestError."""
        if self.budget is None:
            return None
        name, _, value = self.budget.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if name.strip() != "drift" or not 0 < number < 1:
            raise RequestError(f"--budget {self.budget}: write drift=X with X between 0 and 1, such as drift=0.02")
        return number


@dataclass(frozen=True)
class ConvertRequest:
    """`convert`: a bundle, and what it becomes."""

    engine: Path = field(metadata=option("--engine", help="A float32 bundle, or a quantised one."))
    out: Path = field(metadata=BUNDLE_OUT)
    options: ConvertOptions


@dataclass(frozen=True)
class QuantizeRequest:
    """`quantize`: a bundle, what it becomes, and the pictures that say what that costs."""

    engine: Path = field(metadata=option("--engine", help="The float32 bundle to quantise."))
    out: Path = field(metadata=BUNDLE_OUT)
    options: QuantizeOptions
    count: int | None = field(
        default=None,
        metadata=option(
            "--count",
            help="Images of the quality report in the bundle; 0: none. [default: 32; large DiTs: 2]",
            range=(0, IMAGES[1]),
        ),
    )
    features: Path | None = field(
        default=None, metadata=option("--features", help="Feature extractor for the report, as in `compare`.")
    )
    reference: Path | None = field(
        default=None, metadata=option("--reference", help="Real pictures for the report, as in `compare`.")
    )

    sample_set: Path | None = field(
        default=None,
        metadata=option("--sample-set", help="Float pictures for the report, as in `compare`."),
    )
    ray: RayOptions = RayOptions()

    def with_report(self, bundle: Bundle) -> QuantizeOptions:
        """The options with the comparison that the report is made of; none with --count 0."""
        quality = CompareRequest(
            count=report_images(bundle) if self.count is None else self.count,
            sampler=self.options.sampler,
            steps=self.options.steps,
            features=self.features,
            reference=self.reference,
            sample_set=self.sample_set,
            ray=self.ray,
            speed_rounds=CompareRequest.speed_rounds if self._is_timed else 0,
        )
        return replace(self.options, quality=quality if quality.count else None)

    @property
    def _is_timed(self) -> bool:
        """TensorRT's form is a simulation on the CPU, and without the network's weights a step is the same."""
        return self.options.form == "onnxruntime" and not self.options.text_encoder_alone


@dataclass(frozen=True)
class CompareCommand:
    """`compare`: two bundles, how they are compared, and what B must keep."""

    engine: Path = field(metadata=option("--engine", help="Bundle A, the reference: a folder, or a file inside one."))
    against: Path = field(metadata=option("--against", help="Bundle B, which is judged; may be A with --provider-b."))
    request: CompareRequest = CompareRequest()
    gate: Gate = Gate()
    out: Path | None = field(
        default=None,
        metadata=option("-o", "--out", help="Folder for quality.json and report.html (the pictures are inside)."),
    )


def report_images(bundle: Bundle) -> int:
    """How many images the quality report samples when nobody says."""
    return 2 if bundle.manifest.model.is_large else 32
