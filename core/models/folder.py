"""Whether a model folder is whole, and whether it holds one model and nothing else.

What transformers would meet in the middle of loading, or pass over in silence, is said here in
one message: unfinished downloads, missing shards, an adapter beside the model, quantized weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError
from core.models.pickled import require_small

#: How git-lfs marks a file that was not fetched.
_POINTER = b"version https://git-lfs.github.com/spec/"
_SUFFIXES = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".gguf", ".tiktoken"}
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def require_files(folder: Path) -> None:
    """Raise UserError if what lies in the folder are no files, or git-lfs pointers to files."""
    strange = sorted(p.name for p in folder.iterdir() if not p.is_file() and not p.is_dir())
    if strange:
        raise UserError(
            f"{folder} holds what is no file: {', '.join(strange[:5])}",
            why="a link to nowhere, a pipe or a device is no part of a model",
            fix="download the model again",
        )
    pointers = [p.name for p in sorted(folder.iterdir()) if p.suffix in _SUFFIXES and _pointer(p)]
    if pointers:
        raise UserError(
            f"the download of {folder} is not complete",
            why=f"git-lfs pointers instead of files: {', '.join(pointers[:5])}",
            fix=f"run `git lfs pull` in {folder}, or download the model again",
        )


def _pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > 1024:
        return False
    with fsio.open_file(path) as file:
        return file.read(len(_POINTER)) == _POINTER


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read the weights from: one, or the shards of an index.

    Raises:
        UserError: there are none, or the index names files that are not there.
    """
    found = _weights(folder)
    if found is None:
        other = ", ".join(p.name for p in sorted(folder.glob("consolidated*"))[:3])
        raise UserError(
            f"{folder} has no weights",
            why="none of model.safetensors, pytorch_model.bin, or an index of shards in it"
            + (f"; {other} is in the maker's own format" if other else ""),
            fix="complete the download of the model",
        )
    if found.suffix != ".json":
        return [found]
    names = sorted(set(_weight_map(found).values()))
    missing = [name for name in names if not fsio.safe_join(folder, name).is_file()]
    if missing:
        raise UserError(
            f"the download of {folder} is not complete",
            why=f"{found.name} names {', '.join(missing[:5])}, which "
            f"{'is' if len(missing) == 1 else 'are'} not there",
            fix="download the missing files",
        )
    return [folder / name for name in names]


def indexed(folder: Path) -> set[str]:
    """Names of the tensors that the index of a sharded model lists (empty for a single file)."""
    found = _weights(folder)
    return set(_weight_map(found)) if found is not None and found.suffix == ".json" else set()


def _weights(folder: Path) -> Path | None:
    """The weights or their index: safetensors first, a single file first, as transformers looks."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    return None


def _weight_map(index: Path) -> dict[str, str]:
    record = fsio.read_json(index)
    weight_map = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise UserError(f"{index} has no weight_map", fix="download the model folder again")
    return {str(name): str(file) for name, file in weight_map.items()}


def check(folder: Path) -> None:
    """Raise UserError unless the folder holds one whole model.

    An ``adapter_config.json`` beside the model is refused: transformers would attach it in
    silence, so that the base is not the base, or replace the model by the one that it names.
    """
    require_files(folder)
    for file in weight_files(folder):
        if file.suffix != ".safetensors":
            require_small(file)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds a model and an adapter",
            why="adapter_config.json lies beside config.json, and transformers would load both",
            fix="move adapter_config.json and adapter_model.* into a folder of their own",
        )


def quantization(folder: Path) -> str:
    """How the weights are stored quantized ('' if they are not): the method's name."""
    config = fsio.read_json(folder / "config.json")
    stored = config.get("quantization_config") if isinstance(config, dict) else None
    if isinstance(stored, Mapping):
        bits = "4-bit" if stored.get("load_in_4bit") else ""
        bits = bits or ("8-bit" if stored.get("load_in_8bit") else "")
        return f"{stored.get('quant_method') or 'unknown method'} {bits}".strip()
    for name in ("quantize_config.json", "quant_config.json"):  # of AutoGPTQ and AutoAWQ
        if (folder / name).is_file():
            return name.removesuffix("_config.json")
    return next(_packed(folder), "")


def _packed(folder: Path) -> Iterator[str]:
    """Names of tensors that only a quantized layer has."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, framework="np") as file:
                keys = list(file.keys())
        except SafetensorError:
            return  # whoever reads the weights says where the file is damaged
        for key in keys:
            if key.endswith((".qweight", ".qzeros", ".weight.absmax", ".weight_scale_inv")):
                yield f"the tensor {key}"


def require_trainable(folder: Path) -> None:
    """Raise UserError if the weights are quantized already.

    QLoRA quantizes the base itself, and an adapter is merged into weights of 16 or 32 bits.
    """
    method = quantization(folder)
    if method:
        raise UserError(
            f"{folder} is quantized already ({method})",
            why="training quantizes the base itself, and a merge needs weights of 16 or 32 bits",
            fix="choose the original, unquantized model",
        )


def size(folder: Path) -> tuple[float, int]:
    """Parameters of a model, by the bytes of its weights, and the bytes of one as stored."""
    config = config_of(folder)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    each = 4 if stored == "float32" else 2
    return sum(file.stat().st_size for file in weight_files(folder)) / each, each


def is_causal(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a causal language model."""
    named = config.get("architectures") or []
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in named)


def config_of(folder: Path) -> dict[str, Any]:
    """``config.json`` as a dictionary, its sizes numbers and its groups objects.

    Raises:
        UserError: it is no JSON object, or holds something else there, by name.
    """
    path = folder / "config.json"
    config = fsio.read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a model config", why="it is no object")
    odd = [name for name in _SIZES if not _is_size(config.get(name))]
    odd += [name for name in _LAYERS if name not in odd and (config.get(name) or 0) > _MOST_LAYERS]
    odd += [name for name in _KERNELS if "/" in str(config.get(name))]
    odd += [name for name in _GROUPS if not isinstance(config.get(name) or {}, dict)]
    odd += [name for name in ("architectures",) if not isinstance(config.get(name) or [], list)]
    if odd:
        raise UserError(
            f"{path} is not a model config",
            why=f"{odd[0]} is {config[odd[0]]!r:.60}",
            fix="download the model again",
        )
    return config


_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "head_dim", "n_embd", "n_layer", "n_head",
)  # fmt: skip
#: They are built one by one, before any weight is looked at; the deepest models have some 200.
_LAYERS, _MOST_LAYERS = ("num_hidden_layers", "n_layer"), 2000
#: An ``owner/name`` here is code that transformers fetches and runs (the ``kernels`` package).
_KERNELS = ("_attn_implementation", "attn_implementation", "experts_implementation")
_GROUPS = ("rope_scaling", "rope_parameters", "quantization_config")


def _is_size(value: object) -> bool:
    return value is None or (
        isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40
    )
