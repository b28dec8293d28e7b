"""One GPU against several: data parallel, ZeRO-2 and ZeRO-3, the same rows in every step.

Each variant trains the same model over the same rows, as many a step: one GPU takes in several
micro-batches what the GPUs take in one (``whole``: in one too; XTuner's schedule counts
micro-batches, so that is the loss to compare with). Printed side by side: real tokens a second
(median after three steps), how many times those of one GPU, peak memory of the GPU with the
highest, loss at the first and the last step, and the largest relative difference of the loss to one
GPU's at any step.

    python benchmarks/gpus.py                            # 1.8B, all GPUs of this machine
    python benchmarks/gpus.py --gpus 2 4                 # one row more for each count
    python benchmarks/gpus.py --shape toy --gpus 2       # two gloo processes where no GPU is

``zero3`` trains on a 16-bit base, ``zero3+nf4`` on an NF4 base. ``report.json`` lies beside the
runs, whose logs say why a variant failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import train_gpu

VARIANTS = ("none", "zero2", "zero3", "zero3+nf4")
ONE = ("none", "whole")


def settings(args: argparse.Namespace, gpus: int, variant: str) -> dict[str, Any]:
    """The training settings of a variant on so many GPUs."""
    import torch

    cuda = torch.cuda.is_available()
    stage, _, base = variant.partition("+")
    more = max(args.gpus) // gpus  # micro-batches, or as many more rows in one
    return {
        "dataset": str(args.out / "data"),
        "model": str(args.out / "model"),
        "dtype": "bfloat16" if cuda else "float32",
        "quantize": "none" if stage == "zero3" and base != "nf4" else "nf4",
        "steps": args.steps,
        "warmup_steps": 2,
        "batch_size": args.batch * (more if variant == "whole" else 1),
        "accumulation": args.accumulation * (1 if variant == "whole" else more),
        "max_length": 2048,
        "lora_r": args.rank,
        "lora_alpha": 2 * args.rank,
        "compile_step": cuda and stage != "zero3",
        "group_by_length": False,
        "lr": 1e-4,
        "checkpoint_every": args.steps,
        "gpus": gpus,
        "deepspeed": None if stage in ("none", "whole") else stage,
        "evaluation_inputs": [],
    }


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """One GPU first, then each count with each variant."""
    import torch

    report: dict[str, Any] = {
        "schema": 1,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "shape": args.shape,
        "rows_per_step": args.batch * args.accumulation * max(args.gpus),
        "runs": [],
    }
    plan = [(1, v) for v in args.one] + [(n, v) for n in args.gpus if n > 1 for v in args.variants]
    for gpus, variant in plan:
        found = train_gpu.run(args.out / f"{variant}-{gpus}", settings(args, gpus, variant))
        found.pop("result", None)
        report["runs"].append({"gpus": gpus, "variant": variant, **found})
        (args.out / "report.json").write_text(json.dumps(report, indent=1))
        print(variant, gpus, found.get("tokens_per_s", "failed"), flush=True)
    return report


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table, a row a run; the first run is what the others are compared with."""
    head = ["GPUs", "variant", "tokens/s", "times", "GB a GPU", "loss", "loss differs by"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    one = runs[0]
    same = next((r for r in runs if r["variant"] == "whole" and "losses" in r), one)
    for run in runs:
        cells = [str(run["gpus"]), run["variant"]]
        if "error" in run:
            cells += ["failed: " + run["error"].strip().splitlines()[-1][:80], "", "", "", ""]
        else:
            apart = max(
                abs(a - b) / abs(b) for a, b in zip(run["losses"], same["losses"], strict=True)
            )
            first, last = run["loss"]
            cells += [
                f"{run['tokens_per_s']:,}",
                f"{run['tokens_per_s'] / one['tokens_per_s']:.2f}",
                f"{run['peak_gb']:.2f}",
                f"{first:.3f} to {last:.3f}",
                f"{apart:.2%}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run, print the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("workspace/bench-gpus"))
    parser.add_argument("--shape", choices=train_gpu.SHAPES, default="internlm2-1.8b")
    parser.add_argument("--gpus", type=int, nargs="+", default=[torch.cuda.device_count() or 2])
    parser.add_argument("--one", nargs="*", choices=ONE, default=list(ONE), help="on one GPU")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="of the most GPUs")
    parser.add_argument("--words", type=int, default=200, help="words in the shortest row")
    parser.add_argument("--rank", type=int, default=64)
    args = parser.parse_args()
    args.out = args.out.resolve()
    os.environ.setdefault("PERSONA_HOME", str(args.out / "home"))
    if not (args.out / "model" / "config.json").is_file():
        from core.models import bundled

        train_gpu.make_model(args.out / "model", args.shape, bundled.ensure())
    train_gpu.make_dataset(args.out / "data", 40 * args.batch, args.words)
    print(table(bench(args)["runs"]))


if __name__ == "__main__":
    main()
