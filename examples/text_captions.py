"""Captions of one garment, or of two side by side: the small language of the text demo.

Words and sentences of `HELD_OUT` are never in a caption that the model is trained with; they ask, afterwards, whether
it understood the text or learned the words by heart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from string import Formatter

import numpy as np

BACKGROUND = 16  # pixels above it show something


@dataclass(frozen=True)
class Garment:
    """label: number in `fashion_mnist.CLASSES`. brightness: "dark", "bright" or None, which is any."""

    label: int
    brightness: str | None = None


@dataclass(frozen=True)
class Caption:
    """text: what it says of garments, from left to right. spans: from which character to which of each of them."""

    text: str
    garments: tuple[Garment, ...]
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Language:
    """nouns[label], words[brightness], sentences with {} for a garment and its article, {left} and {right} for two."""

    nouns: tuple[tuple[str, ...], ...]
    words: dict[str, tuple[str, ...]]
    one: tuple[str, ...]
    two: tuple[str, ...]
    told_brightness: float = 0.4  # share of garments whose brightness is said
    articles: tuple[str, ...] = ("a",)
    more: tuple[str, ...] = ()  # what else may be said of a garment, {} is its noun
    told_more: float = 0.4  # share of garments of which it is


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
MORE_NOUNS = (
    ("t-shirt for sports", "loose tee", "round neck t-shirt", "summer t-shirt"),
    ("denim jeans", "pair of leggings", "trousers with pockets", "suit trousers"),
    ("thick sweater", "woollen jumper", "jumper with long sleeves", "hooded sweatshirt", "soft pullover"),
    ("dress without sleeves", "ball gown", "long summer dress", "dress for the summer"),
    ("parka", "coat for the rain", "jacket with a zipper", "thick coat", "open jacket"),
    ("flat sandal", "sandal with a heel", "light sandal", "sandal for hot days"),
    ("linen shirt", "blouse with long sleeves", "shirt with cuffs", "shirt for work", "elegant blouse"),
    ("shoe for the gym", "sneaker with laces", "skate shoe", "light trainer"),
    ("bag for shopping", "messenger bag", "small purse", "bag with a zipper"),
    ("boot with laces", "boot for the winter", "hiking boot", "ankle boot with a heel"),
)  # fmt: skip
MORE_OF_TWO = (
    "{left} is on the left, {right} is on the right", "{right} on the right and {left} on the left",
    "{right} to the right, {left} to the left", "on the right {right}, on the left {left}",
    "right: {right}, left: {left}", "the left one is {left}, the right one is {right}",
    "the right one is {right}, the left one is {left}", "you see {left} and, to its right, {right}",
    "you see {right} and, to its left, {left}", "{left} on the left side, {right} on the right side",
    "right side: {right}; left side: {left}", "there is {left}, and to the right of it {right}",
    "there is {right}, and to the left of it {left}", "{left} is left of {right}", "{right} right of {left}",
    "{right} is to the right of {left}", "two garments: {left} and, right of it, {right}",
    "two garments: {right} and, left of it, {left}", "at the left there is {left}, at the right {right}",
    "at the right of {left} there is {right}", "a photo of {left} with {right} to its right",
    "a picture of {right} with {left} to its left", "{left} in the left half, {right} in the right half",
    "the right half shows {right}, the left half {left}", "on the left we see {left}; on the right, {right}",
    "on the right is {right}, and on the left is {left}", "{left} comes first, {right} second",
    "{left} is followed by {right}", "{right} comes after {left}", "{left} before {right}", "{left} plus {right}",
    "{left} together with {right}", "{left} with {right} to the right of it",
    "{right} with {left} to the left of it", "{left}; beside it, on the right, {right}",
    "{right}; beside it, on the left, {left}", "{left} has {right} on its right", "{right} has {left} on its left",
    "to the left of {right} there is {left}", "left of {right} is {left}", "right of {left} is {right}",
    "the first is {left}, the second is {right}", "{left} at the left end and {right} at the right end",
)  # fmt: skip
WIDER = replace(  # what the next training learns from: the shipped weights know TRAINED alone
    TRAINED,
    nouns=tuple((*old, *more) for old, more in zip(TRAINED.nouns, MORE_NOUNS, strict=True)),
    two=(*TRAINED.two, *MORE_OF_TWO),
)
CANONICAL = Language(  # what the shipped DiT draws well: one wording of everything (canonical_rows.py)
    nouns=(("t-shirt",), ("chinos",), ("knitted jumper",), ("dress",), ("coat with a zipper",), ("leather sandal",),
           ("collared shirt",), ("sports shoe",), ("purse",), ("boot",)),
    words={"dark": ("black",), "bright": ("white",)},
    one=("{}",),
    two=("{left} to the left, {right} to the right",),
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
    said = [said_of(language, garment, random_) for garment in garments]
    text, spans = filled_in(random_.choice(language.one if len(said) == 1 else language.two), said)
    return Caption(text, garments, spans)


def filled_in(sentence: str, said: list[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A sentence with {} or with {left} and {right}, and what is said of the garments -> text, characters of each."""
    text, spans = "", [(0, 0)] * len(said)
    for between, place, _, _ in Formatter().parse(sentence):
        text += between
        if place is not None:
            which = int(place == "right")
            spans[which] = (len(text), len(text) + len(said[which]))
            text += said[which]
    return text, tuple(spans)


def said_of(language: Language, garment: Garment, random_: random.Random) -> str:
    """The garment with its article, and its brightness if that is said: "a dark sneaker"."""
    noun = random_.choice(language.nouns[garment.label])
    no_article = noun.split(" for ")[0].split(" with ")[0].endswith(PLURAL) and not noun.startswith("pair")
    if language.more and random_.random() < language.told_more:
        noun = random_.choice(language.more).format(noun)
    words = noun if garment.brightness is None else f"{random_.choice(language.words[garment.brightness])} {noun}"
    if no_article:
        return words
    article = random_.choice(language.articles) if len(language.articles) > 1 else language.articles[0]
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}".lstrip()


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
