"""Makes requests' output states, and brings their grammars' masks up to date while the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from dualpath.core.errors import InvalidRequestError
from dualpath.core.request import Request
from dualpath.core.runtime import Runtime
from dualpath.engine.output_state import OutputState, is_shaped
from dualpath.grammar.state import Grammars

_MASKS_S = 60.0  # that a step waits for masks: they take a millisecond


class OutputStates:
    """One engine's. Its thread, for masks only, starts with the first request that has a grammar."""

    def __init__(self, grammars: Grammars | None, eos_token_ids: Sequence[int], runtime: Runtime, name: str) -> None:
        self._grammars, self._eos_token_ids, self._runtime = grammars, eos_token_ids, runtime
        self._worker = runtime.worker(name)

    def close(self, deadline_s: float) -> None:
        """Blocks. After the model's thread, which may wait for this one."""
        self._worker.close(deadline_s)

    async def open(self, request: Request, *more: int) -> OutputState | None:
        """Behind the request's output so far and ``more`` of it. None: its logits are the model's own.

        Raises InvalidRequestError for a grammar that cannot be used.
        """
        if not is_shaped(request.sampling):
            return None
        return await self._runtime.to_thread(self._open, request, more)

    def _open(self, request: Request, more: Sequence[int]) -> OutputState:
        prompt, params = request.prompt_token_ids, request.sampling
        first = len(prompt) - request.num_generated
        output = (*prompt[first:], *more)
        grammar = None
        if params.grammar:
            if self._grammars is None:
                raise InvalidRequestError("this engine knows no grammars")
            grammar = self._grammars.state(params.grammar, output)
        return OutputState(params, prompt[:first], output, self._eos_token_ids, grammar)

    def advance(self, states: Sequence[OutputState | None]) -> Future[None] | None:
        """Begin to make the masks of those that have a grammar; None where none has. Event loop."""
        grammars = [state.grammar for state in states if state is not None and state.grammar is not None]
        if not grammars or self._grammars is None:
            return None
        made: Future[None] = Future()
        advance = self._grammars.advance

        def then(error: Exception | None) -> None:
            if error is None:
                made.set_result(None)
            else:
                made.set_exception(error)

        if not self._worker.run(lambda: advance(grammars), then):
            raise RuntimeError("the worker is closed")
        return made

    def wait(self, masks: Future[None] | None) -> None:
        """The model's thread."""
        if masks is not None:
            self._runtime.wait(masks, _MASKS_S)
