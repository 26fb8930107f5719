"""The page in a real browser: by mouse and by keyboard, wide and narrow, in the light and in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import BUNDLES, PIXART, ROOT
from tests.runtime.serving.browser import CHROMIUM, CONTROL_A, DRIVER, ENTER, ESCAPE, TAB, Browser, browser
from tests.runtime.serving.process import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Chromium and its driver (Debian: chromium-driver)"),
]
SHOTS = ROOT / "build" / "screenshots"  # to be looked at
CARD = "#cards .card:first-child"
LAST = "#cards .card:last-child"
KEY = "a-key-of-24-characters--"


@pytest.fixture(scope="module")
def address(demo_bundle: Path, golden_bundle, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    gray = golden_bundle("gray1_cfg")
    options = ["--engine", demo_bundle, "--engine", gray, "--max-queue", 20, "--max-batch", 8]
    with serving(log, *options, pace=0.02) as server:  # 80 steps take a while, and 1000 as long as any test
        yield server.address
        assert "Traceback" not in log.read_text()


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    pytest.importorskip("uvicorn", reason="ditedge[serve] is not installed")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with browser(tmp_path) as one:
        yield one


def begin(window: Browser, address: str) -> None:
    window.open(address)
    window.until_text("#server", "fashion: 10 classes, 32 x 32")


def ask(window: Browser, prompt: str, **fields: object) -> None:
    window.type_over("#prompt", prompt)
    for name, value in fields.items():
        window.type_over(f"#{name}", str(value))


def test_a_picture_with_its_estimates_again_and_as_a_file(window: Browser, address: str, tmp_path: Path) -> None:
    begin(window, address)
    window.screenshot(SHOTS / "begin.png")
    ask(window, "Ankle boot", seed=7, steps=80)
    window.click("#go")
    window.until_text(f"{CARD} .state", r"^step \d+ of 80, 1 in the batch")
    estimate = window.until(
        "const i = document.querySelector(arguments[0]); return i.src.startsWith('data:') && i.naturalWidth && i.src",
        f"{CARD} img",
    )
    window.until("return document.querySelectorAll('.slot.own').length")
    window.until_text("#load", r"1 of 8 places, 1 yours; 0 waiting; [\d.]+ ms a step")
    window.screenshot(SHOTS / "sampling.png")
    window.until_text(f"{CARD} .state", r"^[\d.]+ s, [\d.]+ s in the queue")
    assert window.script("return document.querySelector(arguments[0]).src", f"{CARD} img") != estimate
    assert window.text(f"{CARD} .caption") == "Ankle boot" and "seed 7" in window.text(f"{CARD} .detail")

    window.click(f"{CARD} .download")
    file = tmp_path / "Ankle-boot-seed7.png"
    for _ in range(500):
        if file.is_file() and not list(tmp_path.glob("*.crdownload")):
            break
        window.script("return 1")
    with Image.open(file) as image:
        assert image.size == (32, 32) and json.loads(image.info["ditedge"])["seeds"] == [7]

    window.click(f"{CARD} .again")
    window.until("return document.querySelectorAll('.card').length === 2")
    assert "seed 8" in window.text(f"{CARD} .detail") and "seed 7" in window.text(f"{LAST} .detail")
    window.click(f"{LAST} .settings")
    assert window.script("return ['seed', 'steps', 'prompt'].map(id => document.getElementById(id).value)") == [
        "7",
        "80",
        "Ankle boot",
    ]
    window.until_text(f"{CARD} .state", r"^[\d.]+ s, ")
    assert window.log() == []


def test_cancelling_and_what_it_leaves_after_a_reload(window: Browser, address: str) -> None:
    begin(window, address)
    ask(window, "Bag", steps=1000, count=2)
    window.keys("#prompt", ENTER)
    window.until_text(f"{CARD} .state", "2 in the batch")
    window.click(f"{CARD} .cancel")
    window.until_text(f"{CARD} .state", r"cancelled after step \d+ of 1000")
    window.until("return document.getElementById('stop').disabled")

    ask(window, "Trouser", seed=1, count=1)
    window.click("#go")
    window.until_text(f"{CARD} .state", r"^step \d+ of 1000")
    window.ask("POST", "/refresh")
    window.until("return document.querySelectorAll('.card').length === 3")
    assert window.text(f"{CARD} .caption") == "Trouser"
    window.until_text(f"{CARD} .state", r"^step \d+ of 1000")  # it went on meanwhile, and is followed again
    window.screenshot(SHOTS / "reloaded.png")
    window.keys("body", ESCAPE)
    window.until_text(f"{CARD} .state", "cancelled after step")
    assert window.log() == []


def test_mistakes_and_a_full_queue_are_sentences(window: Browser, address: str) -> None:
    begin(window, address)
    ask(window, "dragon")
    window.click("#go")
    window.until_text("#problem", "class 'dragon' is unknown: give one of T-shirt/top")
    window.screenshot(SHOTS / "mistake.png")
    ask(window, "0", steps=1000, count=16)
    window.click("#go")
    window.until("return document.querySelectorAll('.card').length === 16")
    window.click("#go")
    window.until("return document.querySelectorAll('.card').length === 32 || problem.innerText")
    window.click("#go")
    window.until_text("#problem", r"images wait, 16 more are over 20: try again in \d+ s")
    window.until_text("#load", "8 of 8 places, 8 yours; ")
    window.screenshot(SHOTS / "full.png")
    window.click("#stop")
    window.until("return [...document.querySelectorAll('.state')].every(e => /cancelled/.test(e.innerText))")
    assert all("400" in line or "429" in line for line in window.log())  # what was refused, and nothing else


def test_by_keyboard_alone_on_a_phone_in_the_dark(window: Browser, address: str) -> None:
    window.size(360, 740)
    window.dark(True)
    begin(window, address)
    window.keys("body", TAB)
    for _ in range(20):
        if window.script("return document.activeElement.id") == "prompt":
            break
        active(window, TAB)
    active(window, "Sandal")
    active(window, TAB + TAB + "12" + TAB + CONTROL_A)
    assert window.script(
        "return [...['prompt', 'seed'].map(id => document.getElementById(id).value), document.activeElement.id]"
    ) == ["Sandal", "12", "count"]
    active(window, ENTER)
    window.until_text(f"{CARD} .state", r"^[\d.]+ s, ")
    wide = window.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "something is wider than the phone"
    back = window.script("return getComputedStyle(document.body).backgroundColor")
    assert max(map(int, back[4:-1].split(","))) < 64
    small = window.script("return [...document.querySelectorAll('button, input, select')]"
                          ".filter(e => e.offsetParent && e.offsetHeight < 40).map(e => e.id || e.className)")  # fmt: skip
    assert small == []
    window.script("window.scrollTo(0, 0)")
    window.screenshot(SHOTS / "phone-form.png")
    window.script("document.querySelector(arguments[0]).scrollIntoView()", CARD)
    window.screenshot(SHOTS / "phone-card.png")
    assert window.log() == []


def active(window: Browser, text: str) -> None:
    """Keys to whatever has the focus."""
    element = window.ask("GET", "/element/active")
    window.ask("POST", f"/element/{next(iter(element.values()))}/value", text=text)


def test_the_other_model_the_docs_and_a_key(window: Browser, demo_bundle: Path, golden_bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\n")
    engines = ["--engine", golden_bundle("pixel3_no_null_class"), "--engine", demo_bundle]
    with serving(tmp_path / "log.txt", *engines, "--api-key-file", keys) as server:
        window.open(server.address)
        window.until_text("#problem", "this server wants a key")
        window.keys("#key", KEY + ENTER)
        window.until_text("#server", "pixel3_no_null_class: 5 classes, 16 x 16")
        assert window.script("return [guidance.disabled, keyrow.hidden, problem.innerText]") == [True, True, ""]
        ask(window, "3", steps=5)
        window.click("#go")
        window.until_text(f"{CARD} .state", r"^[\d.]+ s, ")
        window.until("return document.querySelector(arguments[0]).naturalWidth === 16", f"{CARD} img")
        window.open(f"{server.address}/docs")
        window.until("return document.querySelectorAll('.operation').length >= 15")
        window.screenshot(SHOTS / "docs.png")
        assert all("401" in line for line in window.log())


def test_words_become_a_picture_or_a_sentence(window: Browser, tmp_path: Path) -> None:
    """A model that takes prompts: estimates, cancelling, mistakes; then narrow and in the dark."""
    pytest.importorskip("tokenizers", reason="ditedge[text] is not installed")
    with serving(tmp_path / "log.txt", "--engine", BUNDLES / PIXART, pace=0.05) as server:
        window.open(server.address)
        window.until_text("#server", "pixart: takes words, 64 x 64")
        assert window.text("#none") == "Nothing yet: write a prompt and press Generate."
        assert window.text("#promptlabel") == "Prompt"
        ask(window, "a red fox in the snow", negative="blurred", size="96x64", seed=7, steps=60)
        window.click("#go")
        window.until_text(f"{CARD} .state", r"^step \d+ of 60, 1 in the batch")
        window.until("return document.querySelector(arguments[0]).src.startsWith('data:')", f"{CARD} img")
        window.screenshot(SHOTS / "prompt-sampling.png")
        window.until_text(f"{CARD} .state", r"^[\d.]+ s, [\d.]+ s in the queue")
        size = (
            "const i = document.querySelector(arguments[0]); return i.src.startsWith('http') && i.naturalWidth === 96"
        )
        window.until(size, f"{CARD} img")
        assert window.text(f"{CARD} .caption") == "a red fox in the snow"

        ask(window, "a small wooden house by a lake at sunset, mountains behind it, and their reflections", steps=1000)
        window.keys("#prompt", ENTER)
        window.until_text(f"{CARD} .state", r"^step \d+ of 1000")
        window.click(f"{CARD} .cancel")
        window.until_text(f"{CARD} .state", r"cancelled after step \d+ of 1000")

        ask(window, "a boot", size="100x64")
        window.click("#go")
        window.until_text("#problem", "width 100 is not a multiple of 16")
        seen = (
            "const r = document.getElementById('problem').getBoundingClientRect(); return r.bottom <= innerHeight + 1"
        )
        assert window.script(seen), "the sentence is below what is seen"
        window.screenshot(SHOTS / "prompt-mistake.png")
        window.click(f"{LAST} .settings")
        fields = "return ['prompt', 'negative', 'size', 'seed'].map(id => document.getElementById(id).value)"
        assert window.script(fields) == ["a red fox in the snow", "blurred", "96x64", "7"]
        assert window.text("#problem") == ""

        window.size(360, 740)
        window.dark(True)
        wide = window.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, "something is wider than the phone"
        window.script("window.scrollTo(0, 0)")
        window.screenshot(SHOTS / "prompt-phone-form.png")
        window.script("document.querySelector(arguments[0]).scrollIntoView()", CARD)
        window.screenshot(SHOTS / "prompt-phone-card.png")
        assert all("400" in line for line in window.log()) and "Traceback" not in (tmp_path / "log.txt").read_text()
