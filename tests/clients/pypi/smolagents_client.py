"""smolagents: an agent that calls tools until it has its answer."""

import os

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return f"the sum is {a + b}"


model = OpenAIModel("scripted", api_base=os.environ["DUALPATH_URL"] + "/v1", api_key="-")
agent = ToolCallingAgent(tools=[add], model=model, max_steps=4)
assert "the sum is 5" in str(agent.run("hi"))
