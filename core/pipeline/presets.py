"""How much work a persona gets: three sizes, and what each takes on this device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from core.data.own_identity import FEW
from core.evaluation.plan import Size
from core.jobs.state import State, Summary
from core.models.device import Device
from core.pipeline.stages import KIND, STAGES, Stage, TuneSpec
from core.training import budget, cost, defaults

Name = Literal["quick", "good", "thorough"]


@dataclass(frozen=True)
class Preset:
    """Identity rows that are built, and the size of the scorecard; the rest follows from them."""

    name: Name
    rows: int
    size: Size
    dataset: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, persona: str, slots: dict[str, str], model: str, seed: int = 0) -> TuneSpec:
        """What ``tune`` is asked for."""
        return TuneSpec(
            persona=persona,
            overrides=slots,
            model=model,
            seed=seed,
            dataset={"max_rows": self.rows, **self.dataset},
            training=dict(self.training),
            size=self.size,
        )


#: Good is what the results in docs/results.md were made with. That half or twice its rows suit a
#: first look or a last one is reasoned; no verdict was measured with them.
PRESETS: dict[Name, Preset] = {
    p.name: p
    for p in (Preset("quick", 120, "quick"), Preset("good", 250, "quick"),
              Preset("thorough", 500, "full"))
}  # fmt: skip

#: Seconds of each stage of Good with the bundled model on two AVX2 cores (docs/results.md), and
#: how many of them start-up takes. A stage's work grows with the rows or the probes.
_MEASURED: dict[str, tuple[float, float]] = {
    "dataset": (119.0, 12.0),
    "train": (562.0, 15.0),
    "sweep": (180.0, 12.0),
    "merge": (69.0, 10.0),
    "evaluate": (231.0, 12.0),
}
#: Start-up with a GPU: kernels are compiled, weights go over.
_GPU_START = 20.0
#: A full scorecard asks so many times as many tokens as a quick one.
_FULL = 6.0
_REFERENCE = 165.0
#: Rows of a dataset to one identity row: itself, its general ones and its look-alikes.
_MIX = 1 + FEW + 1.3


def seconds(
    rows: float, size: str, device: Device, shape: cost.Shape, past: Iterable[Summary] = ()
) -> dict[Stage, float]:
    """What each stage is expected to take.

    Args:
        rows: identity rows. ``size``: of the scorecard.
        past: runs of this workspace. What their stages took corrects the expectation, for it was
            measured on this very machine.
    """
    expected = _expected(rows, size, device, shape)
    for stage, factor in _corrections(past, device, shape).items():
        expected[stage] *= factor
    return expected


def minutes(device: Device, past: Iterable[Summary]) -> dict[Name, int]:
    """Of each preset on the bundled model, whole minutes; at least one."""
    shape, runs = _bundled(), list(past)
    return {
        name: max(1, round(sum(seconds(p.rows, p.size, device, shape, runs).values()) / 60))
        for name, p in PRESETS.items()
    }


def _bundled() -> cost.Shape:
    """SmolLM2-135M's shape, known without its folder."""
    return cost.Shape(
        hidden=576, layers=30, intermediate=1536, vocab=49152, heads=9, kv_heads=3, tied=True
    )


def _expected(rows: float, size: str, device: Device, shape: cost.Shape) -> dict[Stage, float]:
    speed = cost.tokens_per_second(device, shape) / _REFERENCE
    work = {"dataset": rows / 250, "train": rows / 250}
    work["evaluate"] = _FULL if size == "full" else 1.0
    found: dict[Stage, float] = {}
    for stage in STAGES:
        whole, start = _MEASURED[stage]
        begin = start if device.kind == "cpu" else _GPU_START
        found[stage] = begin + (whole - start) * work.get(stage, 1.0) / speed
    if device.kind == "cpu":
        found["train"] = min(found["train"], _MEASURED["train"][1] + defaults.CPU_SECONDS)
    return found


def _corrections(past: Iterable[Summary], device: Device, shape: cost.Shape) -> dict[Stage, float]:
    """Taken over expected: the median of the newest three finished runs of each stage."""
    ratios: dict[Stage, list[float]] = {stage: [] for stage in STAGES}
    for run in past:
        stage = next((s for s in STAGES if KIND[s] == run.kind), None)
        if stage is None or run.state is not State.SUCCEEDED or not run.elapsed_seconds:
            continue
        rows = _rows(run)
        if rows and len(ratios[stage]) < 3:
            expected = _expected(rows, str(run.params.get("size", "quick")), device, shape)
            ratios[stage].append(run.elapsed_seconds / expected[stage])
    return {stage: median(found) for stage, found in ratios.items() if found}


def _rows(run: Summary) -> float:
    """Identity rows of the work that a run did; 0 if its size cannot be told."""
    params = run.params
    if run.kind == "generate":
        return float((params.get("spec") or {}).get("max_rows") or 0)
    if run.kind == "train":
        seen = float(params.get("steps") or 0) * 16  # rows, at the default batch
        return seen / budget.PASSES / _MIX
    return 250.0
