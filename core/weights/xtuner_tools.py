"""XTuner's own converters, run in this process; only the job child imports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def _arguments(*argv: str) -> Iterator[None]:
    """XTuner's tools read sys.argv. MKL and libgomp clash in some builds without the variable."""
    before, force = sys.argv, os.environ.get("MKL_SERVICE_FORCE_INTEL")
    sys.argv = list(argv)
    os.environ["MKL_SERVICE_FORCE_INTEL"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if force is None:
            os.environ.pop("MKL_SERVICE_FORCE_INTEL", None)
        else:
            os.environ["MKL_SERVICE_FORCE_INTEL"] = force


def pth_to_hf(
    config: Path, checkpoint: Path, out: Path, *, fp32: bool, max_shard_size: str
) -> None:
    """``xtuner convert pth_to_hf CONFIG PTH OUT --safe-serialization``."""
    from core.training import compat

    compat.apply()
    from xtuner.tools.model_converters import pth_to_hf as tool

    extra = ["--fp32"] if fp32 else []
    with _arguments(
        "pth_to_hf",
        str(config),
        str(checkpoint),
        str(out),
        "--safe-serialization",
        "--max-shard-size",
        max_shard_size,
        *extra,
    ):
        tool.main()


def merge(base: Path, adapter: Path, out: Path, *, max_shard_size: str) -> None:
    """``xtuner convert merge BASE ADAPTER OUT --safe-serialization``; always writes float16."""
    from core.training import compat

    compat.apply()
    from xtuner.tools.model_converters import merge as tool

    with _arguments(
        "merge",
        str(base),
        str(adapter),
        str(out),
        "--safe-serialization",
        "--max-shard-size",
        max_shard_size,
    ):
        tool.main()
