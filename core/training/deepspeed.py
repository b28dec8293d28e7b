"""DeepSpeed: its settings for a run, and why it cannot be chosen on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

from core import fsio
from core.errors import UserError
from core.models.device import Device
from core.training.spec import TrainSpec

#: Beside the run's config.
FILE = "deepspeed.json"


def unavailable(device: Device) -> str:
    """Why DeepSpeed cannot run here, or ''."""
    if device.kind != "cuda":
        return "no GPU was found, and DeepSpeed saves the memory of GPUs only"
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return "deepspeed is not installed"
    return ""


def write(spec: TrainSpec, work: Path) -> None:
    """XTuner's settings for the stage, with the compute type of the form.

    XTuner's say "auto", which takes bf16 wherever a GPU has it, whatever the form says.
    """
    found = importlib.util.find_spec("xtuner")
    if found is None or found.origin is None:
        raise UserError("XTuner is not installed")
    folder = Path(found.origin).parent / "configs" / "deepspeed"
    settings = json.loads((folder / f"deepspeed_{spec.deepspeed}.json").read_text())
    settings["fp16"]["enabled"] = spec.dtype == "float16"
    settings["bf16"]["enabled"] = spec.dtype == "bfloat16"
    fsio.write_json(work / FILE, settings)
