"""LangChain: ChatOpenAI by both of OpenAI's APIs and ChatAnthropic; tools, structured output, streams, an agent."""

import os

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL = os.environ["DUALPATH_URL"]


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"the sum is {a + b}"


MODELS = [
    ChatOpenAI(model="scripted", base_url=URL + "/v1", api_key="-"),
    ChatOpenAI(model="scripted", base_url=URL + "/v1", api_key="-", use_responses_api=True),
    ChatAnthropic(model="scripted", base_url=URL, api_key="-", max_tokens=500),
]
for model in MODELS:
    assert model.invoke("hi").text.startswith("Hello"), model
    assert "".join(chunk.text for chunk in model.stream("hi")).startswith("Hello"), model
    assert model.bind_tools([add]).invoke("hi").tool_calls[0]["args"] == {"a": 2, "b": 3}, model
    for method in ("function_calling", "json_schema"):
        assert model.with_structured_output(Person, method=method).invoke("hi") == Person(name="Ada", age=36), method
    agent = create_agent(model, [add])
    ended = agent.invoke({"messages": [{"role": "user", "content": "hi"}]})["messages"][-1]
    assert "the sum is 5" in ended.text, ended
