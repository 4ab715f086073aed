"""inspect-ai: a scored task with a tool, by OpenAI chat and responses, Anthropic, and its providers for servers."""

import os
import tempfile

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool

URL = os.environ["DUALPATH_URL"]
MODELS = (
    ("openai/scripted", URL + "/v1", {"responses_api": False}),
    ("openai/scripted", URL + "/v1", {"responses_api": True}),
    ("anthropic/scripted", URL, {}),
    ("openai-api/dualpath/scripted", URL + "/v1", {}),
    ("vllm/scripted", URL + "/v1", {}),
)


@tool
def add():
    async def execute(a: int, b: int) -> str:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        return f"the sum is {a + b}"

    return execute


def main(folder: str) -> None:
    for name, base_url, options in MODELS:
        model = get_model(name, base_url=base_url, api_key="-", **options)
        task = Task([Sample("hi", target="the sum is 5")], solver=[use_tools(add()), generate()], scorer=includes())
        (log,) = eval(task, model=model, display="none", log_dir=folder)
        assert log.status == "success", (name, options, log.error)
        assert log.results.scores[0].metrics["accuracy"].value == 1, (name, options)


with tempfile.TemporaryDirectory() as name:
    main(name)
