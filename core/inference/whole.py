"""Whether a model folder holds every weight of its model, and numbers in all of them.

transformers fills a weight that nobody has with random numbers and drops what has no place, both
with a warning; NaN goes through training and merge. So the folder is asked before either: the
model is put together without its values, and the values are read once for their range.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from core.errors import UserError
from core.models import folder, trust
from core.models.finite import broken

#: What transformers raises for a folder that it cannot make a model of.
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    ImportError,
    AttributeError,
    StrictDataclassError,
    SafetensorError,
    pickle.UnpicklingError,
)
#: (path, size, time of change) of each file that the answer rests on.
_Files = tuple[tuple[Path, int, int], ...]


def open_model(path: Path, **options: Any) -> Any:
    """The causal LM of a folder, as transformers loads it.

    Args:
        options: of ``from_pretrained``.

    Raises:
        UserError: the folder is not one whole model, or its code is not trusted.
    """
    from transformers import AutoModelForCausalLM

    from core.models import internlm2

    internlm2.register()
    folder.check(path)
    code = trust.allow(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            trust_remote_code=code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # said below, by name
            **options,
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"cannot load {path} as a causal language model",
            why=str(error)[:400],
            fix="check that the folder is whole",
        ) from error
    model, found = loaded
    _require_no_gap(path, found)
    return model


def _require_no_gap(path: Path, found: dict[str, Any]) -> None:
    """Raise UserError for weights that nobody has, of another shape, or without a place."""
    missing = sorted(map(str, found["missing_keys"]))
    # Old files keep buffers that are computed today; a layer's weight is no buffer.
    extra = sorted(k for k in map(str, found["unexpected_keys"]) if k.endswith("_proj.weight"))
    other = sorted(
        f"{name} ({list(stored)}, not {list(wanted)})"
        for name, stored, wanted in found["mismatched_keys"]
    )
    for weights, what in (
        (missing, "are not in its files"),
        (extra, "have no place in its config"),
        (other, "are of another shape than its config says"),
    ):
        if weights:
            raise UserError(
                f"{path} is not one whole model",
                why=f"{len(weights):,} weights {what}, e.g. {weights[0]}",
                fix="download the model folder again; config.json and weights must be of one model",
            )


def require_whole(path: Path) -> None:
    """Raise UserError unless the folder loads, nothing is missing, and every value is a number.

    Takes half a second and one reading of the weights; asked again for the same files, nothing.
    """
    folder.check(path)
    _has_every_weight(path, _files(path))
    require_finite(path)


def require_finite(path: Path) -> None:
    """Raise UserError if a weight of the folder is NaN or infinite."""
    _has_numbers(path, _files(path))


@lru_cache(maxsize=64)
def _has_every_weight(path: Path, files: _Files) -> None:
    with _quiet():
        open_model(path, device_map="meta")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and report: nothing is loaded, and what is wrong is said here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@lru_cache(maxsize=64)
def _has_numbers(path: Path, files: _Files) -> None:
    for file in folder.weight_files(path):
        if name := broken(file):
            raise UserError(
                f"the weights of {path} are broken",
                why=f"{name} in {file.name} holds NaN or infinity",
                fix="download the model again; if it was merged or converted, do that again in a "
                "type that can hold its numbers",
            )


def _files(path: Path) -> _Files:
    asked = [path / "config.json", *folder.weight_files(path)]
    return tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in asked)
