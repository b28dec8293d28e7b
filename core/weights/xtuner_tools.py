"""XTuner's own converters, run in this process; only the job child imports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.models.data_only import data_only


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
    with (
        _arguments(
            "pth_to_hf",
            str(config),
            str(checkpoint),
            str(out),
            "--safe-serialization",
            "--max-shard-size",
            max_shard_size,
            *extra,
        ),
        data_only(),
    ):
        tool.main()


@contextmanager
def _remote_code(tool: Any, allowed: bool) -> Iterator[None]:
    """XTuner loads base and tokenizer with ``trust_remote_code=True``: a folder's own code runs."""

    class Loader:
        def __init__(self, original: Any) -> None:
            self.original = original

        def from_pretrained(self, *args: Any, **kwargs: Any) -> Any:
            return self.original.from_pretrained(*args, **{**kwargs, "trust_remote_code": allowed})

    before = tool.AutoModelForCausalLM, tool.AutoTokenizer
    tool.AutoModelForCausalLM, tool.AutoTokenizer = map(Loader, before)
    try:
        yield
    finally:
        tool.AutoModelForCausalLM, tool.AutoTokenizer = before


def merge(
    base: Path, adapter: Path, out: Path, *, max_shard_size: str, remote_code: bool = False
) -> None:
    """``xtuner convert merge BASE ADAPTER OUT --safe-serialization``; always writes float16.

    Args:
        remote_code: let the base's own Python run (``trust.allow``).
    """
    from core.training import compat

    compat.apply()
    from xtuner.tools.model_converters import merge as tool

    arguments = _arguments(
        "merge",
        str(base),
        str(adapter),
        str(out),
        "--safe-serialization",
        "--max-shard-size",
        max_shard_size,
    )
    with arguments, _remote_code(tool, remote_code), data_only():
        tool.main()
