"""A headless Chromium, by the W3C's WebDriver protocol: no more of it than the page's tests need."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 180
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # of the protocol
ENTER, ESCAPE, TAB, CONTROL_A = "\ue007", "\ue00c", "\ue004", "\ue009a"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, method: str, path: str, **value: Any) -> Any:
        """A command of the protocol -> its value. Raises AssertionError with what the browser says."""
        data = json.dumps(value).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self._address}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:500]}") from None

    def open(self, address: str) -> None:
        self.ask("POST", "/url", url=address)

    def script(self, text: str, *arguments: Any) -> Any:
        """The value of a function's body in the page."""
        return self.ask("POST", "/execute/sync", script=text, args=list(arguments))

    def text(self, selector: str) -> str:
        """Of the first element; "" where there is none."""
        return self.script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def count(self, selector: str) -> int:
        return self.script("return document.querySelectorAll(arguments[0]).length", selector)

    def click(self, selector: str) -> None:
        """As a hand does: what is covered or not there cannot be clicked."""
        self.ask("POST", f"/element/{self._element(selector)}/click")

    def keys(self, selector: str, text: str) -> None:
        self.ask("POST", f"/element/{self._element(selector)}/value", text=text)

    def type_over(self, selector: str, text: str) -> None:
        self.ask("POST", f"/element/{self._element(selector)}/clear")
        self.keys(selector, text)

    def until(self, text: str, *arguments: Any) -> Any:
        """Until a function's body in the page returns something true -> that."""
        end = time.monotonic() + SECONDS
        while True:
            found = self.script(text, *arguments)
            if found:
                return found
            assert time.monotonic() < end, f"never true: {text} {arguments}\n{self.text('body')}"
            time.sleep(0.02)

    def until_text(self, selector: str, pattern: str) -> str:
        return self.until(
            "const e = document.querySelector(arguments[0]); "
            "return e && new RegExp(arguments[1]).test(e.innerText) && e.innerText",
            selector,
            pattern,
        )

    def size(self, width: int, height: int) -> None:
        """Of the page itself, as a phone's or a screen's."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def dark(self, wanted: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def command(self, name: str, **parameters: Any) -> Any:
        """One of Chromium's own."""
        return self.ask("POST", "/goog/cdp/execute", cmd=name, params=parameters)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def log(self) -> list[str]:
        """What the page, or the browser about it, complained of so far."""
        entries = self.ask("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def _element(self, selector: str) -> str:
        return self.ask("POST", "/element", using="css selector", value=selector)[ELEMENT]


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """downloads: where files go that the page offers."""
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = next(found[1] for line in process.stdout if (found := re.search(r"on port (\d+)\.", line)))
        root = f"http://127.0.0.1:{port}"
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"],
            "prefs": {"download.default_directory": str(downloads)},
        }
        asked = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        session = Browser(root).ask("POST", "/session", capabilities=asked)["sessionId"]
        window = Browser(f"{root}/session/{session}")
        yield window
        window.ask("DELETE", "")
    finally:
        process.terminate()
        process.communicate()  # and closes the pipe
