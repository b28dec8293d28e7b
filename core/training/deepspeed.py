"""DeepSpeed: what can be chosen on this machine, and why not where it cannot."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from core.models.device import Device
from core.training.config import stock_paths
from core.training.spec import TrainSpec

_ABOUT = {
    "zero1": "optimizer state sharded over the GPUs",
    "zero2": "gradients sharded too: the tutorial's choice",
    "zero2_offload": "as ZeRO-2, optimizer in host memory: for a GPU that is too small",
    "zero3": "weights sharded too: for a base that does not fit into one GPU",
    "zero3_offload": "as ZeRO-3, weights and optimizer in host memory: slowest, smallest",
}


@dataclass(frozen=True)
class Option:
    """One DeepSpeed choice. ``reason`` says why it is off; empty means it can be chosen."""

    value: str
    about: str
    reason: str = ""


def unavailable(device: Device) -> str:
    """Why DeepSpeed cannot run here, or ''."""
    if device.kind != "cuda":
        return "no GPU was found, and XTuner's DeepSpeed launcher stops without one"
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return "deepspeed is not installed"
    return ""


def options(device: Device) -> list[Option]:
    """Every choice, with the reason where it is off."""
    why = unavailable(device)
    return [Option(value, about, why) for value, about in _ABOUT.items()]


def json_path(spec: TrainSpec) -> str:
    """XTuner's own JSON for the choice; accumulation, batch and clipping in it are 'auto'."""
    folder = next(iter(stock_paths().values()))
    while folder.name != "configs":
        folder = folder.parent
    return str(folder / "deepspeed" / f"deepspeed_{spec.deepspeed}.json")
