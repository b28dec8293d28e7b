"""Load a tokenizer or a model, quantized to NF4 if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import fsio
from core.errors import UserError
from core.inference.adapters import wrap
from core.inference.whole import LOADING_ERRORS, open_model, require_finite
from core.models import chat_templates, folder, trust
from core.models import device as devices
from core.models.nf4 import nf4_config
from core.models.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_NF4_BYTES = 0.6


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
    folder.require_files(path)
    code = trust.allow(path, tokenizer_only=True)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(path), trust_remote_code=code)
    except LOADING_ERRORS as error:
        raise UserError(
            f"cannot load the tokenizer of {path}",
            why=str(error)[:400],
            fix="complete the model folder",
        ) from error
    templates = tokenizer.chat_template
    if isinstance(templates, dict):  # several by name, for tools or retrieval: chat is the default
        tokenizer.chat_template = templates.get("default")
        return tokenizer, list(templates)
    if not templates and (path / "chat_template.json").is_file():
        # Written for models of pictures, and read with their processor only.
        stored = fsio.read_json(path / "chat_template.json")
        tokenizer.chat_template = stored.get("chat_template") if isinstance(stored, dict) else None
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
        UserError: the folder cannot be loaded as a causal LM, or holds values that are no numbers.
    """
    import torch

    folder.check(path)
    where = device or devices.describe().kind
    if dtype == "auto":
        dtype = devices.describe().compute_dtype.value if where != "cpu" else "float32"
    _require_room(path, where, dtype, nf4)
    torch_dtype = "auto" if dtype == "stored" else getattr(torch, dtype)
    extra: dict[str, Any] = {"device_map": {"": where}} if nf4 or where != "cpu" else {}
    if nf4:
        extra["quantization_config"] = nf4_config(torch_dtype)
    model = open_model(path, dtype=torch_dtype, **extra)
    require_finite(path)
    if where == "cpu" and not nf4:
        from core.inference.fused import own_memory

        own_memory(model)
    if adapter is not None:
        model = wrap(model, adapter)
    model.eval()
    model.requires_grad_(False)  # for answers only; the lean forward may then fuse the weights
    return model
