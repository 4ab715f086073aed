"""The numbers the paper's policies need, from where they are known: NICs' rates, a profile, or documented defaults.

alpha is what a node reads in 3 s: by the storage NIC's rate if one is given, else, beside a profile, by a measured read
rate of the store's file system. beta (what one engine computes in 5 s) and the compute quota come from the profile.
Without either: alpha 1,000,000 tokens, beta 100,000 tokens, no quota.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from dualpath.cluster.places import Progress
from dualpath.cluster.profile import FILE_NAME, Profile, Setup
from dualpath.cluster.sizes import STAGED_CONTEXTS
from dualpath.config import ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.core.geometry import KvGeometry
from dualpath.core.runtime import Clock
from dualpath.engine.batch import Quota, no_quota
from dualpath.models.seam import Model
from dualpath.scheduler.config import SchedulerConfig
from dualpath.scheduler.policy.quota import ComputeQuota
from dualpath.scheduler.policy.systems import SystemPolicy
from dualpath.store.open import parse_url

SCRATCH_BYTES = 64 * 1024**2
CHUNK_BYTES = 4 * 1024**2


def read_bytes_per_s(directory: Path, clock: Clock) -> float | None:
    """One reader's rate, or None where the directory cannot be written. The scratch file has no name and no traces."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            block = os.urandom(CHUNK_BYTES)
            for _ in range(SCRATCH_BYTES // CHUNK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the medium, not from memory
            file.seek(0)
            start_s = clock.now_s()
            while file.read(CHUNK_BYTES):
                pass
            return SCRATCH_BYTES / max(clock.now_s() - start_s, 1e-9)
    except OSError:
        return None


READ_AHEAD_S = 3.0  # alpha: tokens a node reads in this time (paper section 6)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler and the prefill engines are told."""

    scheduler: SchedulerConfig
    quota: Quota = no_quota


@dataclass(frozen=True, slots=True)
class LimitsFinder:
    config: ServeConfig
    system: SystemPolicy
    geometry: KvGeometry
    max_context_tokens: int
    nic_bytes_per_s: float | None  # of one node's storage NIC, where it is known
    clock: Clock
    progress: Progress

    def unprofiled(self) -> SchedulerConfig:
        """Where nothing can be known of the model's speed."""
        return self._with_alpha(self._with_deadlines(self._plain()), is_profiled=False)

    def find(self, model: Model, threads: int) -> Limits:
        """May read a file beside the model and, with a profile, measure the store's file system for a moment."""
        profile = self._profile(Setup.of(model, threads))
        settings = self._with_alpha(self._with_deadlines(self._plain()), is_profiled=profile is not None)
        if profile is None:
            return Limits(settings)
        # tok_e counts whole prompts, hits too: below two of the longest, nothing would be read while one is computed.
        beta = max(profile.beta_tokens, 2 * self.max_context_tokens)
        quota_ms = self.config.scheduler.prefill_quota_ms
        self.progress(f"profile: beta {beta} tokens, alpha {settings.alpha_tokens} tokens, quota {quota_ms:g} ms")
        quota = ComputeQuota(profile.prefill_cost, quota_ms / 1e3) if self.system.uses_quota else no_quota
        return Limits(replace(settings, beta_tokens=beta), quota)

    def _plain(self) -> SchedulerConfig:
        config = self.config
        return SchedulerConfig(
            path_policy=self.system.path,
            prefill_choice=self.system.prefill_choice,
            decode_choice=self.system.decode_choice,
            max_queued_requests=config.scheduler.max_queued_requests,
            queue_timeout_s=config.scheduler.queue_timeout_s,
            durable_timeout_s=config.deadlines.storage_read_s,
            max_retries=config.scheduler.max_retries,
            retry_budget_s=config.scheduler.retry_budget_s,
            lease_s=config.ray.lease_s,
            # The oracle's index names blocks that were never stored; it must not evict those of others.
            capacity_bytes=None if self.system.skips_io else config.store.capacity_bytes,
            capacity_fraction=None if self.system.skips_io else config.store.capacity_fraction,
        )

    def _with_deadlines(self, settings: SchedulerConfig) -> SchedulerConfig:
        """Behind the engines' own deadlines, whatever these are: who gives up first does not know why."""
        engines = self.config.deadlines
        queue_s = 0.0  # a storage read's deadline begins when the NIC has served those before it
        if self.nic_bytes_per_s is not None:
            num_tokens = self.config.cluster.engines_per_node * STAGED_CONTEXTS * self.max_context_tokens
            queue_s = num_tokens * self.geometry.bytes_per_token / self.nic_bytes_per_s
        return replace(
            settings,
            reserve_timeout_s=max(settings.reserve_timeout_s, 2 * engines.slot_s),
            read_timeout_s=max(settings.read_timeout_s, 2 * engines.storage_read_s + queue_s),
            prefill_timeout_s=max(settings.prefill_timeout_s, 2 * engines.transfer_s),
        )

    def _with_alpha(self, settings: SchedulerConfig, *, is_profiled: bool) -> SchedulerConfig:
        rate = self.nic_bytes_per_s
        if rate is None and is_profiled:
            scheme, name, _ = parse_url(self.config.store.url)
            rate = read_bytes_per_s(Path(name), self.clock) if scheme == "file" else None
        if rate is None:
            return settings
        alpha = max(1, int(READ_AHEAD_S * rate / self.geometry.bytes_per_token))
        return replace(settings, default_nic_bytes_per_s=rate, alpha_tokens=alpha)

    def _profile(self, setup: Setup) -> Profile | None:
        """The model's profile if it holds here; one line says why not."""
        if self.config.cluster.tensor_parallel > 1:
            self.progress("profiles are of one process, this model runs on several: default scheduling limits")
            return None
        asked = self.config.model.profile
        path = asked or self.config.model.dir / FILE_NAME
        how = f"measure with: dualpath model profile --model {self.config.model.dir}"
        if setup.threads:
            how += f" --threads {setup.threads}"
        if not path.exists():
            if asked is not None:
                raise ConfigError(f"no such profile: {path}")
            self.progress(f"no profile of this model: default scheduling limits; {how}")
            return None
        profile = Profile.read(path)
        reason = profile.mismatch(setup)
        if reason is not None:
            self.progress(f"{path} does not hold here ({reason}): default scheduling limits; {how}")
            return None
        return profile
