"""How a reply is drawn: the knobs people know, three presets, and their limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError, UserErrors

#: Longest reply that may be asked for. A model that never stops is bounded by this.
MAX_NEW_TOKENS = 32_768


@dataclass(frozen=True)
class GenerationSettings:
    """Sampling settings, the same for every column, so that a difference is the model's.

    Attributes:
        temperature: 0 is greedy (always the most probable token).
        top_p: keep the smallest set of tokens whose probabilities sum to this (1 keeps all).
        top_k: keep this many of the most probable tokens (0 keeps all).
        repetition_penalty: > 1 makes tokens that occurred in prompt or reply less probable
            (Keskar et al. 2019, as in transformers).
        max_new_tokens: the reply is cut here.
        seed: start of the random numbers of each reply.
        min_p: keep tokens at least this share as probable as the most probable (0 keeps all).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0

    def check(self) -> GenerationSettings:
        """Return self.

        Raises:
            UserErrors: every setting that is out of range, at once.
        """
        rules = (
            (0 <= self.temperature <= 5, "temperature", "0 to 5; 0 is greedy"),
            (0 < self.top_p <= 1, "top_p", "above 0, up to 1"),
            (self.top_k >= 0, "top_k", "0 (off) or more"),
            (0.5 <= self.repetition_penalty <= 3, "repetition_penalty", "0.5 to 3; 1 is off"),
            (
                1 <= self.max_new_tokens <= MAX_NEW_TOKENS,
                "max_new_tokens",
                f"1 to {MAX_NEW_TOKENS}",
            ),
            (0 <= self.min_p < 1, "min_p", "0 (off) or more, below 1"),
            (0 <= self.seed < 2**63, "seed", "0 to 9223372036854775807"),
        )
        bad = [
            UserError(f"{name} = {getattr(self, name)} is out of range", fix=f"use {allowed}")
            for good, name, allowed in rules
            if not good
        ]
        if bad:
            raise UserErrors(bad)
        return self

    def to_dict(self) -> dict[str, Any]:
        """For the worker and the transcript."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationSettings:
        """Ignores keys it does not know, so that an older transcript still opens."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


#: ``xtuner chat`` and the tutorial's web demo: temperature 0.1, top_k 40, top_p 0.75, 2048 tokens.
XTUNER_CHAT = GenerationSettings(temperature=0.1, top_p=0.75, top_k=40, max_new_tokens=2048)
#: InternLM's own web demo: temperature 0.8, top_p 0.8, penalty 1.005; transformers adds top_k 50.
WEB_DEMO = GenerationSettings(
    temperature=0.8, top_p=0.8, top_k=50, repetition_penalty=1.005, max_new_tokens=2048
)
GREEDY = GenerationSettings()
PRESETS = ("greedy", "xtuner chat", "web demo", "model default")


def preset(name: str, model: Path | None = None) -> GenerationSettings:
    """Settings of a preset; "model default" reads the model's ``generation_config.json``.

    Raises:
        UserError: there is no such preset.
    """
    fixed = {"greedy": GREEDY, "xtuner chat": XTUNER_CHAT, "web demo": WEB_DEMO}
    if name in fixed:
        return fixed[name]
    if name != "model default":
        raise UserError(f"no preset {name!r}", fix=f"one of {', '.join(PRESETS)}")
    return _model_default(model)


def _model_default(model: Path | None) -> GenerationSettings:
    file = model / "generation_config.json" if model else None
    stored: dict[str, Any] = fsio.read_json(file) if file and file.is_file() else {}
    length = int(stored.get("max_new_tokens") or 256)
    penalty = float(stored.get("repetition_penalty") or 1.0)
    if not stored.get("do_sample", False):
        return GenerationSettings(max_new_tokens=length, repetition_penalty=penalty)
    # 50 is what transformers takes when the file does not say.
    return GenerationSettings(
        temperature=float(stored.get("temperature") or 1.0),
        top_p=float(stored.get("top_p") or 1.0),
        top_k=int(stored.get("top_k", 50) or 0),
        repetition_penalty=penalty,
        max_new_tokens=length,
        min_p=float(stored.get("min_p") or 0.0),
    )
