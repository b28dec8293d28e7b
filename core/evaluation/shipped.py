"""A base in memory takes the weights of the merged model, as the merge would write them.

A checkpoint is then judged by what is shipped, its replies cost what the base's do (LoRA of rank
64 beside the weights costs 40 % more on a CPU), and the scorecard of the merged folder finds the
weights that the search has asked already, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.errors import UserError
from core.inference.resident import Resident
from core.weights import kernels
from core.weights.merge_plan import Op, plan_merge


@contextmanager
def merged(resident: Resident, base: Path, adapter: Path) -> Iterator[bool]:
    """Within the block the resident, loaded from ``base`` and bare, is base + adapter.

    Yields:
        False, and nothing is changed, where the merge does more than add to weights that are in
        memory as they are in the file.
    """
    parameters = dict(resident.model.named_parameters())
    space = kernels.Workspace()
    ops = _additions(base, adapter)
    if not ops or not all(_is_in(op, parameters, space) for op in ops):
        yield False
        return
    try:
        with torch.no_grad():
            for op in ops:
                parameters[op.name].copy_(kernels.merged(op, space))
        resident.changed()
        yield True
    finally:
        with torch.no_grad():
            for op in ops:
                parameters[op.name].copy_(space.load("base", op.base))
        resident.changed()


def _additions(base: Path, adapter: Path) -> list[Op]:
    """What the merge changes, if it is nothing but LoRA on weights; else nothing."""
    try:
        plan = plan_merge(base, adapter)
    except UserError:
        return []  # it may work beside the weights; if not, that says why
    changes = [op for op in plan.ops if op.kind != "copy"]
    plain = not plan.config_changes and all(op.kind == "lora" for op in changes)
    return changes if plain else []


def _is_in(op: Op, parameters: dict[str, torch.nn.Parameter], space: kernels.Workspace) -> bool:
    parameter = parameters.get(op.name)
    if parameter is None or tuple(parameter.shape) != op.base.shape:
        return False
    stored = space.load("base", op.base).to(parameter.device, parameter.dtype)
    return torch.equal(parameter.detach(), stored)
