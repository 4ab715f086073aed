"""LiteLLM: hosted_vllm (chat and responses), openai and anthropic; whole and streamed, tools."""

import os

import litellm

URL = os.environ["DUALPATH_URL"]
ASK = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
for name, base in (("hosted_vllm", URL + "/v1"), ("openai", URL + "/v1"), ("anthropic", URL)):
    options = {"model": f"{name}/scripted", "api_base": base, "api_key": "-", "messages": ASK, "max_tokens": 300}
    assert litellm.completion(**options).choices[0].message.content.startswith("Hello"), name
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**options, stream=True)]
    assert "".join(pieces).startswith("Hello"), name
    call = litellm.completion(**options, tools=[TOOL]).choices[0].message.tool_calls[0]
    assert call.function.name == "add", name
response = litellm.responses(model="hosted_vllm/scripted", input="hi", api_base=URL + "/v1", api_key="-")
assert response.output[0].content[0].text.startswith("Hello")
