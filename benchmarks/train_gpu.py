"""QLoRA of a 1.8B-parameter model on one GPU, through the real path, with and without ZeRO-2.

Random weights in InternLM2-1.8B's shape (as a Llama), synthetic rows, the bundled tokenizer.
Every run is a process that calls ``core.training.train_job.run``: stock config copied and
edited, XTuner's train, checked checkpoints. Printed side by side: optimizer steps, real tokens a
second (median after three steps), peak memory, seconds; then how far a resumed run is from the
uninterrupted one, and what converting the checkpoint gives.

    python benchmarks/train_gpu.py                       # 1.8B, one GPU
    python benchmarks/train_gpu.py --shape toy           # seconds, on a CPU too
    python benchmarks/train_gpu.py --variants none zero2 --gpus 2
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_cpu import REPO, WORDS

SHAPES = {
    # https://huggingface.co/internlm/internlm2-1_8b: config.json
    "internlm2-1.8b": {
        "vocab_size": 92544,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    "toy": {
        "vocab_size": 49152,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
    },
}


def make_model(folder: Path, shape: str, tokenizer_dir: Path) -> None:
    """Write a random Llama of ``shape`` in bfloat16, with the tokenizer of ``tokenizer_dir``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_dataset(folder: Path, rows: int, words: int) -> None:
    """Rows of ``words`` to 1.5 x ``words`` words, no two alike."""
    from core import fsio
    from core.conversation import Conversation

    draw = random.Random(0)

    def row(index: int) -> dict[str, Any]:
        text = " ".join(draw.choices(WORDS, k=draw.randint(words, words * 3 // 2)))
        return Conversation(
            f"r{index}",
            [
                {"role": "user", "content": f"Tell me about {index}."},
                {"role": "assistant", "content": text},
            ],
        ).to_row()

    fsio.write_jsonl(folder / "train.jsonl", (row(i) for i in range(rows)))


def child(root: Path) -> None:
    """One run, in this process: params.json -> result.json."""
    from core import fsio
    from core.paths import RunPaths
    from core.training import train_job
    from core.training.spec import TrainSpec

    spec = TrainSpec.from_dict(fsio.read_json(root / "params.json"))
    result = train_job.run(spec, RunPaths(root), lambda *done: None)
    fsio.write_json(root / "result.json", result)


def run(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    """Start a run's process; returns its figures, or {"error": last lines}."""
    from core import fsio

    shutil.rmtree(root, ignore_errors=True)
    fsio.write_json(root / "params.json", params)
    started = time.monotonic()
    with (root / "log.txt").open("w") as log:
        code = subprocess.run(
            [sys.executable, __file__, "--child", str(root)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=REPO,
        ).returncode
    seconds = time.monotonic() - started
    text = (root / "log.txt").read_text(errors="replace")
    if code:
        return {"error": text[-3000:], "seconds": seconds}
    metrics = [
        json.loads(line[10:])
        for line in text.splitlines()
        if line.startswith("@@persona ") and '"metric"' in line
    ]
    steady = metrics[3:] or metrics
    return {
        "seconds": round(seconds, 1),
        "steps": len(metrics),
        "tokens_per_s": round(statistics.median(m["tokens_per_s"] for m in steady)),
        "s_per_step": round(statistics.median(m["s_per_step"] for m in steady), 3),
        "peak_gb": round(metrics[-1]["memory_bytes"] / 1e9, 2),
        "loss": [round(metrics[0]["loss"], 4), round(metrics[-1]["loss"], 4)],
        "losses": [m["loss"] for m in metrics],
        "result": fsio.read_json(root / "result.json"),
    }


def adapter(result: dict[str, Any], out: Path) -> tuple[dict[str, Any], float]:
    """Convert the final checkpoint; returns (tensors, seconds)."""
    from safetensors.torch import load_file

    from core.weights.convert import convert

    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    convert(Path(result["final"]), Path(result["config"]), out, fp32=True)
    return load_file(out / "adapter_model.safetensors"), time.monotonic() - started


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of any element of two adapters."""
    if one.keys() != other.keys():
        raise ValueError("the adapters have other keys")
    return max(float((one[k].float() - other[k].float()).abs().max()) for k in one)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """All variants: train, resume from the middle, convert, compare."""
    import torch

    cuda = torch.cuda.is_available()
    base: dict[str, Any] = {
        "dataset": str(args.out / "data"),
        "model": str(args.out / "model"),
        "dtype": "bfloat16" if cuda else "float32",
        "steps": args.steps,
        "warmup_steps": 2,
        "batch_size": args.batch,
        "accumulation": args.accumulation,
        "max_length": 2048,
        "lora_r": args.rank,
        "lora_alpha": 2 * args.rank,
        "lora_dropout": 0.1,
        "compile_step": cuda,
        "lr": 1e-4,
        "checkpoint_every": args.steps // 2,
        "gpus": args.gpus,
        "evaluation_inputs": [],
    }
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "torch": torch.__version__,
        "shape": args.shape,
        "rows_per_step": args.batch * args.accumulation * args.gpus,
        "variants": {},
    }
    for variant in args.variants:
        kind, _, mode = variant.partition("+")
        params = {
            **base,
            "deepspeed": None if kind == "none" else kind,
            "deterministic": mode == "deterministic",
            "activation_checkpointing": mode == "recompute",
        }
        report["variants"][variant] = one = train_resume_convert(args.out / variant, params)
        print(variant, json.dumps(one, indent=1), flush=True)
    return report


def train_resume_convert(root: Path, params: dict[str, Any]) -> dict[str, Any]:
    """One variant's figures; a failure is reported and does not stop the others."""
    whole = run(root, params)
    result = whole.pop("result", None)
    if result is None:
        return whole
    try:
        tensors, seconds = adapter(result, root / "adapter")
        size = (root / "adapter" / "adapter_model.safetensors").stat().st_size
        whole["convert"] = {
            "seconds": round(seconds, 2),
            "tensors": len(tensors),
            "mb": round(size / 1e6, 1),
        }
        middle = result["checkpoints"][0]
        again = run(
            root.with_name(root.name + "-resumed"), {**params, "resume_from": middle["path"]}
        )
        resumed = again.pop("result", None)
        whole["resume"] = {"from_step": middle["step"], **again}
        if resumed is not None:
            other, _ = adapter(resumed, root / "adapter-resumed")
            whole["resume"]["max_abs_difference"] = difference(tensors, other)
            whole["resume"]["largest_weight"] = max(float(t.abs().max()) for t in tensors.values())
    except Exception:
        whole["error"] = traceback.format_exc()[-3000:]
    return whole


def main() -> None:
    """Parse arguments; write ``report.json`` beside the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("workspace/bench-train-gpu"))
    parser.add_argument("--shape", choices=SHAPES, default="internlm2-1.8b")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: bundled model")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["none", "none+recompute", "none+deterministic", "zero2"],
        help="none or a DeepSpeed choice, then +recompute or +deterministic",
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--words", type=int, default=200, help="words in the shortest row")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=1)
    args = parser.parse_args()
    args.out = args.out.resolve()
    os.environ.setdefault("PERSONA_HOME", str(args.out / "home"))
    if args.child is not None:
        child(args.child)
        return
    if args.tokenizer is None:
        from core.models import bundled

        args.tokenizer = bundled.ensure()
    if not (args.out / "model" / "config.json").is_file():
        make_model(args.out / "model", args.shape, args.tokenizer)
    make_dataset(args.out / "data", 40 * args.batch, args.words)
    report = bench(args)
    (args.out / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({k: v for k, v in report.items() if k != "variants"}))


if __name__ == "__main__":
    main()
