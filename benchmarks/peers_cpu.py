"""Ours beside other trainers on a CPU, and beside the float32 products of a step at their shapes.

SmolLM2-135M's shape with random weights, rows of 20 to 180 tokens in groups of like length, rank
64. ``ours-plain`` is XTuner's step as it was before the fused one. The bound is the time that the
products of one training step take alone, forward and backward, LoRA and head included.

    python benchmarks/peers_cpu.py            # about 10 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import peers_gpu

SHAPE, SUPERVISED = peers_gpu.SHAPES["smollm2-135m"], 2 / 3


def bound(tokens: int, rank: int, repeats: int = 5) -> float:
    """Tokens a second, if a step of ``tokens`` tokens were its float32 products and no more."""
    import torch

    hidden, mlp = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = hidden // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    pairs = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    pairs += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]

    def seconds(rows: int, inner: int, columns: int) -> float:
        one, other = torch.randn(rows, inner), torch.randn(inner, columns)
        took = []
        for _ in range(repeats):
            started = time.perf_counter()
            one @ other
            took.append(time.perf_counter() - started)
        return statistics.median(took)

    layer = 0.0
    for i, o in pairs:
        layer += seconds(tokens, i, o) + seconds(tokens, o, i)
        layer += 2 * (seconds(tokens, i, rank) + seconds(tokens, rank, o))  # forward, and back
        layer += seconds(rank, tokens, i) + seconds(o, tokens, rank)  # gradients of A and B
    labelled = int(tokens * SUPERVISED)
    head = seconds(labelled, hidden, SHAPE["vocab_size"])
    head += seconds(labelled, SHAPE["vocab_size"], hidden)
    return tokens / (layer * SHAPE["num_hidden_layers"] + head)


def main() -> None:
    """The bound, the trainers, the bound again (the machine may have been busy)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("workspace/bench-peers-cpu"))
    parser.add_argument("--rows", type=int, nargs="+", default=[8])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--peers", nargs="+")
    args = parser.parse_args()
    peers = args.peers or ["ours", "ours-bf16", "ours-held-only", "ours-plain", "peft", "unsloth"]
    bounds = [bound(100 * max(args.rows), 64)]
    rows = [str(count) for count in args.rows]
    fixed = "--shape smollm2-135m --device cpu --grouped --length 20 180 --rank 64 --limit 600"
    chosen = ["--out", str(args.out), "--steps", str(args.steps), "--rows", *rows]
    peers_gpu.main([*fixed.split(), *chosen, "--peers", *peers])
    bounds.append(bound(100 * max(args.rows), 64))
    path = args.out / "report.json"
    report = json.loads(path.read_text())
    report["bound_tokens_per_s"] = [round(b, 1) for b in bounds]
    for result in report["results"].values():
        if "tokens_per_s" in result:
            result["share_of_bound"] = round(result["tokens_per_s"] / statistics.mean(bounds), 2)
    path.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
