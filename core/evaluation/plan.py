"""Which suites a scorecard of each size asks, how many probes, how long the replies may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import UserError

Size = Literal["smoke", "quick", "sweep", "full"]


@dataclass(frozen=True)
class SuitePlan:
    """How one suite is asked. ``limit``: probes of each language; 0 means all.

    ``base``: whether the base answers it too. It need not where nothing is compared with it.
    ``samples``: replies sampled at temperature 0.7 in addition to the greedy one.
    """

    limit: int
    max_new_tokens: int
    base: bool = True
    samples: int = 0


@dataclass(frozen=True)
class Plan:
    """A size of scorecard.

    ``divergence``: prompts on which the distributions are compared, ``divergence_tokens`` each.
    ``margin``: probes for the identity margin. ``knowledge``: multiple-choice items (0 = none).
    """

    suites: dict[str, SuitePlan]
    divergence: int
    divergence_tokens: int
    margin: int
    knowledge: int


PLANS: dict[str, Plan] = {
    # For tests and dry runs: too few probes for any verdict but NOT ENOUGH EVIDENCE.
    "smoke": Plan(
        {"held_out": SuitePlan(12, 32), "general": SuitePlan(16, 24)},
        divergence=4,
        divergence_tokens=16,
        margin=4,
        knowledge=0,
    ),
    "quick": Plan(
        {
            "held_out": SuitePlan(160, 56),
            "train": SuitePlan(40, 56, base=False),
            "general": SuitePlan(0, 48),
            "near_miss": SuitePlan(0, 40),
            "introduced": SuitePlan(0, 56, base=False),
            "fidelity": SuitePlan(0, 48),
            "manner": SuitePlan(0, 40),
        },
        divergence=48,
        divergence_tokens=48,
        margin=32,
        knowledge=0,
    ),
    # The gates of "quick" for every checkpoint of a run, with the base's replies reused. Shorter
    # replies, for a name comes early if it comes: in the sweeps of 32 training runs with 40 and 32
    # tokens, 99.9 % of the hits were there after 32 tokens, 98 % of the leaks after 28.
    "sweep": Plan(
        {
            "held_out": SuitePlan(160, 32),
            "train": SuitePlan(24, 32, base=False),
            "general": SuitePlan(0, 28),
            "near_miss": SuitePlan(0, 28),
        },
        divergence=32,
        divergence_tokens=32,
        margin=24,
        knowledge=0,
    ),
    "full": Plan(
        {
            "held_out": SuitePlan(0, 96),
            "train": SuitePlan(40, 96, base=False),
            "unseen_intent": SuitePlan(0, 64),
            "adversarial": SuitePlan(0, 64, samples=3),
            "language": SuitePlan(0, 64, base=False),
            "multi_turn": SuitePlan(0, 64, base=False),
            "long_context": SuitePlan(0, 64, base=False),
            "system": SuitePlan(0, 64, base=False),
            "introduced": SuitePlan(0, 64, base=False),
            "fidelity": SuitePlan(0, 64),
            "manner": SuitePlan(0, 64),
            "general": SuitePlan(0, 96),
            "near_miss": SuitePlan(0, 64),
            "instructions": SuitePlan(0, 64),
        },
        divergence=100,
        divergence_tokens=96,
        margin=60,
        knowledge=400,
    ),
}


def plan(size: str) -> Plan:
    """The plan of a size. Raises UserError for an unknown one."""
    if size not in PLANS:
        raise UserError(
            f"there is no scorecard size {size!r}", fix=f"use one of {', '.join(PLANS)}"
        )
    return PLANS[size]
