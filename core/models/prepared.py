"""Model folders that this program makes: the bundled model, a GGUF file, a chat template added.

They lie in the workspace, appear whole or not at all, and are made once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.conversation import OnProgress
from core.errors import UserError
from core.models import chat_templates, gguf_header

_DONE = "workbench.json"
#: Raised when what ``from_gguf`` writes changes, so that a cached folder is made anew.
_GGUF_FORMAT = 2
#: ``general.file_type`` of a GGUF in bfloat16; others fit into float16's range.
_BF16_FILE = 32
_LINKED = {".safetensors", ".bin"}


def is_ready(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether the folder is whole and was made from exactly this."""
    marker = folder / _DONE
    if not marker.is_file():
        return False
    found = fsio.read_json(marker)
    return all(found.get(key) == value for key, value in about.items())


def ensure(
    target: Path, about: Mapping[str, Any], needed: int, write: Callable[[Path], None]
) -> Path:
    """The folder ``target``, made first if it is not there.

    Args:
        about: what it is made from; kept in the folder.
        needed: bytes on disk.
        write: fills an empty folder.

    Raises:
        UserError: there is no room, or ``write`` says no; then there is no folder.
    """
    if is_ready(target, about):
        return target
    fsio.require_space(target.parent, needed, f"the model folder {target.name}")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        for file in partial.iterdir():
            if not file.is_symlink():
                file.chmod(0o644)
        fsio.write_json(partial / _DONE, {"schema": 1, **about})
        _move_into_place(partial, target, about)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _move_into_place(partial: Path, target: Path, about: Mapping[str, Any]) -> None:
    if target.exists() and not is_ready(target, about):
        shutil.rmtree(target)
    try:
        partial.rename(target)
    except OSError:
        # Another process was faster; its folder is as good as ours.
        if not is_ready(target, about):
            raise


def load_gguf(source: Path, dtype: Any) -> Any:
    """The model of a GGUF file, dequantized by transformers' own reader."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=dtype
    )
    # Dense now, but a model read from a GGUF still calls itself quantized and refuses to be saved.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def from_gguf(source: Path, on_progress: OnProgress | None = None) -> Path:
    """A GGUF file as a model folder of 16 bits, made once a file.

    Raises:
        UserError: the file is damaged, or transformers cannot read its architecture.
    """
    gguf_header.require_whole(source)
    stat = source.stat()
    about = {"format": _GGUF_FORMAT, "source": str(source), "bytes": stat.st_size,
             "changed": int(stat.st_mtime)}  # fmt: skip
    mark = hashlib.sha256(f"{source}{about}".encode()).hexdigest()[:8]
    target = paths.models_dir() / f"{source.stem}-{mark}"
    tell = on_progress or (lambda *_: None)

    def write(folder: Path) -> None:
        tell(f"read {source.name}", 0, 2)
        try:
            _write_gguf(source, folder, lambda: tell(f"read {source.name}", 1, 2))
        except Exception as error:  # of gguf and transformers: whatever they meet
            raise UserError(
                f"{source} cannot be used as a model",
                why=f"{type(error).__name__}: {error}"[:300],
                fix="use the original model folder (safetensors) that the file was made from",
            ) from error
        tell(f"read {source.name}", 2, 2)

    return ensure(target, about, 4 * stat.st_size, write)


def _write_gguf(source: Path, folder: Path, loaded: Callable[[], None]) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoTokenizer, GenerationConfig

    fields = GGUFReader(str(source)).fields

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    tokenizer: Any = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    # transformers guesses the special tokens by the architecture; the file says which they are.
    ids = {role: value(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos", "padding")}
    for role, token in ids.items():
        if token is not None:
            name = "pad" if role == "padding" else role
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(int(token)))
    tokenizer.chat_template = value("tokenizer.chat_template") or tokenizer.chat_template
    save_tokenizer(tokenizer, folder)
    dtype = torch.bfloat16 if value("general.file_type") == _BF16_FILE else torch.float16
    model = load_gguf(source, dtype)
    loaded()
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(dtype).save_pretrained(folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """``save_pretrained``, under a name that other programs know too.

    transformers 5 calls what is all in tokenizer.json ``TokenizersBackend``; transformers 4, which
    many a server still holds, cannot load that. Both know the older name.
    """
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    config = fsio.read_json(settings)
    if config.get("tokenizer_class") == "TokenizersBackend":
        fsio.write_json(settings, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def with_template(base: Path, name: str) -> Path:
    """A model folder with a chat template; the weights are linked, not copied.

    Its generation config ends replies where the template ends turns, so that every program does.

    Args:
        name: one of ``core.models.chat_templates``.

    Raises:
        UserError: there is no template of this name.
    """
    source = chat_templates.source(name)
    about = {"format": 1, "base": str(base), "template": source}
    target = paths.models_dir() / f"{base.name}-{name}"

    def write(folder: Path) -> None:
        for file in sorted(base.iterdir()):
            if file.suffix in _LINKED:
                (folder / file.name).symlink_to(file.resolve())
            elif file.is_file() and not file.name.startswith("chat_template"):
                shutil.copyfile(file, folder / file.name)
        config_file = folder / "tokenizer_config.json"
        config = fsio.read_json(config_file) if config_file.is_file() else {}
        config.pop("chat_template", None)
        fsio.write_json(config_file, config)
        fsio.atomic_write_text(folder / "chat_template.jinja", source)
        _end_at(folder, chat_templates.TEMPLATES[name][0][-1])

    return ensure(target, about, 100_000_000, write)


def _end_at(folder: Path, turn_end: str) -> None:
    """Add the token that ends a turn to the generation config, if it is one token."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder).encode(turn_end, add_special_tokens=False)
    path = folder / "generation_config.json"
    config = fsio.read_json(path) if path.is_file() else {}
    known = config.get("eos_token_id")
    ends = known if isinstance(known, list) else [known] if known is not None else []
    if len(ids) == 1:
        fsio.write_json(path, {**config, "eos_token_id": list(dict.fromkeys([*ends, *ids]))})
