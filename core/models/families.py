"""What differs between families of models and is read from a folder's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rope_settings(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Base and scaling of a config's rotary positions (RoPE, arXiv 2104.09864).

    transformers 5 writes ``rope_parameters`` with both; before, ``rope_theta`` and ``rope_scaling``
    were keys of their own, and published folders have them.

    Returns:
        The base (10000 where none is named, as in transformers), and the scaling with its
        ``rope_type``; empty if positions are not scaled.
    """
    newer = config.get("rope_parameters") or {}
    scaling = dict(config.get("rope_scaling") or newer)
    theta = float(scaling.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    kind = str(scaling.pop("rope_type", None) or scaling.pop("type", None) or "default")
    return theta, {"rope_type": kind, **scaling} if scaling or kind != "default" else {}
