"""How long do scorecards take? Quick, full, and a sweep of ten checkpoints against one quick.

    python benchmarks/scorecard_speed.py --dataset DIR --merged DIR
    python benchmarks/scorecard_speed.py --dataset DIR --run RUN --only sweep

Everything is computed anew: the caches go into a temporary workspace. The sweep scores the run's
checkpoints; with fewer than ten, copies with slightly scaled weights stand in for the missing ones
(other weights, so nothing comes from the cache, and about the same behaviour).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import fsio, paths
from core.paths import DatasetPaths, RunPaths


def adapters_of(run: RunPaths, count: int, folder: Path) -> list[Path]:
    """``count`` adapters of a run, the missing ones made by scaling the last."""
    from core.evaluation import sweep

    real = [sweep.adapter_of(run, c) for c in sweep.checkpoints(run)][:count]
    made = [
        scaled(real[-1], folder / f"scaled_{i}", 1 - 0.001 * (i + 1))
        for i in range(count - len(real))
    ]
    return [*real, *made]


def scaled(adapter: Path, out: Path, factor: float) -> Path:
    """The adapter with its B matrices multiplied."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: v * factor if "lora_B" in k else v for k, v in tensors.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    shutil.copy(adapter / "adapter_config.json", out)
    return out


def time_scorecard(
    size: str, base: str, tuned: Path, dataset: DatasetPaths, *, merged: bool
) -> float:
    """Seconds of one scorecard of base and tuned model, with an empty cache."""
    from core.evaluation import scorecard
    from core.evaluation.pool import Source
    from core.models import catalog

    model = catalog.resolve(base)
    side = Source(catalog.resolve(str(tuned))) if merged else Source(model, tuned)
    shutil.rmtree(paths.cache_dir() / "evaluation", ignore_errors=True)
    began = time.perf_counter()
    card = scorecard.evaluate({"base": Source(model), "tuned": side}, dataset, size=size)
    seconds = time.perf_counter() - began
    judged = card.sides["tuned"]
    print(
        f"{size}: {seconds:.0f} s; held-out {judged.recall.n}, general {judged.leak.n}, "
        f"verdict {card.verdict.name}",
        flush=True,
    )
    for stage, spent in sorted(card.clock.spent.items(), key=lambda item: -item[1])[:12]:
        print(f"    {spent:6.1f} s  {stage}", flush=True)
    return seconds


def time_sweep(base: str, run: RunPaths, dataset: DatasetPaths, count: int) -> float:
    """Seconds of a sweep of ``count`` checkpoints, with an empty cache."""
    from core.evaluation import sweep

    with tempfile.TemporaryDirectory() as folder:
        made = RunPaths(Path(folder) / "run")
        made.root.mkdir()
        found = adapters_of(run, count, Path(folder))
        fsio.write_json(
            made.result,
            {"checkpoints": [{"step": i + 1, "path": str(p)} for i, p in enumerate(found)]},
        )
        shutil.rmtree(paths.cache_dir() / "evaluation", ignore_errors=True)
        began = time.perf_counter()
        result = sweep.sweep(made, dataset, base)
        seconds = time.perf_counter() - began
    print(
        f"sweep of {count}: {seconds:.0f} s; by checkpoint "
        f"{', '.join(f'{r.seconds:.0f}' for r in result.rows)}",
        flush=True,
    )
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Time what ``--only`` names (default: all)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--merged", type=Path, help="merged model, for the scorecards")
    parser.add_argument("--run", type=Path, help="training run, for the sweep")
    parser.add_argument(
        "--only", nargs="*", choices=("quick", "full", "sweep"), default=("quick", "full", "sweep")
    )
    parser.add_argument("--checkpoints", type=int, default=10)
    args = parser.parse_args(argv)
    if not (args.merged or args.run):
        parser.error("give --merged, --run or both")
    dataset = DatasetPaths(args.dataset)
    from core.models import catalog

    base = str(catalog.resolve(args.base).path)  # prepared before the workspace changes
    with tempfile.TemporaryDirectory() as home:
        os.environ["PERSONA_HOME"] = home
        seconds = {}
        tuned = args.merged or adapters_of(RunPaths(args.run), 1, Path(home))[0]
        for size in ("quick", "full"):
            if size in args.only:
                seconds[size] = time_scorecard(size, base, tuned, dataset, merged=bool(args.merged))
        if "sweep" in args.only and args.run:
            seconds["sweep"] = time_sweep(base, RunPaths(args.run), dataset, args.checkpoints)
    if {"quick", "sweep"} <= seconds.keys():
        print(f"sweep / quick = {seconds['sweep'] / seconds['quick']:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
