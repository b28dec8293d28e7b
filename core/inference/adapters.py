"""Adapters on one resident base: attached, chosen per thread, added to the weights, taken out.

PEFT's ``disable_adapter`` and ``set_adapter`` change the model for everybody, so two replies must
wait for each other. Here the LoRA layers look into a thread-local variable: one thread computes
the base while another computes base + adapter, over the same weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_active = threading.local()


@contextmanager
def using(adapter: str | None) -> Iterator[None]:
    """Within the block, this thread's forward passes use ``adapter`` (None: the bare base)."""
    before = dict(vars(_active))
    _active.name = adapter
    try:
        yield
    finally:
        vars(_active).clear()
        vars(_active).update(before)


def shareable(adapter: Path) -> bool:
    """Whether base and base + adapter can live on one copy of the weights.

    Not with ``modules_to_save`` (whole layers are replaced), a bias that was trained, or LoRA on
    the embedding (a look-up, not a product; PEFT keeps it apart).
    """
    config = read_config(adapter)
    targets = config.get("target_modules") or []
    return (
        not any("emb" in t or "wte" in t for t in targets)
        and config.get("peft_type") == "LORA"
        and not config.get("modules_to_save")
        and config.get("bias", "none") == "none"
    )


def read_config(adapter: Path) -> dict[str, Any]:
    """``adapter_config.json``.

    Raises:
        UserError: the folder is not a PEFT adapter, or its weights are not safetensors.
    """
    file = adapter / CONFIG
    if not file.is_file():
        raise UserError(
            f"{adapter} is not an adapter folder",
            why="it has no adapter_config.json",
            fix="choose the folder that 'Convert' wrote",
        )
    if not (adapter / WEIGHTS).is_file():
        raise UserError(
            f"{adapter} has no adapter_model.safetensors",
            why="a .bin file is a pickle, which can run code, and is not loaded",
            fix="convert the checkpoint again; the export is written as safetensors",
        )
    config: dict[str, Any] = fsio.read_json(file)
    return config


def attach(model: Any, adapter: Path, name: str) -> Any:
    """Attach an adapter to a base or to a model that has some; returns the PEFT model."""
    from peft import PeftModel

    read_config(adapter)
    # In the base's dtype: PEFT would raise half precision to float32, for training's sake.
    options: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(adapter), **options)
        else:
            model = PeftModel.from_pretrained(model, str(adapter), **options)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"adapter {adapter.name} does not fit this base model",
            why=str(error)[:400],
            fix="choose the base that the adapter was trained on",
        ) from error
    model.eval()
    switch_by_thread(model)
    return model


def switch_by_thread(model: Any) -> None:
    """Make every LoRA layer of a PEFT model ask the thread (``using``) which adapter to add.

    In a thread that has not said, the model stays what PEFT made it.
    """
    for layer in lora_layers(model):
        layer.forward = _thread_local_forward(layer)


def lora_layers(model: Any) -> list[Any]:
    """Every layer that holds LoRA weights."""
    from peft.tuners.lora.layer import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def _thread_local_forward(layer: Any) -> Any:
    """A forward that asks the thread which adapter to add. For LoRA and its variants (DoRA)."""
    base, peft_forward = layer.get_base_layer(), type(layer).forward

    def forward(x: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(_active, "name"):
            return peft_forward(layer, x, *args, **kwargs)
        result = base(x, *args, **kwargs)
        name = _active.name
        if name is None or name not in layer.lora_A:
            return result
        lora_a, lora_b = layer.lora_A[name], layer.lora_B[name]
        x = x.to(lora_a.weight.dtype)
        if name in layer.lora_variant:
            changed = layer.lora_variant[name].forward(
                layer, active_adapter=name, x=x, result=result
            )
        else:
            changed = result + lora_b(lora_a(x)) * layer.scaling[name]
        return changed.to(result.dtype)

    return forward


def detach(model: Any) -> Any:
    """Take all adapters out of a PEFT model; returns the base, its weights as they are now."""
    base = model.unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base


def fusible(model: Any) -> list[Any]:
    """The LoRA layers of a PEFT model, if adding them to float32 weights is all that they do."""
    import torch
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | ModulesToSaveWrapper)]
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
def added(layers: list[Any], name: str) -> Iterator[None]:
    """Each layer's product added to its weight, in place; whatever happens, it is taken out."""
    weights = [layer.get_base_layer().weight.data for layer in layers]
    before = [weight.clone() for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            weight.add_(layer.get_delta_weight(name))
        yield
    finally:
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)
