"""Base model + adapter -> a model folder, streamed: memory is a few tensors, not a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from core import fsio
from core.conversation import OnProgress
from core.errors import UserError
from core.models.catalog import ModelRef
from core.weights import manifest, staging
from core.weights.plan import DEFAULT_SHARD_BYTES, MergePlan, parse_size, plan_merge
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
    plan: MergePlan, folder: Path, nf4: frozenset[str], on_progress: OnProgress | None
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
                faithful = op.name in nf4
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


def _write_companions(plan: MergePlan, folder: Path, remote_code: bool) -> None:
    config: dict[str, Any] = fsio.read_json(plan.base / "config.json")
    key = "dtype" if "dtype" in config else "torch_dtype"
    config |= {key: plan.dtype, **plan.config_changes}
    fsio.write_json(folder / "config.json", config)
    code = sorted(plan.base.glob("*.py")) if remote_code else []
    for path in [*companions(plan.base), *code]:
        shutil.copyfile(path, folder / path.name)


def _nf4_weights(plan: MergePlan) -> frozenset[str]:
    """Keys that QLoRA holds in NF4: every linear layer but the output head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(plan.base)))
    head = model.get_output_embeddings()
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return frozenset(linear & {op.name for op in plan.ops if op.kind != "replace"})


def _merge_stream(
    plan: MergePlan,
    folder: Path,
    faithful_nf4: bool,
    remote_code: bool,
    on_progress: OnProgress | None,
) -> dict[str, str]:
    nf4 = _nf4_weights(plan) if faithful_nf4 else frozenset()
    hashes = _write_weights(plan, folder, nf4, on_progress)
    _write_companions(plan, folder, remote_code)
    return hashes


def merge(
    base: ModelRef,
    adapter: Path,
    out: Path,
    *,
    engine: Engine = "stream",
    max_shard_size: str | int = DEFAULT_SHARD_BYTES,
    dtype: str | None = None,
    faithful_nf4: bool = False,
    remote_code: bool = False,
    finish: Callable[[Path], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write the merged model into the new folder ``out``; it appears whole or not at all.

    Args:
        engine: ``stream`` goes tensor by tensor and keeps the base's dtype; ``xtuner`` is
            XTuner's own merge, which loads everything and writes float16.
        max_shard_size: a number of bytes, or e.g. ``2GB``.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None keeps each tensor's own.
        faithful_nf4: start from the base as QLoRA saw it (rounded to NF4 and back) instead of the
            original. Nearer to what was trained, further from the base model.
        remote_code: copy the base's ``*.py`` too (engine ``xtuner`` also runs them). They run
            on the machine of whoever loads the folder with trust_remote_code, so only for a
            base that is trusted.
        finish: called with the folder before it gets its manifest and its name: to check it or
            to add files. If it raises, nothing remains.

    Raises:
        UserError: base and adapter do not fit (every problem named, nothing written), one of them
            is not as its manifest says, ``out`` exists or lies in an input, the disk is full.
    """
    if engine not in ("stream", "xtuner"):
        raise UserError(f"unknown merge engine {engine!r}", fix="'stream' or 'xtuner'")
    if engine == "xtuner" and (dtype not in (None, "float16") or faithful_nf4):
        raise UserError(
            "engine 'xtuner' writes float16 from the original base only", fix="use engine 'stream'"
        )
    inputs = [base.path, adapter]
    staging.check_output(out, inputs)
    for folder in inputs:  # safetensors loads a flipped bit without a word
        if (folder / manifest.NAME).is_file():
            manifest.verify(folder)
    plan = plan_merge(base.path, adapter, max_shard_size=max_shard_size, dtype=dtype)
    fsio.require_space(out, plan.nbytes + _EXTRA_BYTES, "the merged model")
    with staging.staged(out, inputs) as folder:
        hashes: dict[str, str] = {}
        if engine == "stream":
            hashes = _merge_stream(plan, folder, faithful_nf4, remote_code, on_progress)
        else:
            from core.weights import xtuner_tools

            size = f"{max(1, parse_size(max_shard_size) // 1000)}KB"
            xtuner_tools.merge(
                base.path, adapter, folder, max_shard_size=size, remote_code=remote_code
            )
        if finish:
            finish(folder)
        about = {
            "kind": "merged",
            "engine": engine,
            "base": base.name,
            "license": base.license,
            "base_fingerprint": base.fingerprint(),
            "faithful_nf4": faithful_nf4,
            "adapter_sha256": fsio.sha256_file(adapter / "adapter_model.safetensors"),
            "notes": plan.notes,
        }
        manifest.write(folder, about, hashes)
    return out
