"""Base model + adapter -> a model folder, streamed: memory is a few tensors, not a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.models import folder as folders
from core.models import lora, trust
from core.models.catalog import ModelRef
from core.models.families import fused_rows
from core.weights import exported, manifest, published, staging, xtuner_tools
from core.weights.merge_plan import DEFAULT_SHARD_BYTES, MergePlan, notes_on, parse_size, plan_merge
from core.weights.writer import QUEUE, TensorWriter

Engine = Literal["stream", "xtuner"]
#: What belongs to a model besides weights and config.json. Remote code (*.py) is not copied.
COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
    "NOTICE*",
)
#: Room for everything that is not weights.
_EXTRA_BYTES = 64_000_000


def companions(base: Path) -> list[Path]:
    """Tokenizer, chat template, generation config and licence files of a model folder."""
    found = {p for pattern in COMPANIONS for p in base.glob(pattern) if p.is_file()}
    return sorted(p for p in found if p.suffix not in {".safetensors", ".bin", ".py"})


def _write_weights(
    plan: MergePlan,
    folder: Path,
    nf4: Mapping[str, tuple[Any, ...]],
    on_progress: OnProgress | None,
) -> dict[str, str]:
    """Write the shards; returns sha256 by file name."""
    from core.weights import kernels

    hashes: dict[str, str] = {}
    space = kernels.Workspace(QUEUE)
    done, total = 0, plan.nbytes
    for name, ops in zip(plan.file_names, plan.shards, strict=True):
        layout = [(op.name, op.dtype, op.base.shape) for op in ops]
        with TensorWriter(folder / name, layout) as writer:
            for op in ops:
                faithful = nf4.get(op.name, ())
                if op.kind != "lora" and op.base.dtype == op.dtype and not faithful:
                    writer.copy(op.base)
                else:
                    writer.write(kernels.raw(kernels.merged(op, space, nf4=faithful)))
                done += op.nbytes
                if on_progress:
                    on_progress("merge", done, total)
            hashes[name] = writer.close()
    if len(plan.shards) > 1:
        weight_map = {
            op.name: name
            for name, ops in zip(plan.file_names, plan.shards, strict=True)
            for op in ops
        }
        fsio.write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    return hashes


def _write_companions(base: Path, folder: Path, dtype: str, changes: Mapping[str, Any]) -> None:
    config = folders.config_of(base)
    key = "dtype" if "dtype" in config else "torch_dtype"
    fsio.write_json(folder / "config.json", {**config, key: dtype, **changes})
    # What the folder of a family that we read ourselves brings is copied for others; it never
    # runs here. Other code is copied if the model cannot be loaded without it.
    own = sorted(base.glob("*.py")) if config.get("model_type") == "internlm2" else []
    code = trust.needed(base)
    for path in [*companions(base), *(code.files if code else own)]:
        target = folder / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _nf4_weights(plan: MergePlan) -> dict[str, tuple[Any, ...]]:
    """Keys of what QLoRA holds in NF4, every linear layer but the output head.

    With the rows of each matrix that was quantized by itself.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = folders.config_of(plan.base)
    if config.get("model_type") == "internlm2":
        layers = [op.name for op in plan.ops if op.kind != "replace" and ".layers." in op.name]
        fused = tuple(map(torch.from_numpy, fused_rows(config)))
        return {
            name: fused if name.endswith("wqkv.weight") else (slice(None),)
            for name in layers
            if name.endswith(".weight") and "norm" not in name
        }
    code = trust.allow(plan.base)
    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(str(plan.base), trust_remote_code=code)
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=code)
    head = model.get_output_embeddings()
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    names = linear & {op.name for op in plan.ops if op.kind != "replace"}
    return dict.fromkeys(names, (slice(None),))


@dataclass(frozen=True)
class MergeSettings:
    """How a merge is done.

    Args:
        engine: ``stream`` goes tensor by tensor and keeps the base's dtype; ``xtuner`` is
            XTuner's own merge by PEFT, which loads everything and writes float16.
        max_shard_size: a number of bytes, or e.g. ``2GB``.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None keeps each tensor's own.
        faithful_nf4: start from the base as QLoRA saw it (rounded to NF4 and back) instead of the
            original. Nearer to what was trained, further from the base model.
        system: what the model says about itself where nobody wrote a system turn, if the base's
            chat template names somebody there (``core.weights.exported``).
    """

    engine: Engine = "stream"
    max_shard_size: str | int = DEFAULT_SHARD_BYTES
    dtype: str | None = None
    faithful_nf4: bool = False
    system: str = ""

    def check(self) -> None:
        """Raise UserError for settings that exclude each other."""
        if self.engine not in ("stream", "xtuner"):
            raise UserError(f"unknown merge engine {self.engine!r}", fix="'stream' or 'xtuner'")
        if self.engine == "xtuner" and (self.dtype not in (None, "float16") or self.faithful_nf4):
            raise UserError(
                "engine 'xtuner' writes float16 from the original base only",
                fix="use engine 'stream'",
            )


def merge(
    base: ModelRef,
    adapter: Path,
    out: Path,
    settings: MergeSettings = MergeSettings(),
    *,
    finish: Callable[[Path], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write the merged model into the new folder ``out``; it appears whole or not at all.

    Args:
        finish: called with the folder before it gets its manifest and its name: to check it or
            to add files. If it raises, nothing remains.

    Raises:
        UserError: base and adapter do not fit (every problem named, nothing written), one of them
            is not as its manifest says, ``out`` exists or lies in an input, the disk is full.
    """
    settings.check()
    inputs = [base.path, adapter]
    staging.check_output(out, inputs)
    for path in inputs:  # safetensors loads a flipped bit without a word
        if (path / manifest.NAME).is_file():
            manifest.verify(path)
    folders.check(base.path)
    trust.require(base.path)
    folders.require_trainable(base.path)
    lora.read(adapter)
    with staging.staged(out, inputs) as folder:
        hashes = _write(base, adapter, folder, settings, on_progress)
        notes = [*notes_on(base.path, adapter), exported.rewrite(folder, settings.system)]
        if finish:
            finish(folder)
        about = {
            "kind": "merged",
            "engine": settings.engine,
            "base": base.name,
            "license": base.license,
            "base_fingerprint": base.fingerprint(),
            "faithful_nf4": settings.faithful_nf4,
            "adapter_sha256": fsio.sha256_file(lora.weights_file(adapter)),
            "notes": [note for note in notes if note],
            **trust.record(base.path),
        }
        manifest.write(folder, about, hashes)
    return out


def _write(
    base: ModelRef,
    adapter: Path,
    folder: Path,
    settings: MergeSettings,
    on_progress: OnProgress | None,
) -> dict[str, str]:
    """Write weights and companions; returns sha256 by name of the files whose hash is known."""
    what = "the merged model"
    if settings.engine == "xtuner":
        stored = sum(path.stat().st_size for path in folders.weight_files(base.path))
        fsio.require_space(folder, stored + _EXTRA_BYTES, what)
        size = f"{max(1, parse_size(settings.max_shard_size) // 1000)}KB"
        code = trust.allow(base.path)
        xtuner_tools.merge(base.path, adapter, folder, max_shard_size=size, remote_code=code)
        if base.family == "internlm2":  # saved by Llama's classes; InternLM's code reads its own
            _write_companions(base.path, folder, "float16", {})
        return {}
    with published.fitting(base.path, adapter) as fitting:
        plan = plan_merge(
            base.path, fitting, max_shard_size=settings.max_shard_size, dtype=settings.dtype
        )
        fsio.require_space(folder, plan.nbytes + _EXTRA_BYTES, what)
        nf4 = _nf4_weights(plan) if settings.faithful_nf4 else {}
        hashes = _write_weights(plan, folder, nf4, on_progress)
    _write_companions(plan.base, folder, plan.dtype, plan.config_changes)
    return hashes
