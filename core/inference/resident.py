"""Models in memory: one copy of the weights, the adapters on it, and who answers with what."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.inference import adapters
from core.inference.backend import Backend
from core.inference.cuda_graph import GraphBackend
from core.inference.fused import inner_model, unsupported
from core.inference.lean import LeanBackend
from core.inference.llama import LeanLlama, agrees
from core.inference.load import load_model, load_tokenizer
from core.inference.padded import PaddedBackend
from core.models import lora
from core.models.template import ChatTemplate


class Resident:
    """One copy of weights, with the adapters that hang on it and whoever computes with them.

    Args:
        model: a transformers or PEFT model. One in training may be given too: it is computed by
            transformers, with the adapter that is active in it.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.template = ChatTemplate(tokenizer)
        self.stop_ids = frozenset((*self.template.stop_ids, *_model_stops(model)))
        self._names: dict[Path, str] = {}
        self._backend: Backend | None = None
        self._digest = ""

    @classmethod
    def load(cls, path: Path, **options: Any) -> Resident:
        """From a model folder; ``options`` as of ``load_model``.

        Raises:
            UserError: the folder cannot be loaded.
        """
        tokenizer = load_tokenizer(path)
        return cls(load_model(path, **options), tokenizer)

    @property
    def backend(self) -> Backend:
        """Whoever computes what transformers computes for this model, fastest."""
        if self._backend is None:
            self._backend = choose(self.model)
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Logits of a token, padding of the vocabulary included."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def voice(self, adapter: Path | None = None) -> Voice:
        """The weights with an adapter, which is attached if it was not, or bare.

        Raises:
            UserError: the adapter does not fit.
        """
        if adapter is None:
            return Voice(self)
        if adapter not in self._names:
            name = f"adapter{len(self._names)}"
            self.model = adapters.attach(self.model, adapter, name)
            self._names[adapter] = name
            self._backend = None
        return Voice(self, self._names[adapter])

    def detach(self) -> None:
        """Take all adapters out."""
        if self._names:
            self.model = adapters.detach(self.model)
            self._names.clear()
            self._backend = None

    def changed(self) -> None:
        """Values of the bare weights were changed in place."""
        self._digest = ""
        self.backend.forget()

    def digest(self) -> str:
        """sha256 of all that greedy replies depend on but the prompt: the bare weights as they are
        in memory, the config, and what ends a reply. A second for 2 GB."""
        if not self._digest:
            assert not self._names, "an adapter is attached"
            tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                parts = list(pool.map(_hash, tensors))
            config = {k: v for k, v in self.model.config.to_dict().items() if k != "_name_or_path"}
            parts += [repr(sorted(config.items())), repr(sorted(self.stop_ids))]
            parts += self.template.stop_texts
            self._digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self._digest

    def bytes(self) -> int:
        """Bytes of all parameters and buffers, shared ones counted once."""
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in (*self.model.parameters(), *self.model.buffers())
        }
        return sum(storages.values())


@dataclass(frozen=True)
class Voice:
    """Who answers: resident weights, and the name of an adapter on them."""

    resident: Resident
    adapter: str | None = None


class Residents:
    """The models of one process, by folder; sides that can share weights do."""

    def __init__(self, device: str | None = None) -> None:
        self._device = device
        self._loaded: dict[str, Resident] = {}

    @staticmethod
    def key(model: Path, adapter: Path | None) -> str:
        """Names the copy of the weights that model and adapter need.

        Raises:
            UserError: the adapter folder is none.
        """
        if adapter is not None and not lora.shareable(adapter):
            return f"{model}+{adapter}"
        return str(model)

    def keep(self, keys: Collection[str]) -> None:
        """Let go of all weights but these."""
        for stale in set(self._loaded) - set(keys):
            del self._loaded[stale]
        release_memory()

    def get(self, model: Path, adapter: Path | None = None) -> Resident:
        """The copy of the weights that model and adapter need, loaded if it is not there."""
        key = self.key(model, adapter)
        if key not in self._loaded:
            self._loaded[key] = Resident.load(model, device=self._device)
        return self._loaded[key]

    def sizes(self) -> dict[str, int]:
        """Bytes of the weights of each resident model."""
        return {key: resident.bytes() for key, resident in self._loaded.items()}


def choose(model: Any) -> Backend:
    """The lean forward where it computes what transformers computes, else transformers itself.

    Not for a model in training, whose weights must stay where the optimizer knows them.
    """
    if any(p.requires_grad for p in model.parameters()) or unsupported(model):
        return PaddedBackend(model)
    lean = LeanLlama(model)
    if not all_agree(lean, model):
        return PaddedBackend(model)
    return GraphBackend(lean) if lean.device.type == "cuda" else LeanBackend(lean)


def all_agree(lean: LeanLlama, model: Any) -> bool:
    """For the base and for every adapter."""
    inner = inner_model(model)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = inner(ids).logits[0]
        return found

    for name in (None, *getattr(model, "peft_config", {})):
        with adapters.using(name):
            if not agrees(lean, name, logits):
                return False
    return True


def _hash(named: tuple[str, torch.Tensor]) -> str:
    name, tensor = named
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(values).hexdigest()}"


def release_memory() -> None:
    """Give cached GPU memory back; on a CPU collecting garbage is all there is to do."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _model_stops(model: Any) -> list[int]:
    """Stop tokens of the generation config: one id, a list, or none."""
    stored = getattr(model.generation_config, "eos_token_id", None)
    if stored is None:
        return []
    return list(stored) if isinstance(stored, (list, tuple)) else [int(stored)]
