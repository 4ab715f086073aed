"""Loads the weights of an update for a process's models, and puts them in place when an engine (``use_weights``) asks.

On a CPU the new model takes the place of the old one, whose memory is free when no engine uses it any more. Memory of
other devices belongs to KV: there weights are loaded on the host first, and then copied over the old ones.
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from dualpath.cluster.places import Place, Progress
from dualpath.config import ModelConfig
from dualpath.core.errors import ConfigError, UnsupportedModelError
from dualpath.core.runtime import Clock
from dualpath.core.weights import Weights
from dualpath.models.hf_model import HfModel
from dualpath.models.load import load_model
from dualpath.models.seam import Model, ModelSpec
from dualpath.models.updates import StartWeights

_TOGETHER_S = 60.0  # for all engines of a device to stand still


@dataclass(slots=True)
class _Loaded:
    weights: Weights
    model: HfModel
    waiting: dict[str, int] = field(default_factory=dict)  # engines that do not compute, by device
    overwritten: set[str] = field(default_factory=set)  # devices whose model has them now
    num_to_take: int = 0


class ModelUpdates:
    """``models.seam.WeightUpdates`` for the engines at ``models``' places; it keeps ``models`` up to date."""

    def __init__(
        self,
        config: ModelConfig,
        models: MutableMapping[Place, Model],
        clock: Clock,
        progress: Progress,
        *,
        overwrites: bool | None = None,
    ) -> None:
        """``overwrites``: None: where models are not on a CPU."""
        self._config, self._models, self._clock, self._progress = config, models, clock, progress
        self._overwrites = overwrites
        self._changed = threading.Condition()
        self._loaded: _Loaded | None = None
        self._start = next(iter(models.values())).spec
        self._start_weights = StartWeights(config.dir, self._start.fingerprint)

    def load(self, weights: Weights) -> str:
        with self._changed:
            if self._loaded is None or self._loaded.weights != weights:
                self._loaded = None  # two are enough
                self._loaded = _Loaded(weights, self._load(Path(weights.directory)), num_to_take=len(self._models))
            return self._loaded.model.spec.fingerprint

    def take(self, weights: Weights, model: Model) -> Model:
        with self._changed:
            loaded = self._loaded
            if loaded is None or loaded.weights != weights:
                raise ConfigError(f"the weights {weights.version} have not been loaded here")
            new = self._overwrite(loaded, _as_hf(model)) if self._is_overwritten(model) else loaded.model.share()
            for place, held in self._models.items():
                if held is model:
                    self._models[place] = new
            loaded.num_to_take -= 1
            if not loaded.num_to_take:
                self._loaded = None
            return new

    def drop(self, weights: Weights) -> None:
        with self._changed:
            if self._loaded is not None and self._loaded.weights == weights:
                self._loaded = None

    def _is_overwritten(self, model: Model) -> bool:
        return model.device.type != "cpu" if self._overwrites is None else self._overwrites

    def _overwrite(self, loaded: _Loaded, model: HfModel) -> HfModel:
        """When all engines of the device stand here none of them computes: the last to come overwrites for all."""
        device = str(model.device)
        loaded.waiting[device] = loaded.waiting.get(device, 0) + 1
        if loaded.waiting[device] == sum(str(held.device) == device for held in self._models.values()):
            model.overwrite(loaded.model)
            loaded.overwritten.add(device)
            self._changed.notify_all()
        elif not self._changed.wait_for(lambda: device in loaded.overwritten, _TOGETHER_S):
            loaded.waiting[device] -= 1
            raise ConfigError(f"other engines on {device} do not change their weights")
        return model.with_spec(loaded.model.spec)

    def _load(self, directory: Path) -> HfModel:
        start_s = self._clock.now_s()
        for model in self._models.values():
            _as_hf(model)
        if not directory.is_dir():
            raise UnsupportedModelError(f"{directory}: there is no such directory")
        model = load_model(
            directory,
            dtype=self._config.dtype,
            name=self._start.name,
            fingerprint=self._start_weights.fingerprint_of(directory),
            packs=not any(map(self._is_overwritten, self._models.values())),  # what is copied is not computed with
        )
        own = _as_hf(next(iter(self._models.values())))
        if kind := _differences(model.spec, own.spec) or _different_tensors(model, own):
            raise UnsupportedModelError(f"{directory}: a model of another kind: {kind}")
        new, old = model.config(), own.config()
        if differ := sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key)):
            raise UnsupportedModelError(
                f"{directory}: a model of another kind: config.json differs in {', '.join(differ)}"
            )
        took_s = self._clock.now_s() - start_s
        self._progress(f"weights of {directory} loaded beside those in use in {took_s:.1f} s")
        return model


def _as_hf(model: Model) -> HfModel:
    if not isinstance(model, HfModel):
        raise ConfigError("weights of a model that several processes run together cannot be changed")
    return model


def _differences(new: ModelSpec, own: ModelSpec) -> str:
    """In words, the weights themselves left out; empty where there are none."""
    names = [each.name for each in fields(ModelSpec) if each.name != "fingerprint"]
    differ = [name for name in names if getattr(new, name) != getattr(own, name)]
    return ", ".join(f"{name} is {getattr(new, name)}, not {getattr(own, name)}" for name in differ)


def _different_tensors(new: HfModel, own: HfModel) -> str:
    return "" if new.tensors() == own.tensors() else "its weights have other names or shapes"
