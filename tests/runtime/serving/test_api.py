"""Every address of the server: what it answers, and what it says of what it cannot do."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.serving.serving import client, decoded, events, gate, pixels
from tests.test_cli import ditedge

IMAGES, JOBS = "/v1/images/generations", "/v1/jobs"
ASKED = {"prompt": "3", "seed": 5, "num_inference_steps": 4, "sampler": "ddim", "guidance_scale": 2.5}


@pytest.fixture(scope="module")
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg", labels=True)


@pytest.fixture(scope="module")
def server(gray: Path, golden_bundle):
    with client(gray, golden_bundle("pixel3_no_null_class"), max_steps=300) as one:
        yield one


def until(server: Any, job: str, status: str) -> dict[str, Any]:
    for _ in range(2000):
        said = server.get(f"{JOBS}/{job}").json()
        if said["status"] == status:
            return said
        time.sleep(0.005)
    raise AssertionError(said)


def test_a_picture_is_the_file_that_run_writes(server, gray: Path, tmp_path: Path) -> None:
    """Byte by byte: the pixels, and the metadata that makes them again."""
    path = tmp_path / "run.png"
    options = ["--steps", 4, "--sampler", "ddim", "--guidance", 2.5, "--not", "Bag"]
    assert ditedge("run", "--engine", gray, "--class", 3, "--seed", 6, *options, "-o", path).exit_code == 0
    answer = server.post(IMAGES, json={**ASKED, "n": 3, "negative_prompt": "Bag"}).json()
    assert [one["seed"] for one in answer["data"]] == [5, 6, 7] and answer["data"][1]["revised_prompt"] == "Dress"
    assert decoded(answer["data"][1]["b64_json"]) == path.read_bytes()
    assert (answer["size"], answer["model"], answer["output_format"]) == ("8x8", "gray1_cfg", "png")


def test_classes_by_name_number_and_whole_number(server) -> None:
    of = [server.post(IMAGES, json={**ASKED, "prompt": prompt}).json()["data"][0] for prompt in ("Dress", "3", 3)]
    assert of[0] == of[1] == of[2]


def test_pictures_by_address(server) -> None:
    [said] = server.post(IMAGES, json={**ASKED, "response_format": "url"}).json()["data"]
    assert re.fullmatch(r"http://testserver/v1/images/[\w-]{24}/0\.png", said["url"])
    answer = server.get(said["url"])
    assert answer.headers["content-type"] == "image/png"
    [other] = server.post(IMAGES, json=ASKED).json()["data"]
    assert answer.content == decoded(other["b64_json"])
    for wrong in (said["url"].replace("0.png", "1.png"), "/v1/images/" + 24 * "a" + "/0.png"):
        assert server.get(wrong).status_code == 404


def test_events_with_estimates(server) -> None:
    asked = {**ASKED, "num_inference_steps": 6, "n": 2, "stream": True, "partial_images": 2}
    answer = server.post(IMAGES, json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    said = [(name, json.loads(data)) for name, data in events(answer.text)]
    done = [data for name, data in said if name == "image_generation.completed"]
    assert [data["index"] for data in done] in ([0, 1], [1, 0]) and {data["seed"] for data in done} == {5, 6}
    for name, data in said:
        assert data["type"] == name and pixels(decoded(data["b64_json"])).shape == (8, 8) and "created_at" in data
    partial = [data for name, data in said if name == "image_generation.partial_image"]
    assert {data["step"] for data in partial} <= {2, 4}
    whole = server.post(IMAGES, json={**asked, "stream": False}).json()["data"]
    for data in done:
        last = pixels(decoded(data["b64_json"])).astype(int)
        assert np.abs(last - pixels(decoded(whole[data["index"]]["b64_json"]))).max() <= 1


def test_a_job_from_its_beginning_to_its_end(server) -> None:
    answer = server.post(JOBS, json={**ASKED, "num_inference_steps": 40, "n": 2, "preview_every": 5})
    job = answer.json()["id"]
    assert answer.status_code == 202 and answer.headers["location"] == f"{JOBS}/{job}"
    said = [json.loads(data) for _, data in events(server.get(f"{JOBS}/{job}/events").text)]
    last = said[-1]
    assert last["status"] == "succeeded" and [one["step"] for one in last["images"]] == [40, 40]
    assert said[-1] == {**until(server, job, "succeeded")}
    for i, image in enumerate(last["images"]):
        assert image["url"] == f"/v1/images/{job}/{i}.png" and image["prompt"] == "Dress" and image["seed"] == 5 + i
        assert pixels(server.get(image["url"]).content).shape == (8, 8)
    assert server.delete(f"{JOBS}/{job}").json()["status"] == "succeeded"
    assert server.get(f"{JOBS}/{job}").status_code == 404


def test_a_job_is_cancelled_and_shows_estimates(golden_bundle) -> None:
    with client(golden_bundle("gray1_cfg"), max_batch=1) as server, gate(server) as steps:
        asked = {**ASKED, "num_inference_steps": 1000}
        job, other = (server.post(JOBS, json={**asked, "preview_every": 1}).json()["id"] for _ in range(2))
        until(server, job, "running")
        steps.let(2)
        image = until_shown(server, job, 2)
        assert pixels(decoded(image["preview"]["b64_png"])).shape == (8, 8)
        assert server.get(f"/v1/images/{job}/0.png").json()["error"]["message"].startswith("this picture is not there")
        status = server.get("/v1/status").json()
        [row] = status["models"]["gray1_cfg"]["running"]
        assert (row["number"], row["step"], row["steps"]) == (image["number"], 2, 1000)
        assert status["models"]["gray1_cfg"]["waiting"] == 1 and status["turn_seconds"] > 0
        server.delete(f"{JOBS}/{other}")
        server.delete(f"{JOBS}/{job}")
        steps.let(1)  # what runs is finished
        [image] = until(server, job, "cancelled")["images"]
        assert (image["error"]["code"], image["error"]["message"]) == ("cancelled", "cancelled after step 3 of 1000")
        assert until(server, other, "cancelled")["images"][0]["step"] == 0
        assert server.get(f"/v1/images/{job}/0.png").status_code == 409


def until_shown(server: Any, job: str, step: int) -> dict[str, Any]:
    """The image of a job when there is an estimate of it after that step."""
    for _ in range(2000):
        [image] = server.get(f"{JOBS}/{job}?preview=true").json()["images"]
        if image.get("preview", {}).get("step") == step:
            return image
        time.sleep(0.005)
    raise AssertionError(image)


def test_what_is_served(server) -> None:
    gray, pixel = server.get("/v1/models").json()["data"]
    assert (gray["id"], pixel["id"]) == ("gray1_cfg", "pixel3_no_null_class")
    assert (gray["classes"][3], gray["guided"], pixel["guided"]) == ("Dress", True, False)
    assert (gray["sampler"], gray["steps"], gray["width"]) == ("dpm++", 20, 8) and "ddim" in gray["samplers"]
    assert server.get("/healthz").json() == {"status": "ok"} and server.get("/readyz").json() == {"status": "ready"}
    other = server.post(IMAGES, json={"prompt": "1", "model": "pixel3_no_null_class", "num_inference_steps": 2})
    assert pixels(decoded(other.json()["data"][0]["b64_json"])).shape == (16, 16, 3)


def test_metrics(server) -> None:
    def numbers() -> dict[str, float]:
        lines = server.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    before = numbers()
    assert server.post(IMAGES, json={**ASKED, "n": 2}).status_code == 200
    after = numbers()

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("ditedge_image_steps_total") == 8 and 4 <= more("ditedge_turns_total") <= 8
    assert more('ditedge_images_total{model="gray1_cfg",state="done"}') == 2
    assert more('ditedge_image_seconds_count{model="gray1_cfg"}') == 2
    assert more('ditedge_queue_seconds_count{model="gray1_cfg"}') == 2
    assert 0 < more("ditedge_step_seconds_total") < more("ditedge_turn_seconds_total")
    assert after['ditedge_waiting_images{model="gray1_cfg"}'] == 0


def test_the_interface_of_a1111(server) -> None:
    names = [one["name"] for one in server.get("/sdapi/v1/samplers").json()]
    assert "ddim" in names and "flow-euler" not in names
    assert server.get("/sdapi/v1/sd-models").json()[1]["model_name"] == "pixel3_no_null_class"
    assert server.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "gray1_cfg"
    theirs = {"prompt": "Dress", "seed": 5, "steps": 4, "sampler_name": "DDIM", "cfg_scale": 2.5, "width": 512}
    answer = server.post("/sdapi/v1/txt2img", json={**theirs, "batch_size": 2, "enable_hr": False}).json()
    ours = server.post(IMAGES, json={**ASKED, "n": 2}).json()["data"]
    assert answer["images"] == [one["b64_json"] for one in ours]
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [5, 6] and info["sampler_name"] == "ddim" and info["cfg_scale"] == 2.5
    assert server.get("/sdapi/v1/progress").json()["progress"] == 0
    assert server.post("/sdapi/v1/interrupt").json() == {}
    other = {"override_settings": {"sd_model_checkpoint": "pixel3_no_null_class"}, "sampler_name": "Euler a"}
    answer = server.post("/sdapi/v1/txt2img", json={**theirs, **other, "prompt": "1", "cfg_scale": 1.0})
    assert json.loads(answer.json()["info"])["sampler_name"] == "euler-ancestral"


def test_the_page_and_its_files(server) -> None:
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html") and "<title>ditedge</title>" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    for address in (
        "/",
        "/docs",
        "/page/page.js",
        "/page/images.js",
        "/page/server.js",
        "/page/style.css",
        "/page/docs.js",
    ):
        answer = server.get(address)
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"(https?:)?//(?!www\.w3\.org)\w+\.\w", answer.text), "nothing from elsewhere"
        assert not re.search(r"<script>|<style>| style=| on\w+=", answer.text), "the policy allows no such thing"
        for name in re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text):
            assert server.get(name).status_code == 200
    for wrong in ("/page/../options.py", "/page/%2e%2e/options.py", "/page/index.html", "/page/"):
        assert server.get(wrong).status_code == 404


def test_openapi_says_every_address(server) -> None:
    from ditedge.runtime.serving.app import ROUTES
    from ditedge.runtime.serving.site import PAGE

    said = server.get("/openapi.json").json()
    listed = {(method.upper(), address) for address, methods in said["paths"].items() for method in methods}
    routed = {(method, address.replace(":int", "")) for method, address, _ in ROUTES}
    assert routed - listed == {("GET", address) for address in PAGE} | {("GET", "/openapi.json")}
    assert listed <= routed
    assert said["components"]["schemas"]["OpenAIWish"]["required"] == ["prompt"]


WRONG = {
    "no prompt": ({"prompt": None}, 400, "prompt: Input should be a valid"),
    "an unknown class": ({"prompt": "dragon"}, 400, "class 'dragon' is unknown: give one of T-shirt/top"),
    "a class out of range": ({"prompt": "10"}, 400, "class 10: the model has classes 0 to 9"),
    "a class of 900 digits": ({"prompt": 900 * "9"}, 400, "the model has classes 0 to 9"),
    "a negative class": ({"prompt": -1}, 400, "class '-1' is unknown"),
    "an unknown class to avoid": ({"negative_prompt": "dragon"}, 400, "class 'dragon'"),
    "an unknown sampler": ({"sampler": "magic"}, 400, "sampler 'magic' is not one of"),
    "no steps": ({"num_inference_steps": 0}, 400, "num_inference_steps: Input should be greater"),
    "too many steps": ({"num_inference_steps": 301}, 400, "steps 301 is more than the 300"),
    "steps in words": ({"num_inference_steps": "ten"}, 400, "num_inference_steps: Input should be a valid integer"),
    "a negative seed": ({"seed": -1}, 400, "seed -1 is not between 0 and 2**64 - 1"),
    "a seed beyond": ({"seed": 2**64 - 1, "n": 2}, 400, "is not between 0 and 2**64 - 1"),
    "too many images": ({"n": 17}, 400, "n 17 is more than the 16 images"),
    "another size": ({"size": "512x512"}, 400, "pictures of gray1_cfg are 8x8: leave size out"),
    "an unknown model": ({"model": "gpt-image-1"}, 404, "model 'gpt-image-1' is not one of gray1_cfg, pixel3"),
    "an unknown field": ({"stpes": 3}, 400, "stpes: Extra inputs are not permitted"),
    "guidance beyond float32": ({"guidance_scale": 1e300}, 400, "not a number up to 3e38"),
    "guidance that overflows": ({"guidance_scale": 1e37}, 422, "1 of 1 pictures overflowed"),
    "guidance without a null class": (
        {"model": "pixel3_no_null_class", "prompt": "1"},
        400,
        "guidance 2.5 needs a null class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_sentence(server, name: str) -> None:
    change, status, sentence = WRONG[name]
    answer = server.post(IMAGES, json={**ASKED, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert sentence in error["message"] and "\n" not in error["message"] and answer.json()["detail"] == error["message"]


BODIES = {
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not valid UTF-8"),
    "a key twice": (b'{"prompt": "1", "prompt": "2"}', "key 'prompt' stands there twice"),
    "half a character": (b'{"prompt": "\\ud800"}', "a text that is not Unicode"),
    "not a number": (b'{"prompt": "1", "guidance_scale": NaN}', "a number that is not finite"),
    "nested": (b'{"prompt": ' + 5000 * b"[" + 5000 * b"]" + b"}", "more values"),
    "a list": (b"[1]", "Input should be a valid dictionary"),
    "nothing": (b"", "not valid JSON"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("address", [IMAGES, JOBS, "/sdapi/v1/txt2img"])
def test_bodies_that_are_none(server, address: str, name: str) -> None:
    body, sentence = BODIES[name]
    answer = server.post(address, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]


def test_addresses_and_methods_that_are_none(server) -> None:
    for answer, status in (
        (server.get("/etc/passwd"), 404),
        (server.get(IMAGES), 405),
        (server.put(JOBS), 405),
        (server.get(f"{JOBS}/nobody"), 404),
        (server.delete(f"{JOBS}/nobody"), 404),
        (server.get("/v1/images/x/-1.png"), 404),
    ):
        assert answer.status_code == status and answer.json()["error"]["message"]
