"""A training checkpoint to a PEFT adapter: ``adapter_model.safetensors`` and its config."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core import fsio, paths, seal
from core.errors import UserError
from core.models import catalog
from core.models.lora import CONFIG, WEIGHTS
from core.weights import manifest, staging, xtuner_tools
from core.weights.checkpoint import open_checkpoint
from core.weights.source import AdapterSource, read_config
from core.weights.zero import read_zero

Engine = Literal["fast", "xtuner"]
Array = npt.NDArray[Any]

#: XTuner's name for the copy of the config that it puts beside the weights.
CONFIG_COPY = "xtuner_config.py"
_FP16_MAX = 65504.0


def adapter_key(name: str) -> str | None:
    """The key that PEFT saves for a parameter of XTuner's model, or None if it is not saved.

    ``llm.base_model.model.X.lora_A.default.weight`` -> ``base_model.model.X.lora_A.weight``.
    """
    key = name.removeprefix("module.").removeprefix("llm.")
    if not key.startswith("base_model."):
        return None
    if match := re.fullmatch(r"(.+)\.modules_to_save\.default\.(.+)", key):
        return f"{match[1]}.{match[2]}"
    # PEFT keeps DoRA's magnitude under its old name, without ".weight".
    key = re.sub(r"\.lora_magnitude_vector\.default\.weight$", ".lora_magnitude_vector", key)
    if match := re.fullmatch(r"(.+\.lora_[a-zA-Z_]+?)(?:\.default)?(\.weight|\.bias)?", key):
        return match[1] + (match[2] or "")
    return None


def _trained(checkpoint: Path) -> dict[str, Array]:
    """Adapter key -> float32 array. Only these tensors are read from the file."""
    arrays: dict[str, Array] = {}
    if checkpoint.is_dir():
        for name, array in read_zero(checkpoint).items():
            if key := adapter_key(name):
                arrays[key] = array
    else:
        opened = open_checkpoint(checkpoint)
        content = opened.content
        state = content.get("state_dict", content) if isinstance(content, dict) else content
        for name, ref in opened.tensors(state, "state_dict").items():
            if key := adapter_key(name):
                arrays[key] = ref.to_float32()
    if not any("lora_" in key for key in arrays):
        raise UserError(
            f"{checkpoint} holds no LoRA weights",
            why="no key with lora_ in its state dict",
            fix="choose a checkpoint of a LoRA or QLoRA run",
        )
    return arrays


def _check_finite(arrays: dict[str, Array], checkpoint: Path, fp32: bool) -> None:
    for key, array in arrays.items():
        largest = float(np.abs(array).max()) if array.size else 0.0
        if not np.isfinite(largest):
            raise UserError(
                f"{checkpoint} is broken: {key} holds values that are not finite",
                why="the training diverged",
                fix="use an earlier checkpoint or a lower lr",
            )
        if not fp32 and largest > _FP16_MAX:
            raise UserError(
                f"{key} holds {largest:.3g}, which float16 cannot hold",
                fix="convert with fp32 (--fp32)",
            )


def lora_config(source: AdapterSource, keys: list[str]) -> dict[str, Any]:
    """The adapter_config.json: what differs from PEFT's defaults, plus what readers rely on.

    Fields left at their default are left out, because other releases of PEFT and vLLM refuse or
    warn about fields that they do not know. XTuner's default targets (every linear layer but the
    head) are not in the config, so they are read off the weights.
    """
    lora = dict(source.lora)
    # PEFT's own defaults, for configs that leave these out.
    merged = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", **lora}
    if not merged.get("target_modules"):
        modules = {
            key.rsplit(".lora_A", 1)[0].rsplit(".", 1)[-1] for key in keys if ".lora_A" in key
        }
        merged["target_modules"] = sorted(modules)
    return {
        **merged,
        "peft_type": "LORA",
        "task_type": merged.get("task_type", "CAUSAL_LM"),
        "base_model_name_or_path": source.base_model,
        "inference_mode": True,
    }


def _convert_fast(checkpoint: Path, config: Path, folder: Path, fp32: bool) -> None:
    from safetensors.numpy import save_file

    source = read_config(config)
    arrays = _trained(checkpoint)
    _check_finite(arrays, checkpoint, fp32)
    kind = np.dtype("<f4" if fp32 else "<f2")
    save_file(
        {key: np.ascontiguousarray(array, dtype=kind) for key, array in arrays.items()},
        str(folder / WEIGHTS),
        {"format": "pt"},
    )
    fsio.write_json(folder / CONFIG, lora_config(source, list(arrays)))
    shutil.copyfile(config, folder / CONFIG_COPY)


def _convert_xtuner(
    checkpoint: Path, config: Path, folder: Path, fp32: bool, max_shard_size: str
) -> None:

    # XTuner runs the config, so it must be the one that a run of this workspace wrote. Of the
    # checkpoint it gets data only, whatever the file names.
    if not seal.sealed(config):
        raise UserError(
            f"{config} was not written by a training run of this workspace, or was changed since",
            why="engine 'xtuner' runs the config as code",
            fix="use engine 'fast', which runs none",
        )
    xtuner_tools.pth_to_hf(config, checkpoint, folder, fp32=fp32, max_shard_size=max_shard_size)
    if not (folder / CONFIG).is_file() and not (folder / "config.json").is_file():
        raise UserError(f"XTuner's converter wrote no adapter for {checkpoint}")


def convert(
    checkpoint: Path,
    config: Path,
    out: Path,
    *,
    fp32: bool = False,
    engine: Engine = "fast",
    max_shard_size: str = "2GB",
) -> Path:
    """Write the adapter of ``checkpoint`` into the new folder ``out``.

    Args:
        checkpoint: an ``iter_N.pth`` file, or the folder that DeepSpeed writes under that name.
        config: the XTuner config of the run.
        fp32: keep float32; otherwise float16, as XTuner does.
        engine: ``fast`` reads the LoRA tensors only and runs no code of either file; ``xtuner``
            is XTuner's own ``pth_to_hf``, which builds the whole model first.
        max_shard_size: for engine ``xtuner`` and full checkpoints; adapters are one file.

    Raises:
        UserError: a file is missing, torn, refused or does not fit; ``out`` exists; no disk space.
    """
    if engine not in ("fast", "xtuner"):
        raise UserError(f"unknown convert engine {engine!r}", fix="'fast' or 'xtuner'")
    inputs = [checkpoint] if checkpoint.is_dir() else []
    with staging.staged(out, inputs) as folder:
        if engine == "fast":
            _convert_fast(checkpoint, config, folder, fp32)
        else:
            _convert_xtuner(checkpoint, config, folder, fp32, max_shard_size)
        about = {"kind": "adapter", "engine": engine, "checkpoint": checkpoint.name, "fp32": fp32}
        manifest.write(folder, {**about, **_base_of(folder)})
    return out


def _base_of(folder: Path) -> dict[str, str]:
    """The fingerprint of the base, if its folder is here: its name alone is no proof."""
    path = folder / CONFIG
    base = (
        Path(str(fsio.read_json(path).get("base_model_name_or_path"))) if path.is_file() else None
    )
    if base is None or not (base / "config.json").is_file():
        return {}
    return {"base_fingerprint": catalog.fingerprint(base)}


def adapter_of(run: paths.RunPaths, checkpoint: Path) -> Path:
    """The PEFT adapter of a run's checkpoint, converted in float32 if it is not there yet.

    The one writer of ``run.adapter``: whoever needs the adapter of a checkpoint (sweep, Compare)
    gets the same bytes, whichever of them asked first. A folder that holds anything else, from
    an interrupted attempt or in float16, is made again.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if (checkpoint / CONFIG).is_file():
        return checkpoint
    folder = run.adapter / checkpoint.stem
    if not _is_float32(folder):
        shutil.rmtree(folder, ignore_errors=True)
        convert(checkpoint, run.config, folder, fp32=True)
    return folder


def _is_float32(folder: Path) -> bool:
    if not (folder / manifest.NAME).is_file():
        return False
    return manifest.read(folder).get("fp32") is True
