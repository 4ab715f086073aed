"""``DualPathConnector``: what vLLM loads by ``--kv-transfer-config``. It hands vLLM's calls on to the two halves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)

import vllm
from dualpath.core.handshake import read_secret
from dualpath.core.plan import Role
from dualpath.core.weights import Weights
from dualpath.vllm import compat, identity
from dualpath.vllm.messages import StepFailures, StepWork
from dualpath.vllm.scheduler_half import SchedulerHalf
from dualpath.vllm.settings import read_settings
from dualpath.vllm.worker.half import DecodeWorkerHalf, PrefillWorkerHalf
from dualpath.vllm.worker.kv_region import find_kv
from dualpath.vllm.worker.namespace import find_namespace
from dualpath.vllm.worker.node import ModelFacts, Node
from dualpath.vllm.worker.ranks import end_alone
from dualpath.vllm.worker.staged_decode import StagedDecode
from dualpath.vllm.worker.weights import NodeWeights


@dataclass
class StepMetadata(KVConnectorMetadata):
    work: StepWork = field(default_factory=StepWork)


@dataclass
class StepReport(KVConnectorWorkerMetadata):
    failures: StepFailures = field(default_factory=StepFailures)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> StepReport:
        assert isinstance(other, StepReport)
        return StepReport(self.failures | other.failures)


def _log_as_vllm_does() -> None:
    """To the same places, in the same form: else nobody would see more of ours than warnings."""
    theirs, ours = logging.getLogger("vllm"), logging.getLogger("dualpath")
    if theirs.handlers:
        ours.handlers, ours.propagate = theirs.handlers, False
        ours.setLevel(theirs.level)


class DualPathConnector(KVConnectorBase_V1):
    """vLLM makes one in its engine core and one in its worker; each has its half only."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        _log_as_vllm_does()
        self._settings = read_settings(vllm_config.kv_transfer_config.kv_connector_extra_config)
        compat.check_server(vllm_config, kv_cache_config)
        spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
        self._block_tokens: int = spec.block_size
        self._is_mla = compat.is_mla(spec)
        self._node: Node | None = None
        self._prefill: PrefillWorkerHalf | None = None
        self._decode: DecodeWorkerHalf | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerHalf(self._settings.engine_role, self._block_tokens)
        else:
            self._secret = read_secret(os.environ)

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a prompt that is preempted is pushed again

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return True  # Python runs between the layers

    # -- in the engine core -------------------------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return self._scheduler.matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepMetadata:
        return StepMetadata(self._scheduler.step(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, StepReport) and report.failures.req_ids:
            self._scheduler.failed(report.failures.req_ids)
            assert self._kv_cache_manager is not None
            # vLLM keeps them for others under their tokens' hash until they have been computed: too early for us.
            self._kv_cache_manager.evict_blocks(report.failures.block_ids)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self._scheduler.finished(request.request_id), None

    # -- in the worker ------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config, settings = self._vllm_config, self._settings
        kv = find_kv(kv_caches, self._block_tokens)
        if kv.region.storage.device.type == "cpu":
            torch.cpu._init_amx()  # a worker that only decodes dies of SIGILL without
        where = compat.model_dir(config)
        ranks = compat.find_ranks(config)
        rank, num_ranks = (0, 1) if ranks is None else (ranks.rank, ranks.num_ranks)
        how = identity.mode(config), identity.packing(config, kv.layer_names)
        namespace = find_namespace(where, kv, vllm.__version__, how, num_ranks, is_same=self._is_mla)
        name = config.model_config.served_model_name or config.model_config.model
        model = ModelFacts(name if isinstance(name, str) else name[0], config.model_config.max_model_len)
        read_config = partial(compat.read_config, config)
        self._weights = NodeWeights(where, namespace, config.model_config.model, read_config, rank)
        try:
            self._node = node = Node(settings, namespace, kv, model, self._secret, self._weights, ranks=ranks)
            node.start()
        except Exception as error:
            if rank:
                end_alone(error)
            raise
        self._layers = {layer: number for number, layer in enumerate(kv.layer_names)}
        if settings.engine_role is Role.PREFILL:
            assert not isinstance(node.engine, StagedDecode)
            self._prefill = PrefillWorkerHalf(node.engine, None if ranks is None else ranks.gather)
        else:
            assert isinstance(node.engine, StagedDecode)
            self._decode = DecodeWorkerHalf(node.engine)

    @property
    def _half(self) -> PrefillWorkerHalf | DecodeWorkerHalf:
        half = self._prefill or self._decode
        assert half is not None
        return half

    def changes_kv(self, weights: Weights) -> bool:
        """Whether these, once they have been named, compute another KV."""
        return self._weights.changes_kv(weights)

    def change_weights(self, weights: Weights, reload: Callable[[str], None]) -> None:
        """``WorkerHalf.change_weights``."""
        self._half.change_weights(weights, reload)

    def end_for_weights(self, why: str) -> None:
        """Workers of this server have different weights: its process ends."""
        self._weights.end(f"workers have different weights: {why}")

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        if isinstance(kv_connector_metadata, StepMetadata) and kv_connector_metadata.work.preempted:
            self._half.preempted(kv_connector_metadata.work.preempted)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepMetadata)
        self._weights.check(self._vllm_config.model_config.model)
        self._half.begin(connector_metadata.work)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._half.start_load()

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._prefill is not None:
            self._prefill.wait_layer(self._layers[layer_name])

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        if self._prefill is not None:
            self._prefill.layer_computed(self._layers[layer_name])

    def wait_for_save(self) -> None:
        self._half.end_step()

    def get_transfer_results(self, finished_req_ids: Iterable[str]) -> KVConnectorTransferResults:
        results = KVConnectorTransferResults(finished_sending=self._half.finished(finished_req_ids))
        if self._decode is not None:
            results.finished_recving, results.failed_recving = self._decode.taken()
        return results

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._prefill is None else self._prefill.load_errors

    def build_connector_worker_meta(self) -> StepReport | None:
        failures = None if self._prefill is None else self._prefill.failures
        return StepReport(failures) if failures is not None and failures.req_ids else None

    def shutdown(self) -> None:
        if self._node is not None:
            self._node.close()
