"""What a merge of a checkpoint will write and how large it is; reads headers only, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from core.models.catalog import ModelRef
from core.models.lora import WEIGHTS
from core.weights.checkpoint import open_checkpoint
from core.weights.convert import adapter_key
from core.weights.files import read_model
from core.weights.merge import companions
from core.weights.merge_plan import DTYPES
from core.weights.tensors import FLOATING, ITEM_BYTES
from core.weights.zero import read_shapes


@dataclass(frozen=True)
class Output:
    """One file or group of files, its size in bytes (estimates for what is not weights)."""

    path: str
    what: str
    size: int


def outputs(
    base: ModelRef, checkpoint: Path, *, fp32: bool = False, dtype: str | None = None
) -> list[Output]:
    """The files of adapter and merged model.

    Raises:
        UserError: the checkpoint is not whole or is refused, or the base has no safetensors.
    """
    bits = 32 if fp32 else 16
    found = [
        Output(
            f"adapter/{WEIGHTS}",
            f"LoRA weights, float{bits}",
            _adapter_numbers(checkpoint) * bits // 8,
        )
    ]
    weights = 0
    for ref in read_model(base.path).values():
        code = DTYPES[dtype] if dtype and ref.dtype in FLOATING else ref.dtype
        weights += math.prod(ref.shape) * ITEM_BYTES[code]
    found.append(
        Output("merged/model.safetensors", f"weights, {dtype or 'dtype of the base'}", weights)
    )
    files = companions(base.path)
    found.append(
        Output(
            "merged/tokenizer*, *.json",
            f"tokenizer, chat template, configs: {len(files) + 1} files",
            sum(f.stat().st_size for f in files),
        )
    )
    found.append(Output("merged/README.md, MANIFEST.json", "model card, hashes, proof", 8_000))
    return found


def _adapter_numbers(checkpoint: Path) -> int:
    if checkpoint.is_dir():  # DeepSpeed: the shapes are in the model states of rank 0
        groups = read_shapes(checkpoint)
        return sum(math.prod(shape) for g in groups for n, shape in g.items() if adapter_key(n))
    opened = open_checkpoint(checkpoint)
    state = opened.content.get("state_dict") if isinstance(opened.content, dict) else None
    return sum(
        math.prod(ref.shape)
        for name, ref in opened.tensors(state, "state_dict").items()
        if adapter_key(name)
    )
