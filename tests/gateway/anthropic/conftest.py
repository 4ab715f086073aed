"""Anthropic's own client, in process with the app."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from anthropic import AsyncAnthropic
from tests.gateway.fakes import FakeBackend

from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.text.tokenizer import Tokenizer


@pytest.fixture
async def anthropic(backend: FakeBackend, tokenizer: Tokenizer) -> AsyncIterator[AsyncAnthropic]:
    backend.max_context_tokens = 4096
    app = create_app(backend, tokenizer, GatewaySettings(api_keys=("key",)))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport) as http:
        yield AsyncAnthropic(api_key="key", base_url="http://gateway", http_client=http, max_retries=0)
