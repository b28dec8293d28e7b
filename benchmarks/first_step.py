"""Processor seconds from the command to the end of the first optimizer step.

    python benchmarks/first_step.py DATASET [--model bundled] [--rounds 2]

DATASET is a folder under workspace/datasets. Each variant is a process of its own that ends after
its first step; the variants take turns. The best of the rounds is shown, with the seconds by the
clock of that round.

``ours``: the job of a run. ``waiting``: the same from the moment on in which a process that got
ready while another stage worked (``core/jobs/standby.py``) is told its run, as in ``tune``.
``xtuner``: XTuner's own train on the same config, with nothing of ours but the repairs without
which it does not start beside today's libraries. Its step is the plain one; a float32 step of
ours is faster, which is part of what is measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
VARIANTS = ("ours", "waiting", "xtuner")


class _End:
    """Reports the seconds since ``begin`` and ends the process after the first step."""

    def __init__(self) -> None:
        # What the interpreter needed before this line counts too.
        self.processor, self.clock = 0.0, time.time() - (time.perf_counter() - _STARTED)

    def begin(self) -> None:
        """Count from here on."""
        self.processor, self.clock = time.process_time(), time.time()

    def end(self) -> None:
        print(f"@@ {time.process_time() - self.processor} {time.time() - self.clock}", flush=True)
        os._exit(0)


_STARTED = time.perf_counter()


def _spec(dataset: str, model: str) -> Any:
    from core.models.device import describe
    from core.training import defaults

    chosen, _ = defaults.choose(dataset, model, describe(), {"steps": 10})
    return chosen


def _one(variant: str, dataset: str, model: str, folder: Path) -> None:
    """In a process of its own."""
    end = _End()
    from core.models import trust
    from core.paths import RunPaths
    from core.training import config, entry, train_job

    trust.permit()
    run = RunPaths(folder)
    run.work.mkdir(parents=True)
    spec = _spec(dataset, model)
    if variant == "xtuner":
        _xtuner(entry.xtuner_argv(spec, config.write_config(spec, run.config), run.work), end)
    if variant == "waiting":
        entry.ready()
        end.begin()

    def told(stage: str, done: int, total: int) -> None:
        if stage == "train" and done:
            end.end()

    train_job.run(spec, run, told)


def _xtuner(argv: list[str], end: _End) -> None:
    from core import seal
    from core.models.data_only import data_only
    from core.training import compat

    seal.seal(Path(argv[0]))
    compat.apply()
    from mmengine.hooks import Hook
    from mmengine.runner import Runner
    from xtuner.tools import train

    class Stop(Hook):  # type: ignore[misc]
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            end.end()

    begin = Runner.train

    def with_hook(self: Any) -> Any:
        self.register_hook(Stop(), priority="LOWEST")
        return begin(self)

    Runner.train = with_hook
    sys.argv = ["xtuner-train", *argv]
    with data_only():
        train.main()


def main() -> None:
    """Take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.variant:
            _one(args.variant, args.dataset, args.model, Path(scratch) / "run")
            return
    took: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, args.dataset, "--model", args.model]
            done = subprocess.run(
                [*command, "--variant", variant], text=True, capture_output=True, cwd=REPO
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("@@ ")]
            assert lines, done.stdout[-2000:] + done.stderr[-2000:]
            _, processor, clock = lines[-1].split()
            took[variant].append((float(processor), float(clock)))
    for variant, all_of in took.items():
        processor, clock = min(all_of)
        print(f"{variant:8} {processor:6.1f} processor seconds, {clock:6.1f} by the clock")


if __name__ == "__main__":
    main()
