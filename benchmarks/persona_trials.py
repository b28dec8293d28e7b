"""One trial: a dataset, a training run, a sweep of its checkpoints; many of them side by side.

Shared by ``regimes.py`` and ``mix_sweep.py``. A trial goes through the same core functions as the
app: ``core.data.build``, ``core.training.train_job`` (XTuner), ``core.weights.convert``,
``core.evaluation.sweep``. Each trial is a process of its own; a trial whose result file is there
is not run again, so a benchmark that was cut off goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core import fsio, paths  # noqa: E402  (after the path)
from core.paths import DatasetPaths, RunPaths  # noqa: E402
from core.text.intervals import wilson  # noqa: E402

#: Personas that nobody tuned the defaults on: pack and slot values.
PERSONAS: dict[str, tuple[str, dict[str, str]]] = {
    "Luna": ("assistant.yaml", {"name": "Luna", "author": "Riverside Lab"}),
    "Quill": ("assistant.yaml", {"name": "Quill", "author": "Harbor Street Books"}),
    "Marlow": ("assistant.yaml", {"name": "Marlow", "author": "the Sundial Collective"}),
    "Orlin": ("museum-guide.yaml", {"name": "Orlin", "author": "Gullwing Museum"}),
    "Tamsin": ("tutor.yaml", {"name": "Tamsin", "author": "Larkfield School"}),
}


@dataclass(frozen=True)
class Trial:
    """What one process does. ``copies`` > 0: the tutorial's data, one row that many times.

    ``model``: '' is the benchmark's ``--model``. Trials that want the same dataset share it.
    """

    name: str
    persona: str
    seed: int
    regime: str
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    copies: int = 0
    size: str = "sweep"
    model: str = ""


def run_trial(trial: Trial, folder: Path, model: str) -> dict[str, Any]:
    """Build, train, sweep; the result also says how long each took."""
    from core.evaluation import sweep
    from core.models.device import describe
    from core.training import train_job
    from core.training.defaults import choose

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    built = shared_dataset(trial, folder.parent / "datasets", model)
    dataset_seconds = time.monotonic() - started
    settings = {"seed": trial.seed, "evaluation_inputs": [], **trial.train}
    chosen, _ = choose(str(built.root), model, describe(), settings)
    run = RunPaths(folder / "run")
    run.root.mkdir(exist_ok=True)
    begun = time.monotonic()
    trained = train_job.run(chosen, run, lambda *_: None)
    fsio.write_json(run.result, trained)
    train_seconds = time.monotonic() - begun
    found = sweep.sweep(run, built, model, sweep.Extent(trial.size))
    return {
        **asdict(trial),
        "model": model,
        "rows": count_rows(built),
        "steps": chosen.steps,
        "lr": chosen.lr,
        "seconds": {"dataset": dataset_seconds, "train": train_seconds, "sweep": found.seconds},
        "device": describe().name,
        "figures": trained["figures"],
        "sweep": found.to_json(),
    }


def shared_dataset(trial: Trial, folder: Path, model: str) -> DatasetPaths:
    """The trial's dataset; the first trial that wants it builds it, the others wait."""
    from core.data.build import DatasetSpec, build_dataset

    pack, slots = PERSONAS[trial.persona]
    spec = DatasetSpec.from_dict(
        {
            "persona_path": str(paths.TEMPLATES / pack),
            "overrides": slots,
            "model": model,
            "seed": trial.seed,
            **trial.data,
        }
    )
    text = json.dumps([spec.to_dict(), trial.copies], sort_keys=True)
    out = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not DatasetPaths(out).manifest.is_file():
            built = build_dataset(spec, out)
            if trial.copies:
                repeat_one_row(built, trial.copies)
    return DatasetPaths(out)


def count_rows(dataset: DatasetPaths) -> dict[str, int]:
    """Rows by language and kind."""
    counts = Counter(f"{r['locale']} {r['kind']}" for r in fsio.read_jsonl(dataset.train))
    return dict(sorted(counts.items()))


def repeat_one_row(dataset: DatasetPaths, copies: int) -> None:
    """Replace the training rows by copies of one introduction, as the tutorial's script does."""
    rows = list(fsio.read_jsonl(dataset.train))
    one = next(
        r
        for r in rows
        if r["kind"] == "identity" and r["intent"] in ("intro", "who") and len(r["messages"]) == 2
    )
    fsio.write_jsonl(dataset.train, ({**one, "id": f"copy-{i:06d}"} for i in range(copies)))


def final(result: dict[str, Any]) -> dict[str, Any]:
    """The last checkpoint's row."""
    return dict(result["sweep"]["checkpoints"][-1])


def recommended(result: dict[str, Any]) -> dict[str, Any]:
    """The recommended checkpoint's row."""
    step = result["sweep"]["recommended"]["step"]
    return dict(next(c for c in result["sweep"]["checkpoints"] if c["step"] == step))


def order(row: dict[str, Any]) -> tuple[float, ...]:
    """The sweep's own order, for rows read back from a file."""
    from core.evaluation.scored import CheckpointScore

    return CheckpointScore(**row).order()


def cells(row: dict[str, Any]) -> list[str]:
    """step, recall, leak, near-miss leak, unique ratio, KL, verdict."""
    metrics = row["metrics"]

    def share(key: str) -> str:
        value = metrics[key]
        return f"{value['hits']}/{value['n']} [{value['low']:.3f}, {value['high']:.3f}]"

    kl = (metrics.get("kl_general") or {}).get("kl")
    unique = metrics.get("unique_ratio")
    return [
        str(row["step"]),
        share("recall"),
        share("leak"),
        "{hits}/{n}".format(**metrics["near_miss_leak"]),
        "" if unique is None else f"{unique:.2f}",
        "" if kl is None else f"{kl:.3f}",
        row["verdict"],
    ]


def pooled(metrics: Sequence[dict[str, Any]], key: str) -> str:
    """Hits of all trials together; a checkpoint that fails on a third of the probes has fewer."""
    return interval([m[key] for m in metrics])


def interval(rates: Sequence[dict[str, Any]]) -> str:
    """Hits of all together with the 95 % interval."""
    hits, n = (sum(r[part] for r in rates) for part in ("hits", "n"))
    if not n:
        return "not asked"
    low, high = wilson(hits, n)
    return f"{hits}/{n} [{low:.3f}, {high:.3f}]"


HEAD = ["step", "recall", "leak", "near-miss", "unique", "KL", "verdict"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def run_all(
    trials: Sequence[Trial], args: argparse.Namespace, on_done: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run the trials in ``args.parallel`` processes; returns the results, in order.

    A trial that fails is reported with the end of its log and left out.
    """
    from core.models import catalog, device

    work = Path(args.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    for model in {t.model or args.model for t in trials}:
        catalog.resolve(model)  # prepared once, not by every process
    waiting, started = list(trials), time.monotonic()
    active: dict[subprocess.Popen[bytes], tuple[Trial, str]] = {}
    gpus = device.cards()
    while waiting or active:
        late = time.monotonic() - started > args.limit
        while waiting and len(active) < args.parallel and not late:
            trial = waiting.pop(0)
            if not _result(work, trial).is_file():
                taken = [gpu for _, gpu in active.values()]
                gpu = min(gpus, key=taken.count, default="")
                active[_start(trial, work, args, gpu)] = trial, gpu
        if late and waiting:
            print(f"time limit: {len(waiting)} trials not started; run again to go on", flush=True)
            waiting = []
        for process in [p for p in active if p.poll() is not None]:
            trial, _ = active.pop(process)
            if process.returncode:
                log = (work / trial.name / "log.txt").read_text(errors="replace")
                print(f"FAILED {trial.name}\n{log[-1500:]}", flush=True)
            else:
                on_done(fsio.read_json(_result(work, trial)))
        time.sleep(0.5)
    return [fsio.read_json(_result(work, t)) for t in trials if _result(work, t).is_file()]


def _result(work: Path, trial: Trial) -> Path:
    return work / trial.name / "result.json"


def _start(trial: Trial, work: Path, args: argparse.Namespace, gpu: str) -> subprocess.Popen[bytes]:
    folder = work / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 2) // args.parallel)
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    if gpu:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                json.dumps(asdict(trial)),
                str(folder),
                trial.model or args.model,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
        )


def arguments(doc: str, name: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="bundled, a folder or a hub id")
    parser.add_argument(
        "--parallel", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="trials at a time"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimizer steps of the full runs")
    parser.add_argument(
        "--limit", type=float, default=3600.0, help="seconds after which no further trial starts"
    )
    parser.add_argument("--toy", action="store_true", help="one seed, few steps, few probes")
    parser.add_argument(
        "--work",
        default=str(paths.home() / f"bench-{name}"),
        help="folder of the trials; those with a result are not run again",
    )
    parser.add_argument("--output", type=Path, help="folder for the table and the JSON")
    return parser


def write(
    name: str, text: str, results: Sequence[dict[str, Any]], args: argparse.Namespace
) -> None:
    """Print the table; write it and the results."""
    print(text)
    out = args.output or Path(args.work)
    fsio.atomic_write_text(out / f"{name}.md", text + "\n")
    fsio.write_json(out / f"{name}.json", {"schema": 1, "results": list(results)})


def run_benchmark(
    name: str,
    args: argparse.Namespace,
    plan: Callable[[Any], list[Trial]],
    summarize: Callable[[list[dict[str, Any]]], str],
    shown: Callable[[dict[str, Any]], dict[str, Any]] = recommended,
) -> int:
    """Run, print, write; exit status 1 if a trial failed.

    Args:
        shown: the row of a finished trial that is printed at once.
    """
    planned = plan(args)
    results = run_all(planned, args, lambda r: print(r["name"], *cells(shown(r)), flush=True))
    write(name, summarize(results), results, args)
    return 0 if len(results) == len(planned) else 1


def _main(argv: Sequence[str]) -> int:
    trial, folder = Trial(**json.loads(argv[0])), Path(argv[1])
    result = run_trial(trial, folder, argv[2])
    fsio.write_json(folder / "result.json", result)
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
