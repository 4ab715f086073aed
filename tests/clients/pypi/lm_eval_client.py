"""lm-eval: likelihoods equal those that transformers computes of the same model, by tokens and by text; generation.

Its tasks' data sets are on the Hugging Face hub, so the tasks are of our own: a few lines in a file.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # the data is here

import lm_eval
from lm_eval.tasks import TaskManager

URL = os.environ["DUALPATH_URL"]
MODEL_DIR = os.environ["DUALPATH_MODEL_DIR"]
MAX_DIFFERENCE = 1e-3  # of a sum of log probabilities
QUESTIONS = [
    {"text": "The capital of France is", "choices": [" Paris", " Rome", " a long way from here"], "answer": 0},
    {"text": "Two and two make", "choices": [" five", " four"], "answer": 1},
    {"text": "Grüße, 你好:", "choices": [" hallo", " héllo"], "answer": 1},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
    },
    "ends": {"output_type": "loglikelihood", "doc_to_text": "{{text}}", "doc_to_target": "{{choices[0]}}"},
    "rolling": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12},
    },
}
METRICS = {"multiple_choice": "acc", "loglikelihood": "perplexity", "loglikelihood_rolling": "word_perplexity"}


def write_tasks(folder: Path) -> None:
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
    }
    for name, task in TASKS.items():
        metric = {"metric_list": [{"metric": METRICS.get(task["output_type"], "exact_match")}]}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"dualpath_{name}", **data, **task, **metric}))


def evaluate(folder: Path, model: str, path: str, tasks: list[str], **options: object) -> list[dict]:
    """Every question's sample, as the report has it."""
    batch_size = options.pop("batch_size", 1)
    report = lm_eval.simple_evaluate(
        model=model,
        model_args={"model": Path(MODEL_DIR).name, "base_url": f"{URL}{path}", **options},
        tasks=[f"dualpath_{task}" for task in tasks],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=batch_size,
        apply_chat_template="chat" in model,
        bootstrap_iters=0,
    )
    return [sample for task in report["samples"].values() for sample in task]


def judged(samples: list[dict]) -> list[tuple[str, str, float, bool | None]]:
    """(context, continuation, log probability, whether greedy); a rolling one knows its text and a number only."""
    found = []
    for sample in samples:
        for texts, (answer,) in zip(sample["arguments"], sample["resps"], strict=True):
            context, text = texts if len(texts) == 2 else ("", texts[0])
            value, is_greedy = answer if isinstance(answer, tuple | list) else (answer, None)
            found.append((context, text, value, is_greedy))
    return found


def check_likelihoods(folder: Path, samples: list[dict]) -> None:
    told = judged(samples)
    pairs = folder / "pairs.json"
    pairs.write_text(json.dumps([one[:2] for one in told]))
    command = [os.environ["DUALPATH_PYTHON"], "-m", "tests.clients.likelihoods", MODEL_DIR, pairs]
    expected = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for (context, text, value, is_greedy), (right, greedy) in zip(told, expected, strict=True):
        assert abs(value - right) < MAX_DIFFERENCE, f"{context!r} {text!r}: {value}, not {right}"
        assert is_greedy in (None, greedy), f"{context!r} {text!r}: greedy is {is_greedy}"


def main(folder: Path) -> None:
    write_tasks(folder)
    likely = ["choices", "ends", "rolling"]
    num_asked = sum(len(question["choices"]) for question in QUESTIONS) + 2 * len(QUESTIONS)
    by_tokens = evaluate(folder, "local-completions", "/v1/completions", likely, batch_size=4)
    by_text = evaluate(folder, "local-completions", "/v1/completions", likely, tokenized_requests=False)
    for samples in (by_tokens, by_text):
        assert len(judged(samples)) == num_asked
        check_likelihoods(folder, samples)
    said = evaluate(folder, "local-completions", "/v1/completions", ["answers"], num_concurrent=3)
    chat = evaluate(folder, "local-chat-completions", "/v1/chat/completions", ["answers"])
    assert len(said) == len(chat) == len(QUESTIONS)
    assert all(sample["resps"][0][0] for sample in said + chat)


with tempfile.TemporaryDirectory() as name:
    main(Path(name))
