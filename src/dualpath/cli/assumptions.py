"""What is assumed of a model's speed where nobody has measured it, unless flags say otherwise."""

from __future__ import annotations

# Of peak, for every kernel of a named model: between what DeepSeek reports of its own serving (about 15 % of FP8 peak,
# "DeepSeek-V3/R1 Inference System Overview", 2025) and what decode kernels get of HBM.
EFFICIENCY = 0.5
PREFILL_BASE_S, DECODE_BASE_S = 0.1, 0.01  # launches and collectives of a forward and of a step, a cautious guess
