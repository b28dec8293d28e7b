"""The life of a run on several GPUs: stop, resume, a worker that dies, convert and merge.

    python benchmarks/gpus_life.py                       # 1.8B, all GPUs of this machine
    python benchmarks/gpus_life.py --shape toy --gpus 2  # two gloo processes where no GPU is

For data parallel and ZeRO-2 each: a run to its end; the same run stopped in the middle and resumed,
whose adapter should be the first one's; a run of which one worker is killed. After each it is
counted what is left: worker processes, and processes that the GPUs know of. Then both adapters are
compared, and the one from DeepSpeed's folder is merged into the base.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpus, internlm2_full, train_gpu


def workers(run: Any) -> list[int]:
    """Process ids of the run: supervisor, torchrun, its workers."""
    from core.jobs import processes
    from core.jobs.spec import read_spec

    return sorted(p.pid for p in processes.processes_of(read_spec(run).mark))


def on_gpus() -> int | None:
    """How many processes the GPUs know of; None where there is no nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-compute-apps=pid", "--format=csv,noheader"]
    return len(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())


def left(run: Any) -> dict[str, Any]:
    """What is left of a run that ended."""
    return {"workers_left": len(workers(run)), "on_gpus": on_gpus()}


def start(spec: Any, name: str) -> Any:
    """Past the preflight, which wants GPUs for what the CPU does at toy size."""
    from core.jobs import api

    return api.launch(spec, name=name, checked=True)


def resume(run: Any, spec: Any) -> Any:
    """From its newest checkpoint."""
    from core.training import lifecycle

    newest = [c for c in lifecycle.checkpoints_of(run) if c.whole and c.step < spec.steps][-1]
    return start(type(spec).from_dict({**spec.to_dict(), "resume_from": str(newest.path)}), "again")


def at_step(step: int) -> Any:
    return lambda done: done >= step


def ended(run: Any) -> dict[str, Any]:
    """State, figures and what is left, once it is over."""
    from core.jobs import api

    series = internlm2_full.watch(run)
    status = api.status(run)
    return {"state": status.state.value, **internlm2_full.figures(series), **left(run)}


def life(spec: Any, name: str, report: dict[str, Any]) -> Any:
    """Train, stop and resume, kill a worker; returns the run that was never stopped."""
    import psutil

    from core.jobs import api

    half = spec.steps // 2
    whole = start(spec, name)
    report["whole"] = ended(whole)
    if report["whole"]["state"] != "SUCCEEDED":
        raise RuntimeError(f"the first run: {report['whole']}\n{api.status(whole).log_tail}")
    run = start(spec, f"{name}-stopped")
    internlm2_full.watch(run, at_step(half))
    began = time.monotonic()
    api.stop(run)
    report["stopped"] = {**ended(run), "seconds_to_stop": round(time.monotonic() - began, 1)}
    again = resume(run, spec)
    report["resumed"] = ended(again)
    report["resumed"]["adapter_differs"] = train_gpu.difference(adapter(whole), adapter(again))
    run = start(spec, f"{name}-killed")
    internlm2_full.watch(run, at_step(2))
    began = time.monotonic()
    ranks = [p for p in map(psutil.Process, workers(run)) if "RANK" in p.environ()]
    max(ranks, key=lambda p: int(p.environ()["RANK"])).kill()
    report["killed"] = {**ended(run), "seconds_to_end": round(time.monotonic() - began, 1)}
    error = api.status(run).error
    report["killed"]["words"] = str(error or api.status(run).log_tail)[-400:]
    return whole


def adapter(run: Any) -> dict[str, Any]:
    from core import fsio

    found: dict[str, Any] = train_gpu.adapter(fsio.read_json(run.result), run.root / "compared")[0]
    return found


def main() -> None:
    """Parse arguments, run, print the report."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("workspace/bench-gpus-life"))
    parser.add_argument("--shape", choices=train_gpu.SHAPES, default="internlm2-1.8b")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--variants", nargs="+", choices=gpus.VARIANTS, default=["none", "zero2"])
    parser.add_argument("--steps", type=int, default=16)
    args = parser.parse_args()
    args.out, args.batch, args.accumulation, args.rank = args.out.resolve(), 8, 1, 16
    os.environ["PERSONA_HOME"] = str(args.out / "home")

    from core.models import bundled, catalog
    from core.training.spec import TrainSpec
    from core.weights.merge import merge

    train_gpu.make_model(args.out / "model", args.shape, bundled.ensure())
    train_gpu.make_dataset(args.out / "data", 320, 60)
    count, args.gpus = args.gpus, [args.gpus]
    report: dict[str, Any] = {"gpus": count, "shape": args.shape}
    adapters = []
    for variant in args.variants:
        settings = {
            **gpus.settings(args, count, variant),
            "compile_step": False,
            "checkpoint_every": args.steps // 4,
        }
        found = report.setdefault(variant, {})
        run = life(TrainSpec.from_dict(settings), variant.replace("+", "-"), found)
        adapters.append(adapter(run))
        (args.out / "life.json").write_text(json.dumps(report, indent=1))
        print(variant, json.dumps(found, indent=1), flush=True)
    if len(adapters) > 1:
        report["adapters_differ"] = train_gpu.difference(adapters[0], adapters[1])
    base = catalog.resolve(str(args.out / "model"))
    made = merge(base, run.root / "compared", args.out / "merged")
    report["merged"] = str(made)
    (args.out / "life.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({k: report[k] for k in ("adapters_differ", "merged") if k in report}))


if __name__ == "__main__":
    main()
