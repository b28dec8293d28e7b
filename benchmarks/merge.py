"""Streamed merge against XTuner's merge and against the disk, on a 1.9B-parameter bf16 model.

    python benchmarks/merge.py [--folder DIR] [--layers N] [--skip-xtuner] [--page-cache]

Makes a random Llama of InternLM2-1.8B's shapes (3.8 GB) and an adapter of rank 64 on every linear
layer, then runs, each in a process of its own and on a warm page cache: a plain write of as many
bytes with fdatasync, XTuner's merge, and ours (sha256 of every file included). Prints the ratios:
wall time of the call against the disk's and against XTuner's, and peak memory of the process
above a bare interpreter, as a share of the model's bytes. With ``--page-cache`` ours runs a second
time through the page cache, to show what passing it by saves. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WIDTH, INNER, KV, VOCAB, RANK = 2048, 8192, 1024, 92544, 64
LINEAR = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV, WIDTH),
    "self_attn.v_proj": (KV, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def make_base(folder: Path, layers: int) -> None:
    """Random bf16 weights, written as one file, with config and the bundled tokenizer."""
    import torch

    from core.weights.kernels import raw
    from core.weights.writer import TensorWriter

    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in LINEAR.items()}
        shapes |= {f"{prefix}.{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}
    layout = [(name, "BF16", shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(0)
    with TensorWriter(folder / "model.safetensors", layout) as writer:
        for shape in shapes.values():
            values = torch.empty(shape).normal_(std=0.02, generator=generator).bfloat16()
            writer.write(raw(values))
        writer.close()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _make_tokenizer(folder)


def _make_tokenizer(folder: Path) -> None:
    """Any tokenizer: XTuner's merge loads and saves one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def make_adapter(folder: Path, layers: int) -> None:
    """A float16 adapter as XTuner converts it: r 64, alpha 16, every linear layer."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for name, (out, inner) in LINEAR.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (RANK, inner)), ("B", (out, RANK))):
                values = torch.empty(shape).normal_(std=0.02, generator=generator)
                tensors[f"{key}.lora_{part}.weight"] = values.half()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [name.split(".")[1] for name in LINEAR],
        "base_model_name_or_path": "internlm/internlm2-chat-1_8b",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def clock() -> tuple[float, float]:
    """(wall time, processor time of this process), seconds."""
    return time.perf_counter(), time.process_time()


def child(task: str, folder: Path) -> None:
    """One measured task; prints its seconds and the peak memory of this process."""
    base, adapter = folder / "base", folder / "adapter"
    if task == "disk":
        data = os.urandom(8 << 20)
        start = clock()
        with (folder / "disk").open("wb", buffering=0) as file:
            for _ in range((base / "model.safetensors").stat().st_size // len(data)):
                file.write(data)
            os.fdatasync(file.fileno())
    elif task.startswith("ours"):
        if task == "ours-cached":
            os.O_DIRECT = 0
        from core.inference.load import load_tokenizer
        from core.models.catalog import ModelRef
        from core.weights import kernels  # noqa: F401  imports torch before the clock starts
        from core.weights.merge import merge

        load_tokenizer(base)  # and transformers, which writing the chat template needs
        ref = ModelRef(base, "base", "folder", "unknown", ("en",), "llama")
        start = clock()
        merge(ref, adapter, folder / task)
    elif task == "xtuner":
        from core.training import compat

        compat.importable()
        from xtuner.tools.model_converters import merge as _  # noqa: F401  as above

        from core.weights import xtuner_tools

        start = clock()
        xtuner_tools.merge(base, adapter, folder / "xtuner", max_shard_size="5GB")
    else:
        start = clock()
    seconds, processor = (end - begun for end, begun in zip(clock(), start, strict=True))
    peak = _peak_bytes()
    result = {"seconds": seconds, "peak": peak, "processor": processor}
    print("RESULT", json.dumps(result), flush=True)


def _peak_bytes() -> int:
    """Largest resident memory of this process; ru_maxrss would start at that of its parent."""
    status = Path("/proc/self/status").read_text()
    line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(task: str, folder: Path) -> dict[str, float]:
    """Run a task in a process of its own."""
    os.sync()  # earlier writes must not be billed to this task
    command = [sys.executable, __file__, "--task", task, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{task} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
    shutil.rmtree(folder / task, ignore_errors=True)
    (folder / "disk").unlink(missing_ok=True)
    return result


def main() -> None:
    """Make the model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a new one")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-xtuner", action="store_true")
    parser.add_argument("--page-cache", action="store_true")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        child(args.task, args.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="merge-benchmark-", dir=args.folder))
    try:
        make_base(folder / "base", args.layers)
        make_adapter(folder / "adapter", args.layers)
        size = (folder / "base" / "model.safetensors").stat().st_size
        tasks = ["nothing", "disk", "ours"]
        tasks += ["ours-cached"] if args.page_cache else []
        tasks += [] if args.skip_xtuner else ["xtuner"]
        # In turn, so that a busy moment hits every side alike. Medians: a disk is not steady.
        seen: dict[str, list[dict[str, float]]] = {task: [] for task in tasks}
        for _ in range(args.rounds):
            for task in tasks:
                result = measure(task, folder)
                seen[task].append(result)
                peak = result["peak"] / 1e6
                print(
                    f"  {task:11s} {result['seconds']:7.2f} s, {result['processor']:6.2f} s of "
                    f"processor time, peak {peak:7.0f} MB",
                    flush=True,
                )
        wall = {t: statistics.median(r["seconds"] for r in rows) for t, rows in seen.items()}
        peaks = {t: max(r["peak"] for r in rows) for t, rows in seen.items()}
        above = peaks["ours"] - peaks["nothing"]
        print(f"model {size / 1e9:.2f} GB; disk {size / wall['disk'] / 1e6:.0f} MB/s; medians:")
        print(f"wall / disk's own write: {wall['ours'] / wall['disk']:.2f} (wanted: at most 1.5)")
        print(f"peak above interpreter / model bytes: {above / size:.3f} (wanted: at most 0.25)")
        if "xtuner" in wall:
            print(
                f"faster than XTuner's merge: {wall['xtuner'] / wall['ours']:.2f}x (wanted: at "
                f"least 2); its peak {peaks['xtuner'] / size:.2f} x model bytes"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
