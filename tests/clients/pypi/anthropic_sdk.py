"""anthropic: messages, whole and streamed, the tool runner, counting, parsing."""

import os

from anthropic import Anthropic, beta_tool
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


@beta_tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"the sum is {a + b}"


client = Anthropic(base_url=os.environ["DUALPATH_URL"], api_key="-")
ask = {"model": "scripted", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]}
assert client.messages.create(**ask).content[0].text.startswith("Hello")
with client.messages.stream(**ask) as stream:
    assert "".join(stream.text_stream).startswith("Hello")
tool = {"name": "add", "input_schema": {"type": "object"}}
called = client.messages.create(**ask, tools=[tool], tool_choice={"type": "any"})
assert (called.content[0].name, called.content[0].input) == ("add", {"a": 2, "b": 3})
assert client.messages.count_tokens(model="scripted", messages=ask["messages"]).input_tokens > 0
assert "the sum is 5" in client.beta.messages.tool_runner(**ask, tools=[add]).until_done().content[0].text
assert client.messages.parse(**ask, output_format=Person).parsed_output == Person(name="Ada", age=36)
