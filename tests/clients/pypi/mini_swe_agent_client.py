"""mini-swe-agent: a command that the model calls for is run in a shell, its output goes back; by LiteLLM's providers.

The scripted model knows no way to hand something in, so the agent's limit of steps ends each run.
"""

import os
import tempfile
from pathlib import Path

os.environ |= {"MSWEA_CONFIGURED": "true", "MSWEA_SILENT_STARTUP": "1", "MSWEA_COST_TRACKING": "ignore_errors"}
os.environ["MSWEA_GLOBAL_CONFIG_DIR"] = tempfile.mkdtemp()

import minisweagent
import yaml
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments.local import LocalEnvironment
from minisweagent.models.litellm_model import LitellmModel

given = yaml.safe_load((Path(minisweagent.__file__).parent / "config" / "mini.yaml").read_text())
shows = {name: given["agent"][name] for name in ("system_template", "instance_template")}
told = {name: value for name, value in given["model"].items() if name not in ("model_name", "model_kwargs")}
server = {"api_base": os.environ["DUALPATH_URL"] + "/v1", "api_key": "-"}
for name in ("hosted_vllm/scripted", "openai/scripted"):
    model = LitellmModel(model_name=name, model_kwargs=server, **told)
    agent = DefaultAgent(model, LocalEnvironment(), **shows, step_limit=3)
    ended = agent.run("Say it with a tool.")
    assert ended["exit_status"] == "LimitsExceeded", (name, ended)
    results = [str(message["content"]) for message in agent.messages if message["role"] == "tool"]
    assert len(results) == 2, (name, agent.messages)
    assert all("dualpath-was-here" in result for result in results), (name, results)
