"""Joining attention over parts of a context: softmax over a whole is a mean of its parts weighted by log-sum-exp.

Every kernel therefore returns the natural logarithm of its softmax denominator (lse) with its output.
Attention sinks (gpt_oss) are one more part, of value zero.
"""

from __future__ import annotations

import torch

Attended = tuple[torch.Tensor, torch.Tensor]  # output [..., D], lse float32 [...]


def merge_two(first: Attended, second: Attended) -> Attended:
    """Attention over the union of two disjoint key sets; shapes equal."""
    (out_1, lse_1), (out_2, lse_2) = first, second
    lse = torch.logaddexp(lse_1, lse_2)
    out = out_1 * (lse_1 - lse).exp().unsqueeze(-1) + out_2 * (lse_2 - lse).exp().unsqueeze(-1)
    return out.to(out_1.dtype), lse


def merge_padded(out: torch.Tensor, lse: torch.Tensor) -> Attended:
    """Parts in rows: out ``[B, parts, ..., D]``, lse ``[B, parts, ...]``; no part: lse -inf and any finite out."""
    top = lse.amax(dim=1, keepdim=True)
    weight = (lse - top).exp_()
    total = weight.sum(dim=1, keepdim=True)
    mean = (out * (weight / total).unsqueeze(-1)).sum(dim=1)
    return mean.to(out.dtype), (top + total.log_()).squeeze(1)  # torch.logsumexp takes ten times as long


def merge_by_owner(out: torch.Tensor, lse: torch.Tensor, owners: torch.Tensor, num_owners: int) -> Attended:
    """Parts in any number per owner: out ``[parts, ..., D]``, lse ``[parts, ...]``, owners int64 ``[parts]``."""
    index = owners.view(-1, *([1] * (lse.dim() - 1))).expand_as(lse)
    top = lse.new_full((num_owners, *lse.shape[1:]), -torch.inf).scatter_reduce(0, index, lse, "amax")
    weight = (lse - top.index_select(0, owners)).exp()
    total = torch.zeros_like(top).index_add_(0, owners, weight)
    mean = weight.new_zeros((num_owners, *out.shape[1:])).index_add_(0, owners, out * weight.unsqueeze(-1))
    return (mean / total.unsqueeze(-1)).to(out.dtype), top + total.log()


def apply_sinks(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """A learned logit per head takes its share of the softmax and gives nothing: out ``[..., H, D]``, sinks ``[H]``."""
    share = torch.sigmoid(lse - sinks.float()).unsqueeze(-1)
    return (out * share).to(out.dtype)
