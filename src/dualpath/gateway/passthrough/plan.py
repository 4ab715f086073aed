"""From a client's body to a request for the scheduler and an exchange for the decode server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.exchange import KV_PARAMS, Exchange, RefusedError
from dualpath.core.ids import RequestId
from dualpath.core.request import Request, SamplingParams
from dualpath.gateway.errors import ApiError, invalid, not_ready
from dualpath.gateway.job import request_id_of
from dualpath.gateway.json_body import decoded
from dualpath.gateway.passthrough.answer import Part, PassthroughJob, refusal
from dualpath.gateway.passthrough.dialects import Dialect
from dualpath.gateway.passthrough.upstream import Upstream
from dualpath.gateway.tenants import Tenant


class _Sampling(msgspec.Struct):
    max_tokens: int
    n: int = 1


class _Rendered(msgspec.Struct):
    """The part that is read of what ``/render`` answers: vLLM's GenerateRequest."""

    token_ids: list[int]
    sampling_params: _Sampling
    features: Any = None


_OneOrMany: TypeAlias = _Rendered | list[_Rendered]  # completions: one for each prompt
_rendered: msgspec.json.Decoder[_OneOrMany] = msgspec.json.Decoder(_OneOrMany)


def parse(raw: bytes, max_containers: int) -> dict[str, Any]:
    """A JSON object without what is ours to say. Raises ApiError."""
    try:
        body = decoded(raw, max_containers, msgspec.json.decode)
    except msgspec.ValidationError as error:  # a number that no float holds
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_type")
    for name in (KV_PARAMS, "request_id"):
        body.pop(name, None)
    return body


@dataclass(frozen=True, slots=True)
class PassthroughPlanner:
    upstream: Upstream
    max_choices: int  # of one HTTP request

    async def plan(self, dialect: Dialect, body: Mapping[str, Any], tenant: Tenant) -> PassthroughJob:
        """Raises ApiError or InvalidRequestError for what cannot be served."""
        dialect.check(body)
        prompts = await self._render(dialect, body)
        num_per_prompt = max(1, prompts[0].sampling_params.n)
        num_parts = len(prompts) * num_per_prompt
        if num_parts > self.max_choices:
            raise invalid(f"at most {self.max_choices} choices (prompts x n) are allowed, not {num_parts}", "n")
        job_id, salt = tenant.new_id(dialect.id_prefix), tenant.cache_salt(body.get("cache_salt") or "")
        parts = [
            _part(dialect, dialect.choice_of(body, place, choice), rendered, request_id, salt)
            for place, rendered in enumerate(prompts)
            for choice in range(num_per_prompt)
            for request_id in [request_id_of(job_id, place * num_per_prompt + choice, num_parts)]
        ]
        return PassthroughJob(job_id, tuple(parts), num_per_prompt, self.upstream.exchanges)

    async def _render(self, dialect: Dialect, body: Mapping[str, Any]) -> list[_Rendered]:
        try:
            found = _rendered.decode(await self.ask(f"{dialect.path}/render", body))
        except msgspec.MsgspecError as error:
            raise DualPathError(f"what vLLM has rendered cannot be read: {error}") from None
        prompts = found if isinstance(found, list) else [found]
        if not prompts:
            raise invalid("prompt must not be empty", "prompt")
        if any(prompt.features is not None for prompt in prompts):
            raise invalid("images, audio and video are not supported", "messages", "unsupported_parameter")
        return prompts

    async def ask(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Raises ApiError."""
        try:
            return await self.upstream.ask(path, body)
        except RefusedError as error:
            raise refusal(error) from error
        except EngineLostError:
            raise not_ready() from None


def _part(dialect: Dialect, body: Mapping[str, Any], rendered: _Rendered, request_id: RequestId, salt: str) -> Part:
    own_id = request_id.partition("-")[2]  # vLLM puts the prefix before it
    sent = dialect.prepared(body, own_id, rendered.token_ids)
    if salt:
        sent["cache_salt"] = salt  # vLLM keeps KV of its own, which is the tenant's, too
    sampling = SamplingParams(max_tokens=max(1, rendered.sampling_params.max_tokens))
    is_stream = dialect.wants_stream(body)
    return Part(
        Request(request_id, tuple(rendered.token_ids), sampling, salt, is_opaque=True),
        Exchange(
            dialect.path,
            sent,
            {"X-Request-Id": own_id},
            is_stream,
            dialect.read_event if is_stream else dialect.read_whole,
        ),
    )
