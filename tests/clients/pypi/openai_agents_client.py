"""openai-agents: its default (Responses) and Chat Completions; tools, structured output, a session, streams."""

import asyncio
import os

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=os.environ["DUALPATH_URL"] + "/v1", api_key="-")


class Person(BaseModel):
    name: str
    age: int


@function_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"the sum is {a + b}"


async def main() -> None:
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(model="scripted", openai_client=client)
        agent = Agent(name="a", instructions="Be brief.", model=model, tools=[add])
        first = await Runner.run(agent, "hi")
        assert "the sum is 5" in first.final_output, kind
        again = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "again"}])
        assert "the sum is 5" in again.final_output, kind
        streamed = Runner.run_streamed(agent, "hi")
        async for _ in streamed.stream_events():
            pass
        assert "the sum is 5" in streamed.final_output, kind
        made = await Runner.run(Agent(name="b", model=model, output_type=Person), "hi")
        assert made.final_output == Person(name="Ada", age=36), kind


asyncio.run(main())
