"""alpha and beta from the spec's seconds: what a node reads, and what a prefill engine computes, in that time."""

from __future__ import annotations

from dualpath.scheduler.policy.prefill_choice import PrefillLimits
from dualpath.sim.cost import ModelCost
from dualpath.sim.spec import SimSpec


def prefill_limits(
    spec: SimSpec, cost: ModelCost, mean_prompt: float, mean_hit: float, longest_tokens: int
) -> PrefillLimits:
    """tok_e counts whole prompts (arXiv 2602.21548, section 6), and then so does beta: prompt tokens of mean requests
    that one engine gets through in ``beta_s``, never fewer than two longest contexts. Or both count new tokens.
    """
    settings, shape = spec.scheduler, spec.cluster
    alpha, beta = settings.alpha_tokens, settings.beta_tokens
    if alpha is None:
        rate = shape.storage_nic_bytes_per_s * shape.storage_nics_per_node / cost.kv_bytes_per_token
        alpha = int(settings.alpha_s * rate)
    if beta is None:
        num_requests = settings.beta_s / request_s(spec, cost, mean_prompt, mean_hit)
        if settings.prefill_load == "new":
            beta = max(int(num_requests * (mean_prompt - mean_hit)), 1)
        else:
            beta = max(int(num_requests * mean_prompt), 2 * longest_tokens)
    return PrefillLimits(alpha, beta)


def request_s(spec: SimSpec, cost: ModelCost, mean_prompt: float, mean_hit: float) -> float:
    """An engine's time for a mean request, in a forward as full as the quota allows, its share of the base included."""
    hit, new = round(mean_hit), max(1, round(mean_prompt - mean_hit))
    attention_s = cost.prefill.request_attention_s(hit, new)
    num_requests = max(1.0, spec.scheduler.max_batch_tokens / new)
    if attention_s > 0:
        num_requests = max(1.0, min(num_requests, spec.scheduler.quota_s / attention_s))
    return (cost.prefill.base_s + num_requests * (attention_s + cost.prefill.group_token_s * new)) / num_requests
