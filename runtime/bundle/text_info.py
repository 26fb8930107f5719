"""What a manifest says of a model that takes prompts: its text encoders, its sizes, its kind of guidance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..fields import LARGEST, Count, Sha256, Strict

MAX_SIDE = 1 << 16
MAX_TOKENS, MAX_TEXT_WIDTH = 1 << 12, 1 << 16  # of a prompt; numbers of a row of the text encoder's
MAX_ENCODERS = 4
MAX_INSTRUCTION = 1 << 16  # characters
SCALARS = ("height", "width", "guidance")  # numbers that a conditioner may be told beside timestep and vector

Width = Annotated[int, Field(ge=1, le=MAX_TEXT_WIDTH)]


class InstructionInfo(Strict):
    """Words that stand before those of a prompt, of which the encoder is to make more than they say (Sana).

    What is guided away from has none. The words after it are in lower case, without outer spaces. Of the rows that the
    encoder makes, the first is read, and those from the instruction's last token on. whole (Lumina 2): the words are
    as they are, and all rows are read.
    """

    text: Annotated[str, Field(min_length=1, max_length=MAX_INSTRUCTION)]
    tokens: Annotated[int, Field(ge=2, le=MAX_TOKENS)]  # of it alone, as the tokenizer has it
    whole: bool = False

    @property
    def left_out(self) -> int:
        """Rows after the first that are not read."""
        return 0 if self.whole else self.tokens - 2


class EncoderInfo(Strict):
    """One text encoder: how its prompts are padded, and what the graph `context` reads of what it says."""

    tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]  # prompts are padded to it, longer ones are cut
    width: Width | None  # Dh: of `hidden`, a row a token; None: it is not read
    pooled: Width | None = None  # Dp: of `pooled`, one row a prompt; None: it is not read
    pad: Annotated[int, Field(ge=0, le=LARGEST)] = 0  # token that fills up
    masked: bool = True  # False: the encoder reads padding as it reads words, and a recorded prompt has its rows
    tokenizer: str | None = None  # file; None, or no graph `text`: prompts come recorded
    instruction: InstructionInfo | None = None

    def most(self, negative: bool) -> int:
        """Tokens of a prompt at most, the instruction's included. negative: of what is guided away from."""
        return self.tokens + (self.instruction.left_out if self.instruction is not None and not negative else 0)

    def rows(self, suffix: str, tokens: int | None) -> dict[str, tuple[int, ...]]:
        """By the name that `context` reads it by: the shape of what is known of one prompt of so many tokens.

        suffix: "", "_2", ...; tokens: None is as many as there can be.
        """
        count = self.tokens if tokens is None or not self.masked else tokens
        hidden = {f"hidden{suffix}": (count, self.width)} if self.width is not None else {}
        return hidden | ({f"pooled{suffix}": (self.pooled,)} if self.pooled is not None else {})


class TextInfo(EncoderInfo):
    """A model that takes prompts instead of classes, and latents of several sizes; and the first text encoder."""

    encoder_sha256: Sha256 | None  # weights of the text encoders: recorded prompts are of the same; None: not known
    empty: str | None = None  # file: the recorded prompt of no words, which guidance leads away from
    multiple: Count  # H and W of latents are multiples of it
    largest: Annotated[int, Field(ge=1, le=MAX_SIDE)]  # H and W at most
    factor: Annotated[int, Field(ge=1, le=1024)]  # pixels of a picture per pixel of a latent, along a side
    # true: classifier-free, two evaluations; embedded: a number that the network is told; none: it has no guidance
    guidance: Literal["true", "embedded", "none"] = "true"
    further: Annotated[list[EncoderInfo], Field(max_length=MAX_ENCODERS - 1)] = []  # text encoders after the first

    @property
    def encoders(self) -> dict[str, EncoderInfo]:
        """By the suffix of their graph's name and of what they make: "", "_2", "_3" ..."""
        return {"": self} | {f"_{number}": info for number, info in enumerate(self.further, start=2)}

    @property
    def files(self) -> list[str]:
        tokenizers = [info.tokenizer for info in self.encoders.values()]
        return [file for file in (*tokenizers, self.empty) if file is not None]

    def rows(self, suffix: str = "", tokens: int | None = None) -> dict[str, tuple[int, ...]]:
        return super().rows(suffix, tokens)

    def patches(self, latent: tuple[int, int]) -> int:
        """Image tokens of a latent of H x W."""
        return (latent[0] // self.multiple) * (latent[1] // self.multiple)


ABSENT = ("pooled", "masked", "instruction")  # of an encoder, where they are as usual


def unsaid(text: TextInfo) -> dict[str, Any]:
    """Fields to leave out of the JSON, as pydantic's `exclude` wants them: what a family does not have is absent."""
    own = _unsaid(text, ABSENT) | {name: True for name in ("guidance", "further") if _default(text, name)}
    if text.further:
        own["further"] = {i: _unsaid(info, ABSENT) for i, info in enumerate(text.further)}
    return own


def _unsaid(info: EncoderInfo, names: tuple[str, ...]) -> dict[str, Any]:
    own: dict[str, Any] = {name: True for name in names if _default(info, name)}
    return own | ({"instruction": {"whole"}} if info.instruction is not None and not info.instruction.whole else {})


def _default(info: EncoderInfo, name: str) -> bool:
    return bool(getattr(info, name) == type(info).model_fields[name].default)
