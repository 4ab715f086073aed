"""The OpenAPI document, made from the bodies that the gateway parses, for clients that generate code or requests."""

from __future__ import annotations

from typing import Any

import msgspec

from dualpath import __version__
from dualpath.core.pause import PauseMode
from dualpath.gateway.anthropic.bodies import CountBody, MessagesBody
from dualpath.gateway.openai.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from dualpath.gateway.responses.bodies import InputBody, ResponsesBody
from dualpath.gateway.rollout.bodies import (
    AbortBody,
    GenerateBody,
    SglangBody,
    SglangPauseBody,
    SglangUpdateBody,
    UpdateBody,
)

_POSTS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "/v1/completions": (CompletionBody, "Complete one or several prompts"),
    "/v1/chat/completions": (ChatBody, "Answer a conversation"),
    "/v1/responses": (ResponsesBody, "Answer a conversation, as OpenAI's Responses API does"),
    "/v1/responses/input_tokens": (InputBody, "How many tokens such a conversation has"),
    "/v1/messages": (MessagesBody, "Answer a conversation, as Anthropic's API does"),
    "/v1/messages/count_tokens": (CountBody, "How many tokens such a conversation has"),
    "/tokenize": (TokenizeBody, "The tokens of a prompt or a conversation"),
    "/detokenize": (DetokenizeBody, "The text of tokens"),
    "/inference/v1/generate": (GenerateBody, "Tokens behind tokens, as vLLM does"),
    "/generate": (SglangBody, "The same, as SGLang does"),
    "/abort_requests": (AbortBody, "End requests with the tokens that they have"),
    "/inference/v1/abort_requests": (AbortBody, "The same, by another name"),
    "/abort_request": (AbortBody, "The same, as SGLang does"),
    "/update_weights": (UpdateBody, "Serve other weights, on all engines or on none"),
    "/update_weights_from_disk": (SglangUpdateBody, "The same, as SGLang does"),
    "/pause_generation": (SglangPauseBody, "Give no requests to engines, as SGLang does"),
}
_POSTS_WITHOUT_BODY = {
    "/pause": "Give no requests to engines",
    "/resume": "Go on",
    "/continue_generation": "The same, as SGLang does",
    "/finish_session": "A trajectory is over; changes nothing",
    "/reset_prefix_cache": "Find nothing that is stored now any more, if reset_external",
    "/flush_cache": "The same without condition, as SGLang does",
}
_GETS = {
    "/v1/models": "The model that is served",
    "/v1/models/{model_id}": "The model, by its name",
    "/v1/dualpath/requests": "Where recent requests spent their time",
    "/v1/dualpath/stats": "Engines, nodes and queues",
    "/health": "Whether requests can be served now",
    "/ping": "The same, by another name",
    "/health_generate": "The same, as SGLang does",
    "/liveness": "Whether the gateway's loop and an engine's answer: where not, a restart helps",
    "/is_paused": "Whether requests are given to engines",
    "/get_weight_version": "Which weights new requests are served with",
    "/weight_info": "The same, by another name",
    "/model_info": "The model, as SGLang does",
    "/get_model_info": "The same, by another name",
    "/load": "How many requests run or wait",
    "/tokenizer_info": "The tokenizer's configuration and chat template",
    "/version": "DualPath's version",
    "/metrics": "Prometheus' text format",
}
_PARAMETERS = {
    "/reset_prefix_cache": [{"name": "reset_external", "in": "query", "schema": {"type": "boolean"}}],
    "/pause": [
        {"name": "mode", "in": "query", "schema": {"type": "string", "enum": [mode.value for mode in PauseMode]}}
    ],
    "/v1/models/{model_id}": [{"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}],
    "/v1/dualpath/requests": [
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "request_id", "in": "query", "schema": {"type": "string"}},
    ],
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
        for name in getattr(body, "REFUSED", ()):
            schemas[body.__name__]["properties"].pop(name, None)
    paths: dict[str, Any] = {path: {"get": _operation(path, summary)} for path, summary in _GETS.items()}
    for path, (body, summary) in _POSTS.items():
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        content = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": _operation(path, summary) | {"requestBody": content}}
    for path, summary in _POSTS_WITHOUT_BODY.items():
        paths[path] = {"post": _operation(path, summary)}
    paths["/flush_cache"]["get"] = paths["/flush_cache"]["post"]
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
    answers = {
        "200": {"description": "As in the API that it is of"},
        "default": {"description": "An error", "content": error},
    }
    return {"summary": summary, "responses": answers, "parameters": _PARAMETERS.get(path, [])}
