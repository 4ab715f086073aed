"""pydantic-ai: OpenAI chat, responses and Anthropic; tools, and structured output by tool, by schema, by prompt."""

import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

URL = os.environ["DUALPATH_URL"]


class Person(BaseModel):
    name: str
    age: int


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"the sum is {a + b}"


openai = OpenAIProvider(base_url=URL + "/v1", api_key="-")
MODELS = [
    OpenAIChatModel("scripted", provider=openai),
    OpenAIResponsesModel("scripted", provider=openai),
    AnthropicModel("scripted", provider=AnthropicProvider(base_url=URL, api_key="-")),
]
for model in MODELS:
    assert Agent(model).run_sync("hi").output.startswith("Hello"), model
    assert "the sum is 5" in Agent(model, tools=[add]).run_sync("hi").output, model
    modes = [ToolOutput(Person), PromptedOutput(Person)]
    if not isinstance(model, AnthropicModel):  # it knows by the model's name who may
        modes.append(NativeOutput(Person))
    for mode in modes:
        prompt = "hi" if not isinstance(mode, PromptedOutput) else "as JSON, please"
        assert Agent(model, output_type=mode).run_sync(prompt).output == Person(name="Ada", age=36), (model, mode)
