"""What a request has to pass: its size, its kind, its key, its origin; queues, deadlines, and bugs of ours."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from ditedge.runtime.errors import RequestError
from ditedge.runtime.serving import guard
from ditedge.runtime.serving.options import ServeRequest
from ditedge.runtime.serving.service import Service, named, read_keys
from tests.runtime.serving.serving import client, gate
from tests.runtime.serving.test_api import ASKED, IMAGES, JOBS, until

OURS = {"ditedge-stepping", "ditedge-decoding"}
KEYS = ("first-key-0123456789", "second-key-0123456789")


@pytest.fixture(scope="module")
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg")


@pytest.fixture(scope="module")
def server(gray: Path):
    with client(gray, max_batch=1, max_queue=2) as one:
        yield one


@pytest.fixture(scope="module")
def locked(gray: Path, tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("# ours\n\n" + "\n".join(KEYS) + "\n")
    with client(gray, api_key_file=file) as one:
        yield one


def test_long_requests(server) -> None:
    long = {**ASKED, "prompt": 70_000 * "x"}
    answer = server.post(IMAGES, json=long)
    assert answer.status_code == 413 and answer.json()["error"]["message"] == "the request is longer than 64 kB"
    answer = server.post(IMAGES, content=iter(70 * [1000 * b" "]), headers={"content-type": "application/json"})
    assert answer.status_code == 413  # nothing said how long it would be


def test_names_that_others_gave_this_machine(server, locked) -> None:
    """What a page of somebody's sends after his name server said that he is here; with keys it has none."""
    for host, status in {
        "evil.example": 421, "evil.example:8000": 421, "localhost.evil.example": 421, "": 421, "[": 421, "a b": 421,
        "localhost": 200, "localhost:8000": 200, "127.0.0.1:8000": 200, "[::1]:8000": 200, "192.168.0.7": 200,
        "testserver": 200, "TestServer:80": 200,
    }.items():  # fmt: skip
        answer = server.get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host
        assert server.get("/", headers={"host": host}).status_code == status
    assert "this server is not known as 'evil.example': start it with --allowed-host" in str(
        server.get("/", headers={"host": "evil.example"}).json()
    )
    headers = {"host": "evil.example", "authorization": f"Bearer {KEYS[0]}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


def test_other_kinds_of_content(server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = server.post(IMAGES, content=b'{"prompt": "1"}', headers={"content-type": kind})
        assert answer.status_code == 415, kind


def test_pages_of_others(server) -> None:
    """What a browser sends for a page from elsewhere is refused, with and without a body; one's own page is not."""
    for origin, status in (("http://evil.example", 403), ("null", 403), ("http://testserver", 200)):
        assert server.post("/sdapi/v1/interrupt", headers={"origin": origin}).status_code == status
        assert server.post(IMAGES, json=ASKED, headers={"origin": origin}).status_code == status


def test_keys(locked) -> None:
    for headers in ({}, {"authorization": "Bearer nope"}, {"x-api-key": "nope"}, {"authorization": KEYS[0]}):
        answer = locked.post(IMAGES, json=ASKED, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert locked.get("/metrics", headers=headers).status_code == locked.get("/v1/models").status_code == 401
    for headers in ({"authorization": f"Bearer {KEYS[1]}"}, {"x-api-key": KEYS[0]}):
        assert locked.post(IMAGES, json=ASKED, headers=headers).status_code == 200
    for free in ("/", "/page/page.js", "/healthz", "/readyz", "/openapi.json", "/docs"):
        assert locked.get(free).status_code == 200


def test_jobs_are_those_of_their_key(locked) -> None:
    first, second = ({"authorization": f"Bearer {key}"} for key in KEYS)
    job = locked.post(JOBS, json=ASKED, headers=first).json()["id"]
    for answer in (locked.get(f"{JOBS}/{job}", headers=second), locked.delete(f"{JOBS}/{job}", headers=second)):
        assert answer.status_code == 404
    with_key = {"headers": first}
    while locked.get(f"{JOBS}/{job}", **with_key).json()["status"] != "succeeded":
        pass
    assert locked.get(f"/v1/images/{job}/0.png").headers["content-type"] == "image/png"  # a name that nobody guesses


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("\n".join(KEYS))
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    service = Service(None, {}, keys=read_keys(file))  # type: ignore[arg-type]
    assert [service.key_of(f"Bearer {key}", None) for key in (*KEYS, "x")] == [0, 1, None]
    assert compared == 3 * list(service.keys)


@pytest.mark.parametrize(
    ("text", "words"), [("", "has no key"), ("# a comment\n", "has no key"), ("short\n", "key 1 has 5 characters")]
)
def test_key_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(RequestError, match=words):
        read_keys(tmp_path / "keys.txt")
    with pytest.raises(RequestError, match="nowhere.txt: No such file"):
        read_keys(tmp_path / "nowhere.txt")


def test_a_full_queue_is_a_429_with_a_time(server) -> None:
    with gate(server):
        jobs = [server.post(JOBS, json=ASKED).json()["id"]]
        until(server, jobs[0], "running")
        jobs += [server.post(JOBS, json=ASKED).json()["id"] for _ in range(2)]
        answer = server.post(IMAGES, json=ASKED)
        for job in jobs:
            server.delete(f"{JOBS}/{job}")
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 600
    assert answer.json()["error"]["code"] == "queue_full"
    assert f"try again in {answer.headers['retry-after']} s" in answer.json()["error"]["message"]
    for job in jobs:
        until(server, job, "cancelled")
    assert server.post(IMAGES, json=ASKED).status_code == 200


def test_a_deadline_is_a_504(server) -> None:
    answer = server.post(IMAGES, json={**ASKED, "num_inference_steps": 1000, "deadline": 0.05})
    assert answer.status_code == 504 and "not done within 0.05 s" in answer.json()["error"]["message"]


def test_a_bug_of_ours_is_a_sentence_and_a_log(server, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(server.service.scheduler, "submit", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        answer = server.post(IMAGES, json=ASKED)
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text and any(record.exc_info for record in caplog.records)


def test_while_the_server_stops(gray: Path) -> None:
    with client(gray) as server:
        server.service.scheduler.close()
        assert server.get("/readyz").status_code == 503 and server.get("/healthz").status_code == 200
        answer = server.post(IMAGES, json=ASKED)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"


def slowly(monkeypatch: pytest.MonkeyPatch, messages: list[dict], wait: float, limit: float = 60.0) -> int:
    """The status that a request gets whose parts come with `wait` seconds between them."""
    monkeypatch.setattr(guard, "BODY_SECONDS", limit)
    sent: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(wait)
        return messages.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    async def app(scope: dict, receive, send) -> None:
        assert (await receive())["body"] == b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": [(b"content-type", b"application/json")]}
    asyncio.run(guard.Guard(app, Service(None, {}))(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"]


def test_slow_and_broken_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(body: bytes, more: bool) -> dict:
        return {"type": "http.request", "body": body, "more_body": more}

    assert slowly(monkeypatch, [part(b"{", True), part(b"}", False)], 0.001) == 200
    assert slowly(monkeypatch, [part(b"{", True), part(b"}", False)], 0.15, limit=0.2) == 408
    assert slowly(monkeypatch, [part(b"{", True), {"type": "http.disconnect"}], 0.001) == 400


def test_more_requests_than_can_be_in_the_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of three waits for none: it is told to come again; those before it are answered."""
    monkeypatch.setattr(guard, "MOST_REQUESTS", 2)
    sent: list[list[dict]] = [[], [], []]

    async def ask(number: int, until: asyncio.Event) -> None:
        async def receive() -> dict:
            await until.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: dict) -> None:
            sent[number].append(message)

        scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": [(b"content-type", b"application/json")]}
        await around(scope, receive, send)  # type: ignore[arg-type]

    async def app(scope: dict, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def all_three() -> None:
        until = asyncio.Event()
        waiting = [asyncio.create_task(ask(number, until)) for number in (0, 1)]
        await asyncio.sleep(0)
        await ask(2, until)
        until.set()
        await asyncio.gather(*waiting)

    around = guard.Guard(app, Service(None, {}))  # type: ignore[arg-type]
    asyncio.run(all_three())
    assert [messages[0]["status"] for messages in sent] == [200, 200, 429]
    assert dict(sent[2][0]["headers"])[b"retry-after"] == b"1"


def test_nothing_or_the_same_to_serve(gray: Path) -> None:
    from ditedge.runtime import open_bundle
    from ditedge.runtime.serving.server import notes, served

    with pytest.raises(RequestError, match="there is nothing to serve"):
        served(ServeRequest())
    with pytest.raises(RequestError, match="are both called 'gray1_cfg'"):
        named([open_bundle(gray), open_bundle(gray)])
    assert not notes(ServeRequest(host="::1")) and not notes(ServeRequest(host="localhost"))
    assert "give --api-key-file" in notes(ServeRequest(host="0.0.0.0"))[0]


def test_threads_end_with_the_server(gray: Path) -> None:
    before = set(threading.enumerate())
    with client(gray):
        more = [thread for thread in set(threading.enumerate()) - before if thread.name in OURS]
        assert {thread.name for thread in more} == OURS
    assert not any(thread.is_alive() for thread in more)
