"""An adapter trained on InternLM2 as we load it, in the names of the published weights.

Training sees Llama's layers (``core.models.internlm2``); the published file has one matrix
``wqkv`` for queries, keys and values. Their three updates are one update of that matrix: the A
factors one above the other, the B factors in the rows that they own. So a merge works on the
published file itself, tensor by tensor, and InternLM's own code, LMDeploy and vLLM can serve base
and adapter unmerged.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core import fsio
from core.errors import UserError
from core.models import folder as folders
from core.models.families import INTERNLM2_NAMES, fused_rows
from core.models.lora import CONFIG, WEIGHTS
from core.weights.adapter import Adapter, LoraWeights, read_adapter

Array = npt.NDArray[np.float32]
_TO_PUBLISHED = {ours: theirs.removeprefix("^") for theirs, ours in INTERNLM2_NAMES.items()}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@contextmanager
def fitting(base: Path, adapter: Path) -> Iterator[Path]:
    """The adapter in the names of the base's file: itself, or a copy that lives as long as this.

    Raises:
        UserError: the adapter is refused, or its update of q, k and v is not one of ``wqkv``.
    """
    config = folders.config_of(base)
    if config.get("model_type") != "internlm2":
        yield adapter
        return
    parsed = read_adapter(adapter)
    if not any(".self_attn." in m or ".mlp." in m or "embed" in m for m in parsed.lora):
        yield adapter
        return
    with tempfile.TemporaryDirectory(prefix="adapter-") as name:
        yield write(parsed, config, Path(name))


def write(adapter: Adapter, config: Mapping[str, Any], out: Path) -> Path:
    """Write the adapter to the folder ``out`` for the published names.

    Args:
        config: the base's config.json.

    Raises:
        UserError: DoRA or full training of some of q, k and v only.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, Array] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    rooted = bool(adapter.config.get("use_rslora"))
    for module, parts in _by_published(adapter).items():
        a, b, magnitude = _one(parts, config) if module.endswith(".wqkv") else _same(parts)
        kind = "embedding_" if next(iter(parts.values())).embedding else ""
        suffix = "" if kind else ".weight"
        prefix = f"base_model.model.{module}"
        arrays[f"{prefix}.lora_{kind}A{suffix}"] = a
        arrays[f"{prefix}.lora_{kind}B{suffix}"] = b
        if magnitude is not None:
            arrays[f"{prefix}.lora_magnitude_vector"] = magnitude
        ranks[module] = a.shape[0]
        scaling = next(iter(parts.values())).scaling
        alphas[module] = scaling * (math.sqrt(a.shape[0]) if rooted else a.shape[0])
    for name, ref in [*adapter.replaced.items(), *adapter.frozen.items()]:
        marked = name if name in adapter.replaced else name.replace(".weight", ".base_layer.weight")
        if name.split(".")[-2] in _PROJECTIONS:
            raise UserError(
                f"{name} was trained in full",
                why="the published file has no such matrix, only wqkv",
                fix="train q_proj, k_proj and v_proj by LoRA",
            )
        arrays[f"base_model.model.{_published(marked)}"] = ref.to_float32()
    save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        str(out / WEIGHTS),
        {"format": "pt"},
    )
    renamed = [_published(name) for name in adapter.config.get("modules_to_save") or []]
    asked = adapter.config.get("target_modules")
    by_name = isinstance(asked, list) and not adapter.config.get("layers_to_transform")
    settings = {
        **adapter.config,
        "target_modules": sorted({m.rpartition(".")[2] for m in ranks} if by_name else ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "modules_to_save": renamed or None,
    }
    fsio.write_json(out / CONFIG, settings)
    return out


def _published(name: str) -> str:
    for ours, theirs in _TO_PUBLISHED.items():
        name = name.replace(ours, theirs)
    return name


def _by_published(adapter: Adapter) -> dict[str, dict[str, LoraWeights]]:
    """Published module to the updates that it takes, by our layer's last name."""
    found: dict[str, dict[str, LoraWeights]] = {}
    for module, lora in adapter.lora.items():
        head, _, last = module.rpartition(".")
        target = _published(module)
        if last in _PROJECTIONS:
            target = head.replace("self_attn", "attention") + ".wqkv"
        found.setdefault(target, {})[last] = lora
    return found


def _same(parts: Mapping[str, LoraWeights]) -> tuple[Array, Array, Array | None]:
    (lora,) = parts.values()
    return (
        lora.a.to_float32(),
        lora.b.to_float32(),
        lora.magnitude.to_float32() if lora.magnitude is not None else None,
    )


def _one(
    parts: Mapping[str, LoraWeights], config: Mapping[str, Any]
) -> tuple[Array, Array, Array | None]:
    """A, B and DoRA's lengths of the one update that does what those of q, k and v do."""
    rows = dict(zip(_PROJECTIONS, fused_rows(config), strict=True))
    first = next(iter(parts.values()))
    total = sum(len(r) for r in rows.values())
    a = np.concatenate([lora.a.to_float32() for lora in parts.values()])
    b = np.zeros((total, len(a)), np.float32)
    at = 0
    for name, lora in parts.items():
        if lora.b.shape[0] != len(rows[name]):
            raise UserError(
                f"{lora.module}: the adapter does not fit the base",
                why=f"it updates {lora.b.shape[0]} rows of {len(rows[name])}",
                fix="use the base model that the adapter was trained on",
            )
        b[rows[name], at : at + lora.rank] = lora.b.to_float32() * (lora.scaling / first.scaling)
        at += lora.rank
    if first.magnitude is None:
        return a, b, None
    if len(parts) < len(rows):
        raise UserError(
            f"{first.module}: DoRA on {', '.join(parts)} only",
            why="in the published file q, k and v are one matrix with one length a row",
            fix="train all of q_proj, k_proj and v_proj, or plain LoRA",
        )
    magnitude = np.zeros(total, np.float32)
    for name, lora in parts.items():
        assert lora.magnitude is not None
        magnitude[rows[name]] = lora.magnitude.to_float32()
    return a, b, magnitude
