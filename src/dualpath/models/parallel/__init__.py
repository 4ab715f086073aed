"""One model run by several processes together: tensor parallelism by transformers' own plans, over torch.distributed.

The *leader* (rank 0) is the engine's ``Model``: it alone sees requests, streams and Layer Blocks. *Followers* hold
their shard of the weights and run the same forwards. Prefill only.
"""
