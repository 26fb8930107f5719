"""Captions of one garment, or of two side by side: the small language of the text demo.

Words and sentences of `HELD_OUT` are never in a caption that the model is trained with; they ask, afterwards, whether
it understood the text or learned the words by heart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

BACKGROUND = 16  # pixels above it show something


@dataclass(frozen=True)
class Garment:
    """label: number in `fashion_mnist.CLASSES`. brightness: "dark", "bright" or None, which is any."""

    label: int
    brightness: str | None = None


@dataclass(frozen=True)
class Caption:
    """text: what it says of garments, from left to right."""

    text: str
    garments: tuple[Garment, ...]


@dataclass(frozen=True)
class Language:
    """nouns[label], words[brightness], sentences with {} for a garment and its article, {left} and {right} for two."""

    nouns: tuple[tuple[str, ...], ...]
    words: dict[str, tuple[str, ...]]
    one: tuple[str, ...]
    two: tuple[str, ...]
    told_brightness: float = 0.4  # share of garments whose brightness is said


PLURAL = ("trousers", "pants", "jeans", "slacks", "leggings", "chinos")  # these have no article
TRAINED = Language(
    nouns=(
        ("t-shirt", "tee", "T-shirt", "top", "short-sleeved top", "cotton t-shirt", "t-shirt with short sleeves",
         "casual tee", "undershirt", "crew neck t-shirt", "printed t-shirt", "short-sleeved t-shirt"),
        ("pair of trousers", "trousers", "pants", "pair of jeans", "jeans", "slacks", "pair of slacks", "long trousers",
         "leggings", "chinos", "trousers with long legs", "pair of long trousers"),
        ("pullover", "sweater", "jumper", "knitted sweater", "sweatshirt", "wool sweater", "long-sleeved pullover",
         "warm pullover", "knitted jumper", "pullover with long sleeves", "sweater without buttons", "jersey"),
        ("dress", "gown", "summer dress", "sleeveless dress", "frock", "woman's dress", "party dress", "cocktail dress",
         "long gown", "dress for a party", "elegant dress", "narrow dress"),
        ("coat", "overcoat", "jacket", "winter coat", "long coat", "coat with a zipper", "woollen coat", "warm coat",
         "buttoned coat", "raincoat", "winter jacket", "trench coat"),
        ("sandal", "open sandal", "strappy sandal", "flip-flop", "high-heeled sandal", "leather sandal", "beach sandal",
         "sandal with straps", "slipper", "open shoe", "sandal for the summer", "shoe with straps"),
        ("shirt", "button-up shirt", "dress shirt", "blouse", "long-sleeved shirt", "buttoned shirt", "formal shirt",
         "shirt with long sleeves", "collared shirt", "business shirt", "plain shirt", "checked shirt"),
        ("sneaker", "trainer", "running shoe", "sports shoe", "gym shoe", "sneaker for running", "training shoe",
         "canvas shoe", "basketball shoe", "shoe for sports", "low sneaker", "jogging shoe"),
        ("bag", "handbag", "purse", "tote bag", "shoulder bag", "leather bag", "bag with handles", "shopping bag",
         "leather handbag", "clutch", "satchel", "bag with a strap"),
        ("ankle boot", "boot", "short boot", "leather boot", "bootie", "heeled boot", "boot with a heel", "high boot",
         "leather ankle boot", "chelsea boot", "walking boot", "boot that covers the ankle"),
    ),
    words={"dark": ("dark", "black", "dark gray", "very dark"), "bright": ("bright", "white", "light", "pale")},
    one=("{}", "a photo of {}", "a picture of {}", "this is {}", "{} alone", "there is {}"),
    two=("{left} on the left of {right}", "{left} to the left of {right}", "{left} left of {right}",
         "{left} and {right}", "{left} beside {right}", "{left} next to {right}",
         "{left} to the left, {right} to the right",
         "{left} on the left and {right} on the right", "left: {left}, right: {right}",
         "{left} on the left, {right} on the right", "on the left {left}, on the right {right}",
         "{right} on the right of {left}", "{right} to the right of {left}", "{left} with {right} on its right",
         "{left}, to its right {right}", "{left}, and on its right {right}", "{left} followed by {right}",
         "{right} with {left} on its left", "{right}, to its left {left}", "{right}, and on its left {left}",
         "first {left}, then {right}", "from left to right: {left}, {right}"),
)  # fmt: skip
HELD_OUT = Language(
    nouns=(
        ("short-sleeved tee", "summer top with short sleeves", "tee shirt"),
        ("pair of pants", "long pants", "trousers for the office"),
        ("woolly jumper", "knit pullover", "warm sweater"),
        ("evening gown", "ladies' dress", "dress for the evening"),
        ("coat for the winter", "long jacket", "coat with buttons"),
        ("summer sandal", "sandal for the beach", "open-toed sandal"),
        ("shirt with buttons", "shirt for the office", "shirt with a collar"),
        ("shoe for running", "athletic shoe", "tennis shoe"),
        ("lady's purse", "carrier bag", "bag to carry things"),
        ("boot for ankles", "ankle-high boot", "leather boot with a heel"),
    ),
    words={"dark": ("nearly black", "darkish"), "bright": ("brightly coloured", "whitish")},
    one=("a drawing of {}", "here is {}"),
    two=("left is {left} and right is {right}", "{left}, then {right} on its right",
         "two things: {left} at the left, {right} at the right"),
)  # fmt: skip


def caption(language: Language, random_: random.Random, garments: int) -> Caption:
    """A random caption of one garment or of two."""
    chosen = []
    for _ in range(garments):
        brightness = random_.choice(("dark", "bright")) if random_.random() < language.told_brightness else None
        chosen.append(Garment(random_.randrange(len(language.nouns)), brightness))
    return caption_of(language, random_, tuple(chosen))


def caption_of(language: Language, random_: random.Random, garments: tuple[Garment, ...]) -> Caption:
    """A random wording for these garments, one or two."""
    said = [_said(language, random_, garment) for garment in garments]
    if len(said) == 1:
        return Caption(random_.choice(language.one).format(said[0]), garments)
    return Caption(random_.choice(language.two).format(left=said[0], right=said[1]), garments)


def _said(language: Language, random_: random.Random, garment: Garment) -> str:
    noun = random_.choice(language.nouns[garment.label])
    words = noun if garment.brightness is None else f"{random_.choice(language.words[garment.brightness])} {noun}"
    if noun.split(" for ")[0].split(" with ")[0].endswith(PLURAL) and not noun.startswith("pair"):
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def brightness_of(images: np.ndarray) -> np.ndarray:
    """images [n, H, W] uint8 -> the average, 0 to 255, of what is not background in each, float64 [n]."""
    shown = images > BACKGROUND
    return (images * shown).sum((1, 2)) / np.maximum(shown.sum((1, 2)), 1)


def brightness_groups(images: np.ndarray, labels: np.ndarray) -> dict[Garment, np.ndarray]:
    """images [N, H, W] uint8, labels [N] -> indices of the images that each garment may be.

    Dark is the darkest third of a class, bright the brightest.
    """
    brightness, groups = brightness_of(images), {}
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        ordered, third = members[brightness[members].argsort()], len(members) // 3
        groups[Garment(label)] = members
        groups[Garment(label, "dark")], groups[Garment(label, "bright")] = ordered[:third], ordered[-third:]
    return groups
