"""instructor: tools, JSON and JSON schema over OpenAI's APIs, tools over Anthropic's."""

import os

import instructor
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel

URL = os.environ["DUALPATH_URL"]
ASK = {"model": "scripted", "messages": [{"role": "user", "content": "a person"}], "max_retries": 0}


class Person(BaseModel):
    name: str
    age: int


def is_ada(person: Person) -> bool:
    return (person.name, person.age) == ("Ada", 36)


openai = OpenAI(base_url=URL + "/v1", api_key="-")
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
    client = instructor.from_openai(openai, mode=mode)
    assert is_ada(client.chat.completions.create(**ASK, response_model=Person)), mode
client = instructor.from_openai(openai, mode=instructor.Mode.RESPONSES_TOOLS)
assert is_ada(client.chat.completions.create(**ASK, response_model=Person))
client = instructor.from_anthropic(Anthropic(base_url=URL, api_key="-"))
assert is_ada(client.chat.completions.create(**ASK, max_tokens=500, response_model=Person))
