"""openai: chat, completions and responses, whole and streamed, tools, parsing."""

import asyncio
import os

from openai import AsyncOpenAI
from pydantic import BaseModel

URL = os.environ["DUALPATH_URL"]
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD = {"name": "add", "description": "Add", "parameters": PARAMETERS}
ASK = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    name: str
    age: int


async def main() -> None:
    client = AsyncOpenAI(base_url=URL + "/v1", api_key="-")
    model = (await client.models.list()).data[0].id
    answer = await client.chat.completions.create(model=model, messages=ASK)
    assert answer.choices[0].message.content.startswith("Hello")
    tools = [{"type": "function", "function": ADD | {"strict": True}}]
    async with client.chat.completions.stream(model=model, messages=ASK, tools=tools) as stream:
        async for _ in stream:
            pass
        call = (await stream.get_final_completion()).choices[0].message.tool_calls[0]
    assert call.function.parsed_arguments == {"a": 2, "b": 3}
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        forced = await client.chat.completions.create(model=model, messages=ASK, tools=tools, tool_choice=choice)
        assert forced.choices[0].message.tool_calls
    parsed = await client.chat.completions.parse(model=model, messages=ASK, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
    plain = await client.completions.create(model=model, prompt="x", max_tokens=3)
    assert plain.usage.completion_tokens == 3
    response = await client.responses.create(model=model, input="hi")
    assert response.output_text.startswith("Hello")
    async with client.responses.stream(
        model=model, input="hi", tools=[{"type": "function", **ADD, "strict": True}]
    ) as s:
        async for _ in s:
            pass
        called = (await s.get_final_response()).output[0]
    assert (called.name, called.arguments) == ("add", '{"a": 2, "b": 3}')
    person = await client.responses.parse(model=model, input="hi", text_format=Person)
    assert person.output_parsed == Person(name="Ada", age=36)


asyncio.run(main())
