"""Which model: the bundled one, a folder, or a hub id."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError, redacted
from core.models import bundled, families, folder, found, prepared, trust

#: What is fetched of a hub repository.
_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken")


@dataclass(frozen=True)
class ModelRef:
    """A model folder that was looked at and found usable."""

    path: Path
    name: str
    source: Literal["bundled", "folder", "hub"]
    license: str
    locales: tuple[str, ...]
    family: str

    def fingerprint(self) -> str:
        """Identifies the weights for caches; see ``fingerprint``."""
        return fingerprint(self.path)


def fingerprint(path: Path) -> str:
    """Identifies a model folder: sha256 over names, sizes and ends of its files.

    Reading 3 GB to name a cache entry would cost more than the cache saves, so the first and
    last 64 kB of each weight file stand for it. The manifest of a merged model has full hashes.
    """
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in {".safetensors", ".bin", ".json", ".jinja", ".model", ".py"}:
            with fsio.disk_errors(f"{file} cannot be read"), fsio.open_file(file) as handle:
                size = os.fstat(handle.fileno()).st_size
                digest.update(f"{file.name}:{size}".encode())
                digest.update(handle.read(65536))
                handle.seek(max(0, size - 65536))
                digest.update(handle.read(65536))
    return digest.hexdigest()


def is_hub_id(model: str) -> bool:
    """Whether only the hub can have a model of this name: it is no path, nor anything here."""
    path = Path(model).expanduser()
    written_as_path = path.is_absolute() or model.startswith((".", "~"))
    return model != "bundled" and not written_as_path and not path.exists()


def resolve(model: str, on_progress: OnProgress | None = None, *, code: bool = False) -> ModelRef:
    """Turn ``bundled``, a folder, a GGUF file or a hub id into a folder on this machine.

    A hub id is the only thing that may reach the network, and only if its files are not in the
    local cache. HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT are honoured by huggingface_hub.

    Args:
        code: fetch the ``*.py`` files of a hub id too, so that they can be looked at. They are
            fetched anyway once the code of this id was trusted, and run only then.

    Raises:
        UserError: the folder is missing, empty, or not a causal language model; the hub id is
            malformed or cannot be had.
    """
    if model == "bundled":
        return _inspect(bundled.ensure(on_progress), "bundled", bundled.NAME)
    path = Path(model).expanduser()
    if path.is_dir():
        return _inspect(path.resolve(), "folder", found.name_of(path.resolve()))
    if path.suffix == ".gguf" and path.is_file():
        made = prepared.from_gguf(path.resolve(), on_progress)
        return _inspect(made, "folder", path.stem)
    if not is_hub_id(model):
        raise UserError(
            f"model folder {model} is not there"
            if not path.exists()
            else f"{model} is not a folder",
            fix="give a folder that holds config.json and the weights, a .gguf file, a hub id, or "
            "'bundled'",
        )
    return _inspect(_download(model, code or trust.of_hub(model)), "hub", model)


def _download(model: str, code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(model)
        return Path(
            snapshot_download(
                model,
                allow_patterns=[*_FILES, *(["*.py"] if code else [])],
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"{model!r} is neither 'bundled', a folder, nor a hub id",
            why=str(error),
            fix="check the spelling; a hub id looks like 'Qwen/Qwen2.5-0.5B-Instruct'",
        ) from error
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise UserError(
            f"cannot get {model} from the hub",
            why=redacted(f"{type(error).__name__}: {error}")[:400],
            fix="check the id, the network and `hf auth login`; or download it and give the folder",
        ) from error


def _inspect(path: Path, source: Literal["bundled", "folder", "hub"], name: str) -> ModelRef:
    config_file = path / "config.json"
    folder.require_files(path)
    if not any(path.iterdir()):
        raise UserError(f"model folder {path} is empty", fix="point to a folder with config.json")
    if not config_file.is_file():
        files = sorted(path.glob("*.gguf"))
        raise UserError(
            f"{path} is not a model folder",
            why="it has no config.json",
            fix=f"give the GGUF file itself: {files[0]}"
            if files
            else "point to the folder that holds config.json, the weights and the tokenizer",
        )
    config = folder.config_of(path)
    family = str(config.get("model_type", ""))
    architectures = [str(name) for name in config.get("architectures") or []]
    if not folder.is_causal(config):
        raise UserError(
            f"{path} is not a causal language model",
            why=f"config.json names {', '.join(architectures) or 'no architecture'}",
            fix="choose a chat model (…ForCausalLM)",
        )
    folder.check(path)
    if not any((path / f).is_file() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"{path} has no tokenizer",
            why="none of tokenizer.json, tokenizer.model, vocab.json in it",
            fix="copy the tokenizer files of the base model into the folder",
        )
    return ModelRef(
        path=path,
        name=name,
        source=source,
        license=bundled.LICENSE if source == "bundled" else _license(path),
        locales=("en", "zh") if families.of(family).chinese else ("en",),
        family=family,
    )


def _license(path: Path) -> str:
    readme = path / "README.md"
    if readme.is_file():
        for line in fsio.read_text(readme).splitlines()[:40]:
            if line.startswith("license:"):
                return line.split(":", 1)[1].strip()
    return "unknown"
