"""Load a tokenizer or a model, quantized to NF4 if asked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from core.errors import UserError
from core.inference.adapters import wrap
from core.models import device as devices
from core.models import folder, trust
from core.models.nf4 import nf4_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


#: What transformers raises for a folder that it cannot make a model of.
_LOADING = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    SafetensorError,
    pickle.UnpicklingError,
)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; it must have a chat template and a pad token.

    Of several named templates it keeps the one named ``default``.

    A missing pad token becomes the eos token, which is what generate() falls back to anyway.

    Raises:
        UserError: there is no tokenizer, or it has no chat template.
    """
    from transformers import AutoTokenizer

    from core.models import internlm2

    internlm2.register()
    folder.refuse_pointers(path)
    code = trust.allow(path, tokenizer_only=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the tokenizer of {path}",
            why=str(error)[:400],
            fix="complete the model folder",
        ) from error
    templates = tokenizer.chat_template
    if isinstance(templates, dict):  # several by name, for tools or retrieval: chat is the default
        tokenizer.chat_template = templates.get("default")
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {path} has no chat template",
            why=f"only templates named {', '.join(templates)}, and none named default"
            if templates
            else "without it nobody knows how the model was taught to see a conversation",
            fix="choose the chat or instruct version of the model",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def introduction(path: Path) -> str:
    """What a model's chat template says where nobody wrote a system turn, if it names somebody."""
    from core.models.template import ChatTemplate

    template = ChatTemplate(load_tokenizer(path))
    return template.default_system if template.introduces else ""


def load_model(
    path: Path,
    *,
    device: str | None = None,
    dtype: str = "auto",
    nf4: bool = False,
    adapter: Path | None = None,
) -> Any:
    """A causal LM in eval mode, frozen, on ``device``, by default the one found.

    A PeftModel if there is an adapter.

    Args:
        dtype: ``auto`` is the device's compute dtype (float32 on a CPU); ``stored`` the file's own.
        nf4: quantize the linear layers as in training.
        adapter: a PEFT adapter folder, attached unmerged, and active for everybody.

    Raises:
        UserError: the folder cannot be loaded as a causal LM.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from core.models import internlm2

    internlm2.register()
    folder.check(path)
    code = trust.allow(path)
    where = device or devices.describe().kind
    if dtype == "auto":
        dtype = devices.describe().compute_dtype.value if where != "cpu" else "float32"
    torch_dtype = "auto" if dtype == "stored" else getattr(torch, dtype)
    extra: dict[str, Any] = {"device_map": {"": where}} if nf4 or where != "cpu" else {}
    if nf4:
        extra["quantization_config"] = nf4_config(torch_dtype)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch_dtype, trust_remote_code=code, **extra
        )
    except _LOADING as error:
        raise UserError(
            f"cannot load {path} as a causal language model",
            why=str(error)[:400],
            fix="check that the folder is whole",
        ) from error
    if where == "cpu" and not nf4:
        from core.inference.fused import own_memory

        own_memory(model)
    if adapter is not None:
        model = wrap(model, adapter)
    model.eval()
    model.requires_grad_(False)  # for answers only; the lean forward may then fuse the weights
    return model
