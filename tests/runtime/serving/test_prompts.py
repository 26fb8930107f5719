"""Models that take prompts: images of other words and sizes share steps, and each is the one that it is alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Cancelled, Session, generate, open_bundle
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.serving.meaning import images_of
from ditedge.runtime.serving.options import Limits
from ditedge.runtime.serving.scheduler import Scheduler
from ditedge.runtime.serving.service import Service
from ditedge.runtime.serving.ticket import Ticket
from ditedge.runtime.serving.wishes import Wish
from tests.conftest import BUNDLES, PIXART
from tests.runtime.pictures.test_instruction import with_instruction
from tests.runtime.serving.serving import client, decoded, pixels
from tests.runtime.serving.test_scheduler import SECONDS, Slow, wait_for
from tests.test_cli import ditedge

pytest.importorskip("tokenizers", reason="ditedge[text] is not installed")
FOLDER = BUNDLES / PIXART
IMAGES = "/v1/images/generations"
WISHES = (
    {"prompt": "a red fox in the snow", "seed": 1, "num_inference_steps": 4},
    {"prompt": "a boot", "seed": 2, "num_inference_steps": 3, "negative_prompt": "blurred", "size": "96x64"},
    {"prompt": "a boot", "seed": 3, "num_inference_steps": 5, "guidance_scale": 1.0, "sampler": "ddim"},
)


@pytest.fixture(scope="module")
def server():
    with client(FOLDER) as one:
        yield one


def alone(session: Session, wish: dict) -> np.ndarray:
    bundle = session.bundle
    program = bundle.program(sampler=wish.get("sampler"), steps=wish["num_inference_steps"])
    size = tuple(map(int, wish["size"].split("x"))) if "size" in wish else None
    settings = {"guidance": wish.get("guidance_scale"), "negative": wish.get("negative_prompt"), "size": size}
    return generate(
        bundle, seeds=[wish["seed"]], prompts=[wish["prompt"]], program=program, session=session, **settings
    )[0]


@pytest.mark.parametrize("instructed", [False, True])  # what is guided away from has no instruction
def test_images_of_other_words_and_sizes_share_steps(instructed: bool, tmp_path: Path) -> None:
    folder = with_instruction(tmp_path / PIXART) if instructed else FOLDER
    scheduler = Scheduler({PIXART: Session(open_bundle(folder), EngineOptions(threads=1))})
    service = Service(scheduler, {PIXART: scheduler.sessions[PIXART].bundle})
    tickets = []
    for wish in WISHES:  # one turn apart
        _, images = images_of(service, Wish(**wish))
        [ticket] = scheduler.submit(PIXART, images)
        wait_for(lambda ticket=ticket: ticket.ready)
        tickets.append(ticket)
        scheduler.turn()
    assert [ticket.together for ticket in tickets] == [3, 3, 3]
    while scheduler.turn():
        pass
    for ticket, wish in zip(tickets, WISHES, strict=True):
        assert np.array_equal(ticket.result(60), alone(scheduler.sessions[PIXART], wish)), wish
    scheduler.close()


def test_a_slow_text_encoder_holds_up_no_step() -> None:
    """Who has no words yet waits; others come before; one that is cancelled, or overflows, frees the encoder."""
    bundle = open_bundle(FOLDER)
    with Session(bundle) as plain:
        text = Slow(plain.engine("text"))
        scheduler = Scheduler({PIXART: Session(bundle, engines={"text": text})}, Limits(a_call=4))
        service = Service(scheduler, {PIXART: bundle})

        def submit(wish: dict) -> Ticket:
            return scheduler.submit(PIXART, images_of(service, Wish(**wish))[1])[0]

        text.may.set()
        scheduler.start()
        submit(WISHES[0]).result(SECONDS)
        text.may.clear()
        new, known = submit(WISHES[2]), submit({**WISHES[0], "priority": -1})
        assert text.called.wait(SECONDS)
        assert known.result(SECONDS) is not None and (new.state, new.ready) == ("queued", False)
        text.may.set()
        assert np.array_equal(new.result(SECONDS), alone(plain, WISHES[2]))

        text.may.clear()
        text.called.clear()
        gone = submit({**WISHES[0], "prompt": "gone"})
        assert text.called.wait(SECONDS)
        gone.cancel()
        with pytest.raises(Cancelled, match="after step 0"):
            gone.result(SECONDS)
        scheduler.sessions[PIXART].prepare = lambda *given: 1 / 0
        broken = submit({**WISHES[0], "prompt": "broken"})
        text.may.set()
        with pytest.raises(ZeroDivisionError):
            broken.result(SECONDS)
        wait_for(lambda: not scheduler.waiting(PIXART))
        scheduler.close()


def test_prompts_are_encoded_as_soon_as_there_is_room_for_their_image() -> None:
    """Also where room came from somebody who left; and what an image read of its prompts is not kept after its end."""
    bundle = open_bundle(FOLDER)
    with Session(bundle) as plain:
        text = Slow(plain.engine("text"))
        scheduler = Scheduler({PIXART: Session(bundle, engines={"text": text})}, Limits(max_batch=1, a_call=1))
        service = Service(scheduler, {PIXART: bundle})
        text.may.set()

        def submit(wish: dict) -> Ticket:
            return scheduler.submit(PIXART, images_of(service, Wish(**wish))[1])[0]

        first, second, third = (submit({**WISHES[0], "prompt": prompt}) for prompt in ("one", "one", "other"))
        wait_for(lambda: first.ready)
        scheduler.turn()
        wait_for(lambda: second.ready)
        assert (first.step, second.state, third.ready) == (1, "queued", False) and first.run.contexts
        second.cancel()
        scheduler.turn()
        wait_for(lambda: third.ready)  # nobody else comes, and nobody is admitted
        scheduler.start()
        assert first.result(SECONDS) is not None and third.result(SECONDS) is not None
        wait_for(lambda: not any(ticket.run.contexts for ticket in (first, second, third)))
        assert all(ticket.run.modulation() is None for ticket in (first, second, third))
        scheduler.close()


def test_whose_prompts_are_encoded_goes_by_rank_over_all_models() -> None:
    """A model that is asked again and again does not keep another one's prompts waiting."""
    bundle = open_bundle(FOLDER)
    with Session(bundle) as plain:
        sessions = {name: Session(bundle, engines={"text": Slow(plain.engine("text"))}) for name in ("busy", "other")}
        scheduler = Scheduler(sessions, Limits(a_call=1))
        scheduler._preparing.close()  # asked by hand
        service = Service(scheduler, {name: bundle for name in sessions})
        images = images_of(service, Wish(**WISHES[0], model="busy"))[1]
        [late], [early] = scheduler.submit("busy", images), scheduler.submit("other", images)
        early.submitted -= 1
        assert scheduler._unready() is early
        late.submitted -= 2
        assert scheduler._unready() is late
        scheduler.close()


def test_a_picture_of_words_is_the_file_that_run_writes(server, tmp_path) -> None:
    answer = server.post(IMAGES, json=WISHES[1]).json()
    [said] = answer["data"]
    assert (answer["size"], said["revised_prompt"]) == ("96x64", "a boot")
    options = ["--prompt", "a boot", "--negative", "blurred", "--size", "96x64", "--seed", 2, "--steps", 3]
    assert ditedge("run", "--engine", FOLDER, *options, "-o", tmp_path / "r.png").exit_code == 0
    assert decoded(said["b64_json"]) == (tmp_path / "r.png").read_bytes()


def test_a1111_has_sizes_where_the_model_has(server) -> None:
    asked = {"prompt": "a boot", "width": 96, "height": 64, "steps": 2, "seed": 1}
    answer = server.post("/sdapi/v1/txt2img", json=asked).json()
    assert pixels(decoded(answer["images"][0])).shape[:2] == (64, 96)
    assert json.loads(answer["info"])["width"] == 96


def test_what_is_served_takes_words(server) -> None:
    [said] = server.get("/v1/models").json()["data"]
    assert (said["text"], said["classes"], said["guided"], said["negative"]) == (True, [], True, True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": "100x64"}, "width 100 is not a multiple of 16"),
        ({"size": "wide"}, "size 'wide' is not WIDTHxHEIGHT"),
        ({"prompt": 9000 * "x"}, "prompt: String should have at most 8000 characters"),
    ],
)
def test_mistakes(server, change: dict, sentence: str) -> None:
    answer = server.post(IMAGES, json={**WISHES[0], **change})
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]
