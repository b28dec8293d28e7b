"""Adapters on one resident base: attached, chosen per thread, taken out.

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

from core.errors import UserError
from core.models import lora, sandbox
from core.models.finite import broken

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


def wrap(model: Any, adapter: Path, name: str = "default", **options: Any) -> Any:
    """Put an adapter on a base, or on a model that has some; returns the PEFT model.

    The adapter is active for everybody, as PEFT has it. Everything that could be wrong with the
    folder is looked at before the model is touched.

    Args:
        options: of ``PeftModel.from_pretrained``.

    Raises:
        UserError: the folder is no whole adapter, it asks for something that is not known, or it
            does not fit the model.
    """
    from peft import PeftModel

    base = str(getattr(model.config, "name_or_path", "") or "this base")
    config = lora.read(adapter)
    lora.require_known(config, adapter)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    names = [name for name, _ in inner.named_modules()]
    sandbox.require_matchable(config, names, str(adapter))
    lora.require_fit(adapter, inner, base)
    if odd := broken(lora.weights_file(adapter)):
        raise UserError(
            f"the weights of the adapter {adapter} are broken",
            why=f"{odd} holds NaN or infinity: its training diverged, or the copy is damaged",
            fix="copy it again, or use an earlier checkpoint of its training",
        )
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(adapter), adapter_name=name, **options)
        else:
            model = PeftModel.from_pretrained(model, str(adapter), adapter_name=name, **options)
    except KeyError as error:
        raise _lacking(adapter, [str(error.args[0])]) from error
    except Exception as error:  # PEFT raises what it meets
        fits = not isinstance(error, RuntimeError)  # what torch says of other sizes
        raise UserError(
            f"the adapter {adapter} " + ("cannot be loaded" if fits else f"does not fit {base}"),
            why=str(error)[:400] or type(error).__name__,
            fix="" if fits else "choose the base that the adapter was trained on",
        ) from error
    _require_whole(model, adapter, name)
    model.eval()
    return model


def _require_whole(model: Any, adapter: Path, name: str) -> None:
    """PEFT leaves what the file lacks as it was made, with a warning.

    What it would write of this adapter is what must be there: the parts of a variant too.
    """
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    # Releases before 0.9 wrote the magnitudes of DoRA without this ending.
    stored = {key.removesuffix(".weight") for key in lora.shapes(adapter)}
    lacking = sorted(key for key in wanted if key.removesuffix(".weight") not in stored)
    if lacking:
        raise _lacking(adapter, lacking)


def _lacking(adapter: Path, keys: list[str]) -> UserError:
    return UserError(
        f"the adapter {adapter} lacks {len(keys)} of the parts that its config asks for",
        why=", ".join(keys[:4]) + (" …" if len(keys) > 4 else ""),
        fix="choose the base that the adapter was trained on, or copy or convert it again",
    )


def attach(model: Any, adapter: Path, name: str) -> Any:
    """Attach an adapter that each thread chooses for itself, if it is ``lora.shareable``.

    One that is not is active for everybody: it must have a copy of the weights of its own.
    """
    shared = lora.shareable(adapter)
    # In the base's dtype: PEFT would raise half precision to float32, for training's sake.
    model = wrap(model, adapter, name, autocast_adapter_dtype=False)
    if shared:
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
