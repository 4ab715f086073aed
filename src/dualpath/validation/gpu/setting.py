"""What steps share: the device, sizes, a folder for models, clusters to run on, and a stopwatch."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.config import ClusterConfig, MemoryConfig, ModelConfig, ObserveConfig, ServeConfig, StoreConfig
from dualpath.models.init import init_model
from dualpath.store.memory import forget
from dualpath.validation.gpu.result import Rates, synchronize
from dualpath.validation.gpu.scale import Scale


@dataclass(slots=True)
class Setting:
    device: torch.device
    scale: Scale
    folder: Path  # of models; the check's own
    out: Path  # where results go
    rates: Rates = field(default_factory=Rates)

    @property
    def device_name(self) -> str:
        return "cpu" if self.device.type == "cpu" else f"cuda:{self.device.index or 0}"

    def model_dir(self, family: str, dtype: str, **sizes: Any) -> Path:
        """A random model, made once."""
        path = self.folder / f"{family}-{dtype}-{sizes.get('layers', 'tiny')}"
        return path if path.exists() else init_model(family, path, seed=1, dtype=dtype, **sizes)

    def timed_model_dir(self) -> Path:
        return self.model_dir("qwen3", self.scale.dtype, **self.scale.model)

    @asynccontextmanager
    async def cluster(
        self, model_dir: Path, dtype: str, *, context_tokens: int, staging_bytes: int | None = None, **cluster: Any
    ) -> AsyncIterator[EmbeddedCluster]:
        """Two nodes in this process, over a store in its memory that is gone afterwards."""
        url, trace_out = f"memory://gpu-check-{uuid.uuid4().hex}", cluster.pop("trace_out", None)
        staging_bytes = staging_bytes or self.scale.staging_bytes
        config = ServeConfig(
            model=ModelConfig(dir=model_dir, dtype=dtype, device=self.device_name),
            store=StoreConfig(url=url),
            cluster=ClusterConfig(**({"transport": "local"} | cluster)),
            memory=MemoryConfig(
                max_context_tokens=context_tokens,
                prefill_staging_bytes=staging_bytes,
                decode_staging_bytes=staging_bytes,
                verify=cluster_verify(self.device),
            ),
            observe=ObserveConfig(trace_out=trace_out),
        )
        made = EmbeddedCluster(config)
        await made.start()
        try:
            yield made
        finally:
            await made.close(30.0)
            forget(url)

    def time_s(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Of the fastest of some calls; the first, which sets things up, does not count."""
        work()
        best = float("inf")
        for _ in range(self.scale.repeats if repeats is None else repeats):
            synchronize(self.device)
            start_s = time.perf_counter()
            work()
            synchronize(self.device)
            best = min(best, time.perf_counter() - start_s)
        return best


def cluster_verify(device: torch.device) -> str:
    """As a server would by itself."""
    return "all" if device.type == "cpu" else "storage"
