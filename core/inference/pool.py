"""One model in memory at a time, adapters swapped on a resident base.

A pool hands out models by side ("base", "merged", "adapter", "iter_40"). Sides with the same model
folder share one copy of it: with an adapter attached, or with it switched off for the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.inference.adapters import wrap
from core.models import lora
from core.models.catalog import ModelRef


@dataclass(frozen=True)
class Loadable:
    """What a side is made of: a model, and an adapter.

    ``fused``: the adapter's products are added to the resident weights while the side is used, and
    taken out again bit for bit. A reply then costs what the base's does; LoRA of rank 64 beside
    the weights costs 40 % more on a CPU. It is the same function but for rounding, so only
    float32 weights are fused, and only plain LoRA; others are attached unmerged.
    """

    model: ModelRef
    adapter: Path | None = None
    fused: bool = False

    def fingerprint(self) -> str:
        """Names the weights in caches: of the model, and the full hash of the adapter."""
        if self.adapter is None:
            return self.model.fingerprint()
        lora.read(self.adapter)
        weights = lora.weights_file(self.adapter)
        digest = hashlib.sha256(self.model.fingerprint().encode())
        digest.update(fsio.sha256_file(weights).encode())
        digest.update((self.adapter / "adapter_config.json").read_bytes())
        if self.fused:
            digest.update(b"fused")
        return digest.hexdigest()


@dataclass
class Subject:
    """A model ready to answer, with its tokenizer."""

    side: str
    fingerprint: str
    model: Any
    tokenizer: Any


class Pool:
    """The models of one evaluation. Use as a context manager; memory is freed at the end."""

    def __init__(self, sides: Mapping[str, Loadable]) -> None:
        self.sides = dict(sides)
        self._path: Path | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._fingerprints = {side: loadable.fingerprint() for side, loadable in sides.items()}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._free()

    def add(self, side: str, loadable: Loadable) -> None:
        """One more side."""
        self._fingerprints[side] = loadable.fingerprint()
        self.sides[side] = loadable

    def fingerprint(self, side: str) -> str:
        """Names the weights of a side in caches."""
        return self._fingerprints[side]

    @contextmanager
    def use(self, side: str) -> Iterator[Subject]:
        """The side's model; valid inside the ``with`` block only."""
        loadable = self.sides[side]
        self._load(loadable.model.path)
        with self._adapted(loadable) as model:
            yield Subject(side, self._fingerprints[side], model, self._tokenizer)

    @contextmanager
    def _adapted(self, loadable: Loadable) -> Iterator[Any]:
        """The resident model with the side's adapter; afterwards it is the base again."""
        if loadable.adapter is None:
            yield self._model
            return
        alone = not lora.shareable(loadable.adapter)
        try:
            wrapped = wrap(self._model, loadable.adapter)
        except UserError:
            self._free()  # PEFT may have stopped half-way
            raise
        layers = _fusible(wrapped) if loadable.fused else []
        try:
            with _fused(layers):
                if layers:
                    self._detach(wrapped)
                yield self._model if layers else wrapped
        finally:
            if alone:  # it may have replaced weights of the base, which unloading leaves in
                self._free()
            else:
                self._detach(wrapped)

    def _detach(self, wrapped: Any) -> None:
        """Take the LoRA layers out, if they are still in; the weights stay as they are."""
        self._model = wrapped.unload()
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    def _load(self, path: Path) -> None:
        if self._path == path:
            return
        self._free()
        from core.inference.load import load_model, load_tokenizer

        self._tokenizer = load_tokenizer(path)
        self._model = load_model(path)
        self._path = path

    def _free(self) -> None:
        if self._model is None:
            return
        import gc

        import torch

        self._model, self._path = None, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _fusible(wrapped: Any) -> list[Any]:
    """The LoRA layers of a PEFT model, if adding them to float32 weights is all that they do."""
    import torch
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = [m for m in wrapped.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
    plain = all(
        type(m) is Linear
        and type(m.get_base_layer()) is torch.nn.Linear
        and m.get_base_layer().weight.dtype == torch.float32
        and not any(m.lora_variant.values())
        and not any(m.lora_bias.values())
        for m in layers
    )
    return layers if plain else []


@contextmanager
def _fused(layers: list[Any]) -> Iterator[None]:
    """Each layer's product added to its weight, in place; whatever happens, it is taken out."""
    weights = [layer.get_base_layer().weight.data for layer in layers]
    before = [weight.clone() for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            for name in layer.active_adapters:
                weight.add_(layer.get_delta_weight(name))
        yield
    finally:
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)
