"""The OpenAPI document, made from the bodies that the gateway parses, for clients that generate code or requests."""

from __future__ import annotations

from typing import Any

import msgspec

from dualpath import __version__
from dualpath.gateway.bodies import AnyBody, ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

_POSTS: dict[str, tuple[type[AnyBody], str]] = {
    "/v1/completions": (CompletionBody, "Complete one or several prompts"),
    "/v1/chat/completions": (ChatBody, "Answer a conversation"),
    "/tokenize": (TokenizeBody, "The tokens of a prompt or a conversation"),
    "/detokenize": (DetokenizeBody, "The text of tokens"),
}
_GETS = {
    "/v1/models": "The model that is served",
    "/v1/models/{model_id}": "The model, by its name",
    "/v1/dualpath/requests": "Where recent requests spent their time",
    "/v1/dualpath/stats": "Engines, nodes and queues",
    "/health": "Whether requests can be served now",
    "/version": "DualPath's version",
    "/metrics": "Prometheus' text format",
}
_PARAMETERS = {
    "/v1/models/{model_id}": [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}],
    "/v1/dualpath/requests": [{"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}}],
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document() -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(
        [body for body, _ in _POSTS.values()], ref_template="#/components/schemas/{name}"
    )
    for body, _ in _POSTS.values():
        for name in body.REFUSED:
            schemas[body.__name__]["properties"].pop(name, None)
    paths: dict[str, Any] = {path: {"get": _operation(path, summary)} for path, summary in _GETS.items()}
    for path, (body, summary) in _POSTS.items():
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        content = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": _operation(path, summary) | {"requestBody": content}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "DualPath", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, summary: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers = {"200": {"description": "As in OpenAI's API"}, "default": {"description": "An error", "content": error}}
    return {"summary": summary, "responses": answers, "parameters": _PARAMETERS.get(path, [])}
