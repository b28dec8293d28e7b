"""Intervals and tests: Wilson, paired bootstrap, exact McNemar, the drop a sample can see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Two-sided 95 %.
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``n`` with its 95 % Wilson interval. An empty sample is the interval 0 to 1."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """hits / n; NaN for an empty sample."""
        return self.hits / self.n if self.n else math.nan

    @property
    def low(self) -> float:
        return wilson(self.hits, self.n)[0]

    @property
    def high(self) -> float:
        return wilson(self.hits, self.n)[1]

    def to_json(self) -> dict[str, Any]:
        """hits, n, value, low, high."""
        return {**asdict(self), "value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        if not self.n:
            return "no probes"
        return f"{self.hits}/{self.n} ({self.low:.1%}-{self.high:.1%})"


def rate(flags: Sequence[bool]) -> Rate:
    """The rate of true flags."""
    return Rate(sum(map(bool, flags)), len(flags))


def wilson(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson (1927): (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).

    Unlike p ± z·s it stays within 0 and 1 and says something at 0 of n. Equal to
    ``scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")``, without importing scipy.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no rate")
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends rounding leaves 1e-17 where the formula says 0 or 1.
    return (
        0.0 if hits == 0 else max(0.0, centre - half),
        1.0 if hits == n else min(1.0, centre + half),
    )


@dataclass(frozen=True)
class PairedChange:
    """Accuracy before and after on the same items.

    ``lost`` were right and became wrong, ``gained`` the reverse; ``change`` = (gained - lost)/n
    with the 95 % interval ``low`` to ``high``; ``p`` of the exact McNemar test;
    ``visible_drop``: the smallest drop that n items with this discordance show with 80 % power.
    """

    before: int
    after: int
    n: int
    lost: int
    gained: int
    change: float
    low: float
    high: float
    p: float
    visible_drop: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_change(
    before: Sequence[bool], after: Sequence[bool], *, seed: int = 0, resamples: int = 10_000
) -> PairedChange:
    """Compare two answers to each of the same questions.

    The interval is a BCa bootstrap over items, 10,000 resamples. Where all pairs agree the
    bootstrap has no spread; then the interval is that of 0 changes in n by the rule of Wilson.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """
    if len(before) != len(after) or not before:
        raise ValueError("paired_change needs two lists of the same length, not empty")
    n = len(before)
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    low, high = _interval(
        [int(a) - int(b) for b, a in zip(before, after, strict=True)], seed, resamples
    )
    discordance = max((lost + gained) / n, 1 / n)
    return PairedChange(
        before=sum(map(bool, before)),
        after=sum(map(bool, after)),
        n=n,
        lost=lost,
        gained=gained,
        change=(gained - lost) / n,
        low=low,
        high=high,
        p=mcnemar(lost, gained),
        visible_drop=visible_drop(n, discordance),
    )


def _interval(differences: Sequence[int], seed: int, resamples: int) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    if len(set(differences)) == 1:
        bound = wilson(0, len(differences))[1]
        return differences[0] - bound, differences[0] + bound
    found = bootstrap(
        (np.asarray(differences, float),),
        np.mean,
        n_resamples=resamples,
        method="BCa",
        rng=np.random.default_rng(seed),
        batch=1000,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test: under "no change" lost and gained are equally likely."""
    if lost + gained == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(lost, gained), lost + gained).pvalue)


def visible_drop(n: int, discordance: float) -> float:
    """The smallest drop in accuracy seen with 80 % power at one-sided 5 %.

    Normal approximation for paired proportions (Connor 1987, solved for the difference):
    d = (1.645·sqrt(q) + 0.842·sqrt(q - d²)) / sqrt(n), by iteration; never above q.
    """
    drop = 0.0
    for _ in range(50):
        rest = math.sqrt(max(discordance - drop * drop, 0.0))
        drop = min((1.645 * math.sqrt(discordance) + 0.842 * rest) / math.sqrt(n), discordance)
    return drop


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics; NaN for no values."""
    if not values:
        return math.nan
    ranked = sorted(values)
    at = q * (len(ranked) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (at - low)
