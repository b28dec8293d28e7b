"""DeepSpeed: why it cannot be chosen on this machine."""

from __future__ import annotations

import importlib.metadata

from core.models.device import Device


def unavailable(device: Device) -> str:
    """Why DeepSpeed cannot run here, or ''."""
    if device.kind != "cuda":
        return "no GPU was found, and XTuner's DeepSpeed launcher stops without one"
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return "deepspeed is not installed"
    return ""
