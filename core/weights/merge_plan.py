"""What a merge will write, worked out and checked in full before the first byte is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError, UserErrors
from core.models import catalog, sandbox, trust
from core.models import folder as folders
from core.models import lora as adapters
from core.weights import manifest
from core.weights.adapter import Adapter, LoraWeights, read_adapter
from core.weights.files import read_model
from core.weights.tensors import FLOATING, ITEM_BYTES, TensorRef

#: transformers' default; large enough that a 1.8B model stays one file.
DEFAULT_SHARD_BYTES = 5_000_000_000
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {code: name for name, code in DTYPES.items()}
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_EMBEDDINGS = re.compile(r"(?:.+\.)?(?:embed_tokens|tok_embeddings|wte|word_embeddings)\.weight")


@dataclass(frozen=True)
class Op:
    """How one tensor of the merged model comes about.

    Args:
        name: key in the merged model.
        base: the base tensor, or for ``replace`` the trained one that takes its place.
        dtype: safetensors code that is written.
        transpose: the weight is (in, out), the transpose of B @ A.
    """

    name: str
    kind: Literal["copy", "lora", "replace"]
    base: TensorRef
    dtype: str
    lora: LoraWeights | None = None
    transpose: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return self.base.nbytes // ITEM_BYTES[self.base.dtype] * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of the merged model, in file order.

    ``dtype``: torch's name of the type that most of the bytes have.
    ``config_changes``: keys of config.json that differ from the base's.
    """

    base: Path
    adapter: Adapter
    ops: list[Op]
    shards: list[list[Op]]
    dtype: str
    config_changes: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(op.nbytes for op in self.ops)

    @property
    def file_names(self) -> list[str]:
        """One name a shard, as transformers writes them."""
        if len(self.shards) == 1:
            return ["model.safetensors"]
        count = len(self.shards)
        return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def parse_size(text: str | int) -> int:
    """``2GB`` -> 2_000_000_000, ``500MiB`` -> 524_288_000. Raises UserError."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UserError(f"{text!r} is not a size", fix="write for example 2GB or 500MB")
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** " KMGT".index(match[2].upper() or " "))


def _tied_by_default(family: str) -> bool:
    """Whether a family ties input and output embedding when its config does not say."""
    from transformers import CONFIG_MAPPING

    return family in CONFIG_MAPPING and bool(CONFIG_MAPPING[family]().tie_word_embeddings)


class _Base:
    """The base model's tensors, with the names that an adapter uses for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = read_model(folder)
        self.config = folders.config_of(folder)
        self.head = next((h for h in _HEADS if h in self.tensors), None)
        self.embedding = next((n for n in self.tensors if _EMBEDDINGS.fullmatch(n)), None)
        flag = self.config.get("tie_word_embeddings")
        if flag is None:
            flag = _tied_by_default(str(self.config.get("model_type")))
        self.tied = bool(self.embedding) and (bool(flag) or self.head is None)

    def find(self, key: str) -> str | None:
        """The file's key for a parameter of the model; head of a tied model: the embedding's."""
        if self.tied and key in _HEADS:
            return self.embedding
        if key in self.tensors:
            return key
        # Files saved from the bare model lack its prefix ("transformer.", "model.").
        short = key.partition(".")[2]
        if short in self.tensors:
            return short
        ends = [name for name in self.tensors if name.endswith(f".{key}")]
        return ends[0] if len(ends) == 1 else None

    def modules(self) -> list[str]:
        """Names of layers with a weight matrix."""
        names = [
            n[:-7] for n, t in self.tensors.items() if n.endswith(".weight") and len(t.shape) == 2
        ]
        return [*names, "lm_head"] if self.tied and self.head is None else names


def _transposed(lora: LoraWeights, weight: TensorRef, flag: bool) -> bool:
    """Whether the weight is (in, out). Raises UserError if B @ A fits neither way."""
    out, inner = lora.delta_shape
    straight, turned = weight.shape == (out, inner), weight.shape == (inner, out)
    if lora.embedding and turned:
        return True
    if not lora.embedding and (straight or turned):
        return flag if straight and turned else turned
    raise UserError(
        f"{lora.module}: the adapter does not fit the base",
        why=f"expected a weight of shape ({out}, {inner}), found {weight.shape} ({weight.name})",
        fix="use the base model that the adapter was trained on",
    )


@dataclass
class _Changes:
    lora: dict[str, tuple[LoraWeights, bool]] = field(default_factory=dict)
    replaced: dict[str, TensorRef] = field(default_factory=dict)

    def touches(self, names: Iterable[str]) -> bool:
        return any(n in self.lora or n in self.replaced for n in names)


def _collect(base: _Base, adapter: Adapter) -> tuple[_Changes, list[UserError]]:
    """Changes by output key; the head of a tied model keeps its own key."""
    changes, problems = _Changes(), []
    for module, lora in adapter.lora.items():
        key = f"{module}.weight"
        found = base.find(key)
        if found is None:
            problems.append(
                UserError(
                    f"{key} is not in the base model",
                    why="the adapter was trained on another one",
                    fix=f"use {adapter.base_name or 'its own base'}",
                )
            )
            continue
        out = key if base.tied and key in _HEADS else found
        try:
            turned = _transposed(lora, base.tensors[found], adapter.fan_in_fan_out)
            if base.tensors[found].dtype not in FLOATING:
                raise UserError(
                    f"{found} is stored as {base.tensors[found].dtype}",
                    why="a quantized base cannot take an update",
                    fix="use the 16- or 32-bit original of the base",
                )
            changes.lora[out] = (lora, turned)
        except UserError as error:
            problems.append(error)
    for key, ref in adapter.replaced.items():
        found = base.find(key)
        if found is None or base.tensors[found].shape != ref.shape:
            expected = base.tensors[found].shape if found else "no such parameter"
            problems.append(
                UserError(
                    f"{key} (modules_to_save) does not fit the base",
                    why=f"expected {expected}, found {ref.shape}",
                )
            )
        else:
            changes.replaced[key if base.tied and key in _HEADS else found] = ref
    problems += _frozen_problems(base, adapter)
    missing = [m for m in base.modules() if adapter.targets(m) and not _covered(m, adapter)]
    if missing:
        problems.append(
            UserError(
                f"the adapter lacks {len(missing)} of the layers that it targets",
                why=", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
                fix="convert the checkpoint again, or use its own base model",
            )
        )
    return changes, problems


def _frozen_problems(base: _Base, adapter: Adapter) -> list[UserError]:
    """The base weights that PEFT stored must be this base's own."""
    problems = []
    for key, ref in adapter.frozen.items():
        found = base.find(key)
        own = base.tensors[found] if found else None
        if own is None or own.shape != ref.shape:
            problems.append(
                UserError(
                    f"{key} was resized: the adapter brings one of shape {ref.shape}",
                    why=f"the base has {own.shape if own else 'none'}",
                    fix="resize the base's vocabulary first, and give that base",
                )
            )
        elif own.dtype == ref.dtype and own.read() != ref.read():
            problems.append(
                UserError(
                    f"the adapter brings a {key} that is not the base's",
                    fix="use the base model that the adapter was trained on",
                )
            )
    return problems


def _covered(module: str, adapter: Adapter) -> bool:
    return (
        module in adapter.lora
        or f"{module}.weight" in adapter.replaced
        or any(name.endswith(f".{module}") for name in adapter.lora)
    )


def _ops(base: _Base, changes: _Changes, dtype: str | None) -> tuple[list[Op], dict[str, Any]]:
    """Operations in the base's order; a tied model whose head and embedding part is untied."""
    sources = dict(base.tensors)
    config: dict[str, Any] = {}
    if base.tied and base.embedding:
        head = base.head or "lm_head.weight"
        sources.pop(head, None)  # transformers ignores a stored head when the two are tied
        if changes.touches((head, base.embedding)):
            # Unmerged, PEFT changes only the one it was put on; so the two must part.
            sources[head] = base.tensors[base.embedding]
            config["tie_word_embeddings"] = False
    ops = []
    for name, ref in sources.items():
        code = DTYPES[dtype] if dtype and ref.dtype in FLOATING else ref.dtype
        if name in changes.replaced:
            ops.append(Op(name, "replace", changes.replaced[name], code))
        elif name in changes.lora:
            lora, turned = changes.lora[name]
            ops.append(Op(name, "lora", ref, code, lora, turned))
        else:
            ops.append(Op(name, "copy", ref, code))
    return ops, config


def _shards(ops: list[Op], limit: int) -> list[list[Op]]:
    shards: list[list[Op]] = [[]]
    size = 0
    for op in ops:
        if shards[-1] and size + op.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(op)
        size += op.nbytes
    return shards


def main_dtype(ops: Iterable[Op]) -> str:
    """torch's name of the floating type that holds most bytes."""
    totals: dict[str, int] = {}
    for op in ops:
        if op.dtype in NAMES:
            totals[op.dtype] = totals.get(op.dtype, 0) + op.nbytes
    return NAMES[max(totals, key=lambda code: totals[code])] if totals else "float32"


def plan_merge(
    base: Path,
    adapter: Path,
    *,
    max_shard_size: str | int = DEFAULT_SHARD_BYTES,
    dtype: str | None = None,
) -> MergePlan:
    """Plan a merge and check every name and shape. Reads headers only; needs no torch.

    Args:
        dtype: write all floating-point tensors as this; None keeps each tensor's own.

    Raises:
        UserErrors: everything that is wrong with base, adapter or their fit, at once.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", fix=f"one of {', '.join(DTYPES)}")
    parsed = read_adapter(adapter)
    model = _Base(base)
    sandbox.require_matchable(parsed.config, model.modules(), str(adapter))
    changes, problems = _collect(model, parsed)
    if problems:
        raise UserErrors(problems, f"the adapter {adapter} does not fit {base}")
    ops, config = _ops(model, changes, dtype)
    return MergePlan(
        base,
        parsed,
        ops,
        _shards(ops, parse_size(max_shard_size)),
        main_dtype(ops),
        config,
    )


def notes_on(base: Path, adapter: Path) -> list[str]:
    """What nobody can know from the files, in words for the reader of the proof."""
    notes = []
    trained_on = str(adapters.read(adapter).get("base_model_name_or_path") or "")
    record = manifest.read(adapter) if (adapter / manifest.NAME).is_file() else {}
    if known := record.get("base_fingerprint"):
        if known != catalog.fingerprint(base):
            notes.append(
                f"the files of {base.name} are not those that the adapter was trained on "
                f"({trained_on}): every shape fits, but it may be another model"
            )
    elif not trained_on:
        notes.append(
            "the adapter does not say which base it was trained on; every shape fits this one"
        )
    elif Path(trained_on).name not in {base.name, base.resolve().name}:
        notes.append(
            f"the adapter says that it was trained on {trained_on}, and this base is {base.name}: "
            "every shape fits, but whether the weights are the same cannot be known"
        )
    config = folders.config_of(base)
    copied = config.get("model_type") == "internlm2" or trust.needed(base)
    if config.get("auto_map") and not copied:
        notes.append(
            "the base brings code of its own (auto_map); nothing here needs its *.py files, so "
            "they are not copied"
        )
    return notes
