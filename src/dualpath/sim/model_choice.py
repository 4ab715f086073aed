"""A spec's model as costs: a catalogue's model on a catalogue's GPU, or the numbers that the spec gives itself."""

from __future__ import annotations

from dataclasses import fields, replace

from dualpath.core.errors import ConfigError
from dualpath.sim.catalogue.costs import BEST_KERNELS, Efficiency, model_cost
from dualpath.sim.catalogue.find import find_model
from dualpath.sim.catalogue.gpus import find_gpu
from dualpath.sim.catalogue.weights import free_hbm_bytes
from dualpath.sim.cost import ModelCost
from dualpath.sim.spec import ClusterSpec, ModelSpec, SimSpec

# What says something of a named model, too: the rest of the table is either named or given.
WITH_NAME = frozenset(
    {"name", "gpu", "kv_dtype", "efficiency", "prefill_base_s", "decode_base_s"}
    | {"prefill_collective_bytes", "decode_collective_bytes"}
)


def resolve(spec: SimSpec) -> tuple[SimSpec, ModelCost]:
    """The spec with a named model's free device memory filled in, and the model's costs.

    Raises ConfigError for a model that is not known, given twice or not at all, or does not fit its GPUs.
    """
    model = spec.model
    if model.name is None:
        return spec, model.cost()
    given = [one.name for one in fields(ModelSpec) if getattr(model, one.name) != one.default]
    both = [name for name in given if name not in WITH_NAME]
    if both:
        raise ConfigError(f"[model] {both[0]}: follows from name = {model.name!r}; give the one or the other")
    if model.gpu is None:
        raise ConfigError("[model] gpu: is required where a name is given")
    found, gpu, group = find_model(model.name), find_gpu(model.gpu), spec.cluster.prefill_group
    cost = model_cost(
        found.shape,
        gpu,
        BEST_KERNELS if model.efficiency is None else Efficiency(*[model.efficiency] * 4),
        kv_dtype=model.kv_dtype or found.kv_dtype,
        ffn_gpus=group,
        prefill_base_s=model.prefill_base_s,
        decode_base_s=model.decode_base_s,
    )
    free_bytes = int(free_hbm_bytes(found.shape, gpu, group))
    return replace(spec, cluster=_with_kv(spec.cluster, free_bytes, model.name)), model.with_collectives(cost)


def _with_kv(cluster: ClusterSpec, free_bytes: int, model: str) -> ClusterSpec:
    for name in ("prefill_kv_bytes", "decode_kv_bytes"):
        wanted = getattr(cluster, name)
        if wanted is not None and wanted > free_bytes:
            raise ConfigError(
                f"[cluster] {name}: impossible cluster: {model} leaves {free_bytes} bytes of a GPU free, not {wanted}"
            )
    return replace(
        cluster,
        prefill_kv_bytes=cluster.prefill_kv_bytes or free_bytes,
        decode_kv_bytes=cluster.decode_kv_bytes or free_bytes,
    )
