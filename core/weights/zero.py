"""Read the trained weights out of a DeepSpeed checkpoint folder, without DeepSpeed or torch.

mmengine's strategy writes ``iter_N.pth/`` with one ``*_model_states.pt`` a rank (names, shapes)
and one ``*_zero_pp_rank_R_*_optim_states.pt`` a rank, which holds that rank's slice of the fp32
master weights. ZeRO 1 and 2 cut each parameter group, laid out end to end, into equal slices;
ZeRO 3 cuts each parameter by itself and pads the last slice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.weights.checkpoint import CheckpointFile, StoredTensor, open_checkpoint

Array = npt.NDArray[Any]


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """What is not of the types that ZeRO writes, anywhere in its files, is a UserError."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder} is not what DeepSpeed writes",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="use an earlier checkpoint",
        ) from error


def _ranked(folder: Path, pattern: str) -> list[Path]:
    def rank(path: Path) -> int:
        match = re.search(r"zero_pp_rank_(\d+)_", path.name)
        return int(match[1]) if match else 0

    return sorted(folder.glob(pattern), key=rank)


def _flat(checkpoint: CheckpointFile, tensor: Any) -> Array:
    if not isinstance(tensor, StoredTensor):
        raise UserError(f"{checkpoint.path} holds no flat weights")
    return checkpoint.locate("fp32 groups", tensor).to_float32().reshape(-1)


def read_shapes(folder: Path) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the trained parameters by name, a dictionary a group, from rank 0's model states.

    Raises:
        UserError: there are none, or they are not what ZeRO writes.
    """
    states = _ranked(folder, "*model_states.pt")
    if not states:
        raise UserError(
            f"{folder} is not a DeepSpeed checkpoint",
            why="it has no *_model_states.pt",
            fix="choose an iter_N.pth of a run's work folder",
        )
    with _as_written(folder):
        groups = open_checkpoint(states[0]).content["param_shapes"]
        return [{str(k): tuple(map(int, v)) for k, v in group.items()} for group in groups]


def _slices(path: Path) -> tuple[int, int, list[Array]]:
    """Stage, number of ranks, and this rank's slice of each group."""
    checkpoint = open_checkpoint(path)
    state = checkpoint.content.get("optimizer_state_dict")
    if not isinstance(state, dict) or "zero_stage" not in state:
        raise UserError(f"{path} is not a ZeRO optimizer state")
    stage, count = int(state["zero_stage"]), state.get("partition_count", 1)
    ranks = max(count) if isinstance(count, list) else int(count)
    key = "single_partition_of_fp32_groups" if stage <= 2 else "fp32_flat_groups"
    groups = state.get(key)
    if not isinstance(groups, list) or not groups:
        raise UserError(f"{path} holds no fp32 weights")
    return stage, ranks, [_flat(checkpoint, g) for g in groups]


def _whole(
    shapes: list[dict[str, tuple[int, ...]]], ranks: list[list[Array]], folder: Path
) -> Iterator[tuple[str, Array]]:
    for at, group in enumerate(shapes):
        flat = np.concatenate([slices[at] for slices in ranks])
        start = 0
        for name, shape in group.items():
            count = math.prod(shape)
            if start + count > flat.size:
                raise UserError(f"{folder}: {name} is cut short", fix="use an earlier checkpoint")
            yield name, flat[start : start + count].reshape(shape)
            start += count


def _partitioned(
    shapes: list[dict[str, tuple[int, ...]]], ranks: list[list[Array]], folder: Path
) -> Iterator[tuple[str, Array]]:
    flats = [np.concatenate(slices) for slices in ranks]
    start = 0
    for group in shapes:
        for name, shape in group.items():
            count = math.prod(shape)
            share = math.ceil(count / len(flats))
            if start + share > flats[0].size:
                raise UserError(f"{folder}: {name} is cut short", fix="use an earlier checkpoint")
            joined = np.concatenate([flat[start : start + share] for flat in flats])
            yield name, joined[:count].reshape(shape)
            start += share


def read_zero(folder: Path) -> dict[str, Array]:
    """Trained parameters (float32) by name.

    Raises:
        UserError: a rank's file is missing, torn, or not what ZeRO writes.
    """
    shapes = read_shapes(folder)
    optims = _ranked(folder, "*optim_states.pt")
    with _as_written(folder):
        parts = [_slices(path) for path in optims]
    if not parts or len(parts) != parts[0][1]:
        raise UserError(
            f"{folder} has {len(parts)} optimizer files",
            why=f"{parts[0][1] if parts else 'some'} ranks wrote the checkpoint",
            fix="copy the files of every node into the folder",
        )
    rebuild = _whole if parts[0][0] <= 2 else _partitioned
    with _as_written(folder):
        return dict(rebuild(shapes, [groups for _, _, groups in parts], folder))
