"""Load a tokenizer or a model, quantized to NF4 if asked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from core import fsio
from core.errors import UserError
from core.inference.adapters import wrap
from core.models import chat_templates, folder, trust
from core.models import device as devices
from core.models.nf4 import nf4_config
from core.models.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_NF4_BYTES = 0.6
#: What transformers raises for a folder that it cannot make a model of.
_LOADING = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    AttributeError,
    StrictDataclassError,
    SafetensorError,
    pickle.UnpicklingError,
)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; it must have a chat template and a pad token.

    A missing pad token becomes the eos token, which is what generate() falls back to anyway, or
    another special token: padding is masked, so any will do.

    Raises:
        UserError: there is no tokenizer, or it has no chat template.
    """
    tokenizer, named = open_tokenizer(path)
    if not tokenizer.chat_template:
        offered = chat_templates.offered(tokenizer)[0]
        raise UserError(
            f"the tokenizer of {path} has no chat template",
            why=f"only templates named {', '.join(named)}, and none named default"
            if named
            else "it is probably a base model, which goes on with a text and was never taught to "
            "see a conversation",
            fix="choose the chat or instruct version of the model; or teach this one to talk by "
            f"the persona's rows alone: python -m core model {path} --chat-template {offered}",
        )
    if tokenizer.pad_token_id is None:
        spare = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if spare is None:
            raise UserError(
                f"the tokenizer of {path} has neither a pad nor an end token",
                why="rows of unlike length are padded, and a reply must end",
                fix="name its eos_token in tokenizer_config.json",
            )
        tokenizer.pad_token = spare
    return tokenizer


def open_tokenizer(path: Path) -> tuple[Any, list[str]]:
    """The tokenizer of a folder, with a chat template or without.

    Of several named templates it keeps the one named ``default``.

    Returns:
        The tokenizer, and the names if there were several.

    Raises:
        UserError: there is none that can be loaded, or it is code that was not trusted.
    """
    from transformers import AutoTokenizer

    from core.models import internlm2

    internlm2.register()
    folder.refuse_pointers(path)
    code = trust.allow(path, tokenizer_only=True)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=code)
    except _LOADING as error:
        raise UserError(
            f"cannot load the tokenizer of {path}",
            why=str(error)[:400],
            fix="complete the model folder",
        ) from error
    templates = tokenizer.chat_template
    if isinstance(templates, dict):  # several by name, for tools or retrieval: chat is the default
        tokenizer.chat_template = templates.get("default")
        return tokenizer, list(templates)
    return tokenizer, []


def _require_room(path: Path, where: str, dtype: str, nf4: bool) -> None:
    """Raise UserError if the weights alone are more than the device has free."""
    parameters, stored = folder.size(path)
    each = stored if dtype == "stored" else _BYTES[dtype]
    # NF4: half a byte a weight and its scales; embeddings and head stay as they are.
    needed = parameters * (_NF4_BYTES if nf4 else each)
    free = devices.free_bytes(where)
    if needed > free:
        raise UserError(
            f"{path} is too large for this {'CPU' if where == 'cpu' else 'GPU'}",
            why=f"{parameters / 1e9:.1f}B parameters take about {fsio.human_bytes(needed)} in "
            f"{'NF4' if nf4 else dtype}, and {fsio.human_bytes(free)} are free",
            fix="choose a smaller model, or close what uses the memory",
        )


def introduction(path: Path) -> str:
    """What a model's chat template says where nobody wrote a system turn, if it names somebody."""
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
    _require_room(path, where, dtype, nf4)
    torch_dtype = "auto" if dtype == "stored" else getattr(torch, dtype)
    extra: dict[str, Any] = {"device_map": {"": where}} if nf4 or where != "cpu" else {}
    if nf4:
        extra["quantization_config"] = nf4_config(torch_dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=torch_dtype,
            trust_remote_code=code,
            output_loading_info=True,
            **extra,
        )
    except _LOADING as error:
        raise UserError(
            f"cannot load {path} as a causal language model",
            why=str(error)[:400],
            fix="check that the folder is whole",
        ) from error
    model, found = loaded
    _require_whole(path, found)
    if where == "cpu" and not nf4:
        from core.inference.fused import own_memory

        own_memory(model)
    if adapter is not None:
        model = wrap(model, adapter)
    model.eval()
    model.requires_grad_(False)  # for answers only; the lean forward may then fuse the weights
    return model


def _require_whole(path: Path, found: dict[str, Any]) -> None:
    """Raise UserError for weights that the config wants and nobody has, or layers it leaves out.

    transformers fills the first with random numbers and drops the second, with a warning.
    """
    missing = sorted(map(str, found["missing_keys"]))
    # Old files keep buffers that are computed today; a layer's weight is no buffer.
    extra = sorted(k for k in map(str, found["unexpected_keys"]) if k.endswith("_proj.weight"))
    for keys, what in ((missing, "are not in its files"), (extra, "have no place in its config")):
        if keys:
            raise UserError(
                f"{path} is not one whole model",
                why=f"{len(keys):,} weights {what}, e.g. {keys[0]}",
                fix="download the model folder again; config.json and weights must be of one model",
            )
