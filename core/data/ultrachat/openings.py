"""First lines of the three UltraChat kinds: questions about the world, creation, given material.

Diversity of a dialogue set comes from its first lines, so they are drawn from templates and
never from a model. Each kind has fallback lines for later turns, for when the user model fails.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["question", "creation", "material"]
KINDS: tuple[Kind, ...] = ("question", "creation", "material")

#: Exchanges in a dialogue: 3-7 for questions, 2-4 for the rest in the paper. Real traffic has
#: about two (LMSYS, WildChat), and every round costs two model calls, so the low end is ours.
ROUNDS: dict[Kind, tuple[int, int]] = {"question": (2, 4), "creation": (2, 3), "material": (2, 3)}

#: Share of openings that ask for a short answer. Small models run on otherwise: of 16 openings
#: the bundled model ended 3 replies within 80 tokens, 12 when asked for one sentence.
BRIEF = 0.8
#: Draws before a repeated text is accepted.
_TRIES = 20


@dataclass(frozen=True)
class Opening:
    """The user's first line, what it is about, and lines that may follow it."""

    kind: Kind
    topic: str
    text: str
    rounds: int
    follow_ups: tuple[str, ...]


@lru_cache(maxsize=1)
def _phrases() -> dict[str, Any]:
    text = Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def take(count: int, seed: int, locale: str, kinds: tuple[Kind, ...] = KINDS) -> list[Opening]:
    """The first ``count`` openings of a seed: kinds in turn, the rest random but fixed.

    No text comes twice until the phrases are used up (944 to 4,000 texts of a kind in English,
    240 to 800 in Chinese), since a greedy model answers equal lines alike. A longer list begins
    with a shorter one.
    """
    seen: set[str] = set()
    taken: list[Opening] = []
    for index in range(count):
        for attempt in range(_TRIES):
            opening = _draw(
                random.Random(f"opening/{seed}/{locale}/{index}/{attempt}"),
                kinds[index % len(kinds)],
                locale,
            )
            if opening.text not in seen:
                break
        seen.add(opening.text)
        taken.append(opening)
    return taken


def _draw(rng: random.Random, kind: Kind, locale: str) -> Opening:
    topic, text = _DRAW[kind](rng, locale)
    if rng.random() < BRIEF:
        # Within the text, so that the reply is what the model says to exactly this text.
        joint = "" if locale == "zh" else " "
        text += joint + rng.choice(_phrases()[locale]["brief"][kind])
    follow_ups = list(_phrases()[locale]["follow_ups"][kind])
    rng.shuffle(follow_ups)
    return Opening(kind, topic, text, rng.randint(*ROUNDS[kind]), tuple(follow_ups))


def _question(rng: random.Random, locale: str) -> tuple[str, str]:
    topic = rng.choice(_phrases()[locale]["questions"])
    frame, subject = rng.choice(topic["frames"]), rng.choice(topic["subjects"])
    return topic["topic"], frame.replace("{x}", subject)


def _creation(rng: random.Random, locale: str) -> tuple[str, str]:
    parts = _phrases()[locale]["creation"]
    subject = rng.choice(parts["subjects"])
    # Four in five are made more detailed, as in the paper.
    detail = rng.choice(parts["details"]) if rng.random() < 0.8 else ""
    return subject, rng.choice(parts["frames"]).replace("{x}", subject).replace("{d}", detail)


def _material(rng: random.Random, locale: str) -> tuple[str, str]:
    parts = _phrases()[locale]["material"]
    passage = rng.choice(parts["passages"])
    text = rng.choice(parts["glue"]).replace("{i}", rng.choice(parts["instructions"]))
    return passage["topic"], text.replace("{m}", passage["text"])


_DRAW = {"question": _question, "creation": _creation, "material": _material}


def locales() -> tuple[str, ...]:
    """Languages that have openings."""
    return tuple(_phrases())
