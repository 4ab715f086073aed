"""DualPath on vLLM: vLLM computes, and DualPath's engines inside its workers move KV by both read paths.

``connector`` is what vLLM loads (``--kv-transfer-config``): ``scheduler_half`` in the engine core, which only tells
numbers, and ``worker`` in the worker, with a node on threads of its own. ``line`` is what the scheduler asks of a node,
``messages`` what a request brings along over HTTP; ``door`` and ``extension`` change weights. Only ``connector``,
``compat`` and ``extension`` import vLLM. How to run it: docs/vllm.md.
"""
