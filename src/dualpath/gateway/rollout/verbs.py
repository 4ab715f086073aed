"""The verbs of those who train what is served here, by vLLM's names and by SGLang's. They need an admin key."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from dualpath.core.errors import WeightsError
from dualpath.core.pause import PauseMode
from dualpath.gateway.context import Gateway, json_response
from dualpath.gateway.errors import invalid, not_ready
from dualpath.gateway.http.auth import require_admin
from dualpath.gateway.openai.bodies import Body
from dualpath.gateway.openai.shapes import encode_json
from dualpath.gateway.rollout.bodies import AbortBody, SglangPauseBody, SglangUpdateBody, UpdateBody

_SGLANG_MODES = {"abort": PauseMode.ABORT, "retract": PauseMode.RETRACT, "in_place": PauseMode.KEEP}


def verbs_router(gateway: Gateway) -> APIRouter:
    router, admin = APIRouter(), _Admin(gateway)
    _add_vllms(router, gateway, admin)
    _add_sglangs(router, gateway, admin)
    return router


@dataclass(frozen=True, slots=True)
class _Admin:
    """What an admin's request asks, whichever name it comes by."""

    gateway: Gateway

    async def body_of(self, request: Request, body_type: type[Body]) -> Body:
        """An empty body is one without fields."""
        require_admin(request)
        return await self.gateway.on_body(request, lambda raw: self.gateway.planner.parse(raw or b"{}", body_type))

    async def abort(self, request: Request) -> int:
        """How many requests were told to end."""
        return await self.gateway.backend.control.abort((await self.body_of(request, AbortBody)).named)


def _add_vllms(router: APIRouter, gateway: Gateway, admin: _Admin) -> None:
    control = gateway.backend.control

    @router.post("/pause")
    async def pause(request: Request) -> Response:
        require_admin(request)
        await control.pause(_mode(request))
        return json_response({"status": "paused"})

    @router.post("/resume")
    async def resume(request: Request) -> Response:
        require_admin(request)
        await control.resume()
        return json_response({"status": "resumed"})

    @router.get("/is_paused")
    async def is_paused() -> Response:
        return json_response({"is_paused": control.is_paused})

    @router.post("/abort_requests")
    @router.post("/inference/v1/abort_requests")
    async def abort_requests(request: Request) -> Response:
        return json_response({"status": "aborted", "aborted": await admin.abort(request)})

    @router.post("/update_weights")
    async def update_weights(request: Request) -> Response:
        body = await admin.body_of(request, UpdateBody)
        version = await control.update_weights(body.weight_dir, body.weight_version)
        return json_response({"status": "ok", "message": "Weights updated", "weight_version": version})

    @router.post("/reset_prefix_cache")
    async def reset_prefix_cache(request: Request) -> Response:
        """Engines have none of their own; ``reset_external``: nor is anything of the store found any more."""
        require_admin(request)
        if request.query_params.get("reset_external", "").lower() in ("1", "true"):
            await control.flush()
        return json_response({"success": True})

    @router.get("/weight_info")
    @router.get("/get_weight_version")
    async def weight_version() -> Response:
        return json_response({"weight_version": control.weight_version})


def _add_sglangs(router: APIRouter, gateway: Gateway, admin: _Admin) -> None:
    control = gateway.backend.control

    @router.post("/pause_generation")
    async def pause_generation(request: Request) -> Response:
        await control.pause(_SGLANG_MODES[(await admin.body_of(request, SglangPauseBody)).mode])
        return json_response({"status": "ok", "message": "Generation paused successfully."})

    @router.post("/continue_generation")
    async def continue_generation(request: Request) -> Response:
        require_admin(request)
        await control.resume()
        return json_response({"status": "ok", "message": "Generation continued successfully."})

    @router.post("/update_weights_from_disk")
    async def update_weights_from_disk(request: Request) -> Response:
        body = await admin.body_of(request, SglangUpdateBody)
        try:
            version = await control.update_weights(body.model_path, body.weight_version)
        except WeightsError as error:
            return Response(encode_json({"success": False, "message": str(error)}), 400, media_type="application/json")
        if body.abort_all_requests:
            await control.abort(None)
        answer = {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}
        return json_response(answer | {"weight_version": version})

    @router.get("/flush_cache")
    @router.post("/flush_cache")
    async def flush_cache(request: Request) -> Response:
        require_admin(request)
        await control.flush()
        return Response("Cache flushed.\n", media_type="text/plain")

    @router.post("/abort_request")
    async def abort_request(request: Request) -> Response:
        await admin.abort(request)
        return Response(status_code=200)

    @router.get("/health_generate")
    async def health_generate() -> Response:
        if not gateway.backend.ready():
            raise not_ready()
        return Response(status_code=200)

    @router.get("/get_model_info")
    @router.get("/model_info")
    async def model_info() -> Response:
        name = gateway.backend.model_name
        return json_response({"model_path": name, "is_generation": True, "weight_version": control.weight_version})


def _mode(request: Request) -> PauseMode:
    given = request.query_params.get("mode", PauseMode.ABORT.value)
    try:
        return PauseMode(given)
    except ValueError:
        raise invalid(f"mode must be one of {', '.join(PauseMode)}, not {given!r}", "mode") from None
