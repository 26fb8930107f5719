"""`/openapi.json`: what the server can be asked, made from the models that requests are checked with."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ditedge import __version__

from .wishes import A1111Wish, JobWish, OpenAIWish

JSON, PNG, EVENTS, TEXT = "application/json", "image/png", "text/event-stream", "text/plain"
Operation = tuple[str, str, str, "type[BaseModel] | None", str]

OPERATIONS: tuple[Operation, ...] = (  # method, address, what it is, what it takes, what it answers
    ("post", "/v1/images/generations", "Images, in the answer or (stream) as events.", OpenAIWish, JSON),
    ("get", "/v1/images/{job}/{number}.png", "A picture, by an address that an answer gave. Needs no key.", None, PNG),
    ("post", "/v1/jobs", "Images to be fetched later; answers at once.", JobWish, JSON),
    ("get", "/v1/jobs/{job}", "Progress; with an estimate of the picture where ?preview=true.", None, JSON),
    ("delete", "/v1/jobs/{job}", "Cancels it within a step; forgets it when it has ended.", None, JSON),
    ("get", "/v1/jobs/{job}/events", "Progress as events. ?attached=true: closing it cancels the job.", None, EVENTS),
    ("get", "/v1/models", "What is served, with classes, samplers and sizes.", None, JSON),
    ("get", "/v1/status", "Who shares a step now.", None, JSON),
    ("post", "/sdapi/v1/txt2img", "Images, as A1111's clients ask for them.", A1111Wish, JSON),
    ("get", "/sdapi/v1/samplers", "Names for sampler_name.", None, JSON),
    ("get", "/sdapi/v1/sd-models", "Names for override_settings.sd_model_checkpoint.", None, JSON),
    ("get", "/sdapi/v1/options", "The default model.", None, JSON),
    ("get", "/sdapi/v1/progress", "Of one's own oldest txt2img.", None, JSON),
    ("post", "/sdapi/v1/interrupt", "Cancels one's own txt2img.", None, JSON),
    ("get", "/healthz", "Whether the process answers. Needs no key.", None, JSON),
    ("get", "/readyz", "Whether images are taken on. Needs no key.", None, JSON),
    ("get", "/metrics", "For Prometheus.", None, TEXT),
)


def document() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for method, address, about, _, _ in OPERATIONS:
        paths.setdefault(address, {})[method] = _operation(method, address, about)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ditedge serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {kind.__name__: _schema(kind) for kind in (OpenAIWish, JobWish, A1111Wish)} | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("message", "type", "code")},
        }
    },
}


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_json_schema(ref_template="#/components/schemas/{model}")


def _operation(method: str, address: str, about: str) -> dict[str, Any]:
    taken, answered = next((takes, kind) for m, a, _, takes, kind in OPERATIONS if (m, a) == (method, address))
    error = {"description": "One sentence.", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}}
    said: dict[str, Any] = {
        "summary": about,
        "responses": {"200": {"description": "Done.", "content": {answered: {}}}, "4XX": error, "5XX": error},
    }
    names = [part.strip("{}") for part in address.replace(".png", "").split("/") if part.startswith("{")]
    if names:
        said["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if taken is not None:
        schema = {"$ref": f"#/components/schemas/{taken.__name__}"}
        said["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return said
