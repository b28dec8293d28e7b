"""The memory estimate beside measured peaks, and what the form proposes for each device.

    python benchmarks/memory_estimate.py                          # the GPU figures of docs/results
    python benchmarks/memory_estimate.py --model FOLDER ...       # trains 3 steps here, on the CPU

GPU figures: ``torch.cuda.max_memory_allocated`` of ``benchmarks/peers_gpu.py`` (its rows, made
again here), which holds no CUDA context, so the estimate is shown without its runtime part. CPU:
the peak resident set of a process that trains through ``core.training.train_job``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks.peers_gpu import SHAPES, make_rows  # noqa: E402  (after the path)

GIB = 2**30
#: docs/results/speed.md: what, rows a micro-batch, steps, settings, GiB.
MEASURED: tuple[tuple[str, int, int, dict[str, Any], float], ...] = (
    ("held, compiled", 16, 30, {"compile_step": True}, 12.6),
    ("held, compiled", 16, 50, {"compile_step": True}, 12.9),
    ("held, compiled", 32, 50, {"compile_step": True}, 21.4),
    ("held, not compiled", 16, 30, {}, 14.7),
    ("held, recomputed", 16, 50, {"compile_step": True, "activation_checkpointing": True}, 6.7),
    ("held, recomputed", 32, 50, {"compile_step": True, "activation_checkpointing": True}, 8.0),
    ("NF4", 32, 30, {"compile_step": True, "hold_weights": False}, 18.6),
    (
        "NF4, recomputed",
        16,
        30,
        {"compile_step": True, "hold_weights": False, "activation_checkpointing": True},
        3.9,
    ),
)
DEVICES = (("GPU of 8 GB", 8), ("16 GB", 16), ("24 GB", 24), ("80 GB", 80), ("CPU", 16))


def shape_1_8b() -> Any:
    """InternLM2-1.8B as a Llama."""
    from core.training.cost import Shape

    s = SHAPES["internlm2-1.8b"]
    return Shape(
        s["hidden_size"],
        s["num_hidden_layers"],
        s["intermediate_size"],
        s["vocab_size"],
        s["num_attention_heads"],
        s["num_key_value_heads"],
        tied=False,
    )


def largest_batch(rows: int, steps: int) -> int:
    """Tokens of the largest micro-batch that peers_gpu.py computes."""
    lengths = [len(row["input_ids"]) for row in make_rows(800, 92544)]
    starts = [step * rows % len(lengths) for step in range(steps)]
    return max(sum((lengths * 2)[start : start + rows]) for start in starts)


def on_a_gpu() -> list[tuple[str, float, float]]:
    """(what, estimate, measured) in GiB, at the 1.8B shape."""
    from core.training import cost
    from core.training.spec import TrainSpec

    found = []
    for what, rows, steps, levers, measured in MEASURED:
        spec = TrainSpec.from_dict({"dataset": "", "dtype": "bfloat16", **levers})
        peak = cost.peak_bytes(shape_1_8b(), spec, largest_batch(rows, steps)) - cost.RUNTIME
        found.append((f"1.8B, {rows} rows, {what}", peak / GIB, measured))
    return found


def child(root: Path) -> None:
    """Train, and print this process's peak and the estimate for its largest micro-batch."""
    import resource

    from core.models import catalog
    from core.paths import RunPaths
    from core.training import cost, train_job
    from core.training.spec import TrainSpec

    spec = TrainSpec.from_dict(json.loads((root / "spec.json").read_text()))
    train_job.run(spec, RunPaths(root / "run"), lambda *done: None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shape = cost.shape_of(catalog.resolve(spec.model).path)
    tokens = int((root / "tokens").read_text())
    print(json.dumps({"estimate": cost.peak_bytes(shape, spec, tokens), "measured": peak}))


def on_this_cpu(model: str, batch: int, levers: dict[str, Any]) -> tuple[str, float, float]:
    """The same for a run of three steps of equal rows here."""
    from core import fsio
    from core.conversation import Conversation
    from core.inference.load import load_tokenizer
    from core.models import catalog
    from core.models.xtuner_template import XTunerTemplate
    from core.training import rows

    made = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Question {i}? " * 10},
                {"role": "assistant", "content": f"Answer {i}. " * 40},
            ],
        )
        for i in range(3 * batch)
    ]
    template = XTunerTemplate(load_tokenizer(catalog.resolve(model).path))
    longest = rows.measure(made, template, 1 << 20).longest
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fsio.write_jsonl(root / "data" / "train.jsonl", (row.to_row() for row in made))
        spec = {
            "dataset": str(root / "data"), "model": model, "steps": 3, "warmup_steps": 1,
            "batch_size": batch, "max_length": 64 * -(-longest // 64), "checkpoint_every": 3,
            "evaluation_inputs": [], **levers,
        }  # fmt: skip
        fsio.write_json(root / "spec.json", spec)
        (root / "tokens").write_text(str(batch * longest))
        command = [sys.executable, __file__, "--child", str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO)
        figures = json.loads(done.stdout.splitlines()[-1])
    what = f"{Path(model).name}, {batch} rows of {longest}, {levers or 'held'}"
    return what, figures["estimate"] / GIB, figures["measured"] / GIB


def proposals() -> None:
    """What the form proposes at the 1.8B shape, rows of 60 to 600 tokens."""
    from core.models.device import Choice, Device
    from core.training.fit import Fit
    from core.training.rows import RowStats

    lengths = [len(row["input_ids"]) for row in make_rows(800, 92544)]
    stats = RowStats(len(lengths), sum(lengths), sum(lengths), 0, 0, 0, lengths)
    for name, size in DEVICES:
        kind = "cpu" if name == "CPU" else "cuda"
        dtype = "float32" if kind == "cpu" else "bfloat16"
        device = Device(kind, name, 1, size * 10**9, 2, Choice("dtype", dtype, ""))
        fit = Fit(device, shape_1_8b(), stats, {"dtype": dtype})
        fit.settings["hold_weights"], why = fit.hold()
        batch, of_batch = fit.batch()
        print(f"\n{name}: {batch} rows a micro-batch ({of_batch})")
        print(f"  held: {fit.settings['hold_weights']} ({why})")
        print("  longest row {} ({})".format(*fit.length()))
        print("  recompute above {} ({})".format(*fit.recompute(batch)))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[], help="train here, on the CPU")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--levers", type=int, default=3, help="how many ways to train: 1 to 3")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    print(f"{'':58} {'estimate':>9} {'measured':>9}  ratio")
    levers: tuple[dict[str, Any], ...] = (
        {},
        {"hold_weights": False},
        {"activation_checkpointing": True},
    )
    runs = (on_this_cpu(m, args.batch, one) for m in args.model for one in levers[: args.levers])
    for what, estimate, measured in itertools.chain(on_a_gpu(), runs):
        print(f"{what:58} {estimate:8.2f}  {measured:8.2f}  {estimate / measured:5.2f}", flush=True)
    proposals()


if __name__ == "__main__":
    main()
