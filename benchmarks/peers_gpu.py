"""Ours beside other trainers on one GPU: the same model, rows, rank, optimizer and first LoRA.

Random weights in InternLM2-1.8B's shape (as a Llama), rows of 60 to 600 tokens of which the last
two thirds carry labels. Each trainer runs in a process of its own and is left out, with a word,
where it is not installed. Real tokens are counted, padding is not. Printed and kept as JSON: median
tokens a second after the warm-up, peak memory after the first step, loss; drawn if matplotlib is
there.

    python benchmarks/peers_gpu.py                                # all, 16 and 32 rows
    python benchmarks/peers_gpu.py --peers ours unsloth --rows 16
    python benchmarks/peers_gpu.py --shape toy --device cpu --steps 3   # what runs on a CPU

Trainers: ``ours`` (also with levers off: ``ours-eager``, ``ours-nf4``, ``ours-recompute``,
``ours-8gb``, ``ours-plain``), ``peft`` (a plain loop, padded, LoRA in float32), ``unsloth``
(padded; ``unsloth-packed``; ``unsloth-recompute``), ``trl`` (SFTTrainer's defaults), ``stock``
(XTuner's config alpaca e3, packed to 2,048 tokens; tokens a micro-batch are its own).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

SHAPES: dict[str, dict[str, int]] = {
    # https://huggingface.co/internlm/internlm2-1_8b: config.json
    "internlm2-1.8b": {
        "vocab_size": 92544,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
    # https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct: config.json
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
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
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LR, WARM_UP = 2e-4, 5
Step = Callable[[list[dict[str, list[int]]]], float]


def make_model(folder: Path, shape: str, tokenizer_dir: Path) -> None:
    """A random Llama of ``shape`` in bfloat16; some trainers want a tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder)


def make_rows(
    count: int, vocabulary: int, shortest: int = 60, longest: int = 600
) -> list[dict[str, list[int]]]:
    """Rows in which frequent tokens are frequent, so that there is something to learn."""
    draw = random.Random(0)
    common = [draw.randrange(3, vocabulary) for _ in range(500)]
    weights = [1 / (rank + 2) for rank in range(len(common))]
    rows = []
    for _ in range(count):
        length = draw.randint(shortest, longest)
        ids = draw.choices(common, weights, k=length)
        prompt = length // 3
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return rows


def batches(args: argparse.Namespace) -> Iterator[list[dict[str, list[int]]]]:
    """Micro-batches of ``args.rows`` rows, the same for every trainer."""
    rows = json.loads((args.out / "rows.json").read_text())
    if args.grouped:  # rows of like length together, as a sampler by length gives them
        window = 8 * args.rows
        parts = [rows[i : i + window] for i in range(0, len(rows), window)]
        rows = [row for part in parts for row in sorted(part, key=lambda r: len(r["input_ids"]))]
    for step in range(args.steps):
        start = step * args.rows % len(rows)
        yield (rows * 2)[start : start + args.rows]


def padded(rows: list[dict[str, list[int]]], device: str) -> dict[str, Any]:
    """input_ids, labels and attention_mask, padded on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def fill(name: str, value: int) -> Any:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = torch.arange(longest) < lengths[:, None]
    data = {"input_ids": fill("input_ids", 2), "labels": fill("labels", -100)}
    return {k: v.to(device) for k, v in {**data, "attention_mask": mask}.items()}


def same_start(model: Any) -> list[Any]:
    """Give every trainer's LoRA the same first values; returns the trained weights."""
    import torch

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for index, name in enumerate(sorted(trained, key=lambda n: n.split("layers.")[-1])):
        weight = trained[name]
        generator = torch.Generator().manual_seed(index)
        bound = 1 / weight.shape[1] ** 0.5
        if "lora_A" in name:
            start = (torch.rand(weight.shape, generator=generator) * 2 - 1) * bound
            weight.data.copy_(start)
        else:
            weight.data.zero_()
    return list(trained.values())


def loop(model: Any, device: str, make: Callable[[Any, str], dict[str, Any]] = padded) -> Step:
    """A plain training step: forward under autocast, clip, fused AdamW."""
    import torch

    weights = same_start(model)
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0, fused=device == "cuda")

    def step(rows: list[dict[str, list[int]]]) -> float:
        data = make(rows, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**data).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def ours(args: argparse.Namespace, **levers: Any) -> Step:
    """XTuner's model from the config that a run gets, our hook, mmengine's optimizer wrapper."""
    from types import SimpleNamespace

    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    from core.training import compat, config
    from core.training.spec import TrainSpec
    from core.training.step.hook import StepHook

    compat.apply()
    cuda = args.device == "cuda"
    settings = {
        "dtype": "bfloat16" if cuda else "float32",
        "batch_size": args.rows,
        "compile_step": cuda,
        "lora_r": args.rank,
        "lora_alpha": 2 * args.rank,
        "lr": LR,
        **levers,
    }
    spec = TrainSpec.from_dict({"dataset": str(args.out), **settings})
    template = {"INSTRUCTION": "{input}", "SUFFIX": "", "SEP": ""}
    inputs = config.ConfigInputs(
        args.out / "model", args.out / "rows.json", template, "cuda" if cuda else "cpu"
    )
    text = config.render(spec, inputs)
    (args.out / "config.py").write_text(text)
    from xtuner.registry import BUILDER
    from xtuner.tools.train import register_function

    cfg = Config.fromfile(str(args.out / "config.py"))
    cfg.model.pop("tokenizer", None)
    register_function(cfg._cfg_dict)
    model = BUILDER.build(cfg.model).to(args.device).train()
    same_start(model.llm)
    StepHook(spec).before_train(SimpleNamespace(model=model))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

    def step(rows: list[dict[str, list[int]]]) -> float:
        loss: float = model.train_step({"data": padded(rows, args.device)}, wrapper)["loss"]
        return loss

    return step


def peft(args: argparse.Namespace) -> Step:
    """transformers, bitsandbytes and PEFT as their documentation shows."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    from core.models.nf4 import nf4_config

    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        args.out / "model",
        dtype=dtype,
        quantization_config=nf4_config(dtype),
        device_map={"": args.device},
    )
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        lora_dropout=0.0,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    return loop(get_peft_model(model, lora).train(), args.device)


def unsloth(args: argparse.Namespace, mode: str = "padded") -> Step:
    """Unsloth's model and kernels in a plain loop (its trainer adds work, not speed)."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    from unsloth import FastLanguageModel  # isort: skip  # patches what is imported after it
    import torch

    model, _ = FastLanguageModel.from_pretrained(
        str(args.out / "model"),
        max_seq_length=2048,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=args.rank,
        lora_alpha=2 * args.rank,
        lora_dropout=0.0,
        target_modules=TARGETS,
        bias="none",
        use_gradient_checkpointing="unsloth" if mode == "recompute" else False,
    )
    FastLanguageModel.for_training(model, use_gradient_checkpointing=mode == "recompute")
    return loop(model, args.device, one_row if mode == "packed" else padded)


def one_row(rows: list[dict[str, list[int]]], device: str) -> dict[str, Any]:
    """The rows one behind the other, told apart by their positions (Unsloth's padding-free)."""
    import torch

    ids = [i for row in rows for i in row["input_ids"]]
    labels = [i for row in rows for i in [-100, *row["labels"][1:]]]
    positions = [i for row in rows for i in range(len(row["input_ids"]))]
    data = {"input_ids": ids, "labels": labels, "position_ids": positions}
    out: dict[str, Any] = {k: torch.tensor([v], device=device) for k, v in data.items()}
    lengths = [len(row["input_ids"]) for row in rows]
    out["packed_seq_lengths"] = torch.tensor(lengths, dtype=torch.int32, device=device)
    return out


def stock(args: argparse.Namespace) -> Step:
    """The model part of XTuner's config alpaca e3 as it is: fp16, recomputation, dropout 0.1."""
    import torch
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    from core.training import compat, config

    compat.importable()
    compat.cpu_bf16_query()
    from xtuner.registry import BUILDER
    from xtuner.tools.train import register_function

    source = config.stock_source("internlm2_chat_1_8b_qlora_alpaca_e3")
    path = args.out / "stock.py"
    path.write_text(source.replace('"internlm/internlm2-chat-1_8b"', repr(str(args.out / "model"))))
    cfg = Config.fromfile(str(path))
    register_function(cfg._cfg_dict)
    model = BUILDER.build(cfg.model).to(args.device).train()
    weights = same_start(model.llm)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    waiting: list[tuple[int, int]] = []

    def step(rows: list[dict[str, list[int]]]) -> float:
        loss: Any = torch.zeros(())
        waiting.extend(p for row in rows for p in zip(*row.values(), strict=True))
        while len(waiting) >= 2048:
            ids, labels = zip(*waiting[:2048], strict=True)
            del waiting[:2048]
            data = padded([{"input_ids": list(ids), "labels": list(labels)}], args.device)
            loss = model.train_step({"data": data}, wrapper)["loss"]
        return loss

    del weights
    return step


PEERS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "ours": ours,
    "ours-eager": lambda args: ours(args, compile_step=False),
    "ours-nf4": lambda args: ours(args, hold_weights=False),
    "ours-padded": lambda args: ours(args, pack_rows=False),
    "ours-recompute": lambda args: ours(args, activation_checkpointing=True),
    "ours-8gb": lambda args: ours(args, activation_checkpointing=True, hold_weights=False),
    "ours-bf16": lambda args: ours(args, dtype="bfloat16"),
    "ours-held-only": lambda args: ours(args, fused_step=False),
    "ours-plain": lambda args: ours(args, fused_step=False, hold_weights=False),
    "peft": peft,
    "unsloth": unsloth,
    "unsloth-packed": lambda args: unsloth(args, "packed"),
    "unsloth-recompute": lambda args: unsloth(args, "recompute"),
    "stock": stock,
}
NEEDS = {"unsloth": "unsloth", "trl": "trl", "stock": "xtuner", "ours": "xtuner"}


def measure(step: Step, args: argparse.Namespace) -> dict[str, Any]:
    """Run all micro-batches; the first ``WARM_UP`` are not timed."""
    import torch

    cuda = args.device == "cuda"
    rates, losses, total, tokens = [], [], 0.0, 0
    for index, rows in enumerate(batches(args)):
        if index == 1 and cuda:
            torch.cuda.reset_peak_memory_stats()
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        loss = step(rows)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        losses.append(float(loss))
        if index >= min(WARM_UP, args.steps // 3):
            count = sum(len(row["input_ids"]) for row in rows)
            rates.append(count / seconds)
            total, tokens = total + seconds, tokens + count
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {
        "tokens_per_s": round(statistics.median(rates)),
        "mean_tokens_per_s": round(tokens / total),
        "spread": [round(min(rates)), round(max(rates))],
        "gib": round(peak, 2),
        "first_loss": round(losses[0], 4),
        "last_loss": round(statistics.mean(losses[-5:]), 4),
    }


def trl(args: argparse.Namespace) -> dict[str, Any]:
    """SFTTrainer with its defaults (recomputation on, bf16), QLoRA; timed by a callback."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from core.models.nf4 import nf4_config

    model = AutoModelForCausalLM.from_pretrained(
        args.out / "model",
        dtype=torch.bfloat16,
        quantization_config=nf4_config(torch.bfloat16),
        device_map={"": args.device},
    )
    flat = [row for rows in batches(args) for row in rows]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *unused: Any, **more: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(args.out / "trl"),
            per_device_train_batch_size=args.rows,
            max_steps=args.steps,
            learning_rate=LR,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            max_length=None,
            use_cpu=args.device == "cpu",
            bf16=args.device == "cuda",
        ),
        train_dataset=Dataset.from_list(flat),
        processing_class=AutoTokenizer.from_pretrained(args.out / "model"),
        peft_config=LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            lora_dropout=0.0,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    counts = [sum(len(row["input_ids"]) for row in rows) for rows in batches(args)]
    # Rows are shuffled, so tokens a step are known on average only.
    mean = sum(counts) / len(counts)
    rates = [mean / (b - a) for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_s": round(statistics.median(rates)),
        "spread": [round(min(rates)), round(max(rates))],
        "gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if args.device == "cuda" else 0,
        "first_loss": round(losses[0], 4),
        "last_loss": round(statistics.mean(losses[-5:]), 4),
    }


def child(args: argparse.Namespace) -> None:
    """One trainer in this process."""
    started = time.perf_counter()
    if args.child == "trl":
        result = trl(args)
    else:
        step = PEERS[args.child](args)
        built = time.perf_counter() - started
        result = {"build_s": round(built, 1), **measure(step, args)}
    (args.out / "result.json").write_text(json.dumps(result))


def run(peer: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """One trainer in its own process; a word where it cannot run."""
    needed = NEEDS.get(peer.split("-")[0])
    if needed and importlib.util.find_spec(needed) is None:
        return {"skipped": f"{needed} is not installed"}
    (args.out / "result.json").unlink(missing_ok=True)
    argv = [sys.executable, __file__, "--child", peer, "--rows", str(rows)]
    for name in ("out", "shape", "device", "steps", "rank"):
        argv += [f"--{name}", str(getattr(args, name))]
    argv += ["--grouped"] * args.grouped
    log = args.out / f"{peer}-{rows}.log"
    with log.open("w") as file:
        try:
            subprocess.run(argv, stdout=file, stderr=file, timeout=args.limit, check=False)
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {args.limit} s"}
    if not (args.out / "result.json").is_file():
        return {"failed": log.read_text(errors="replace")[-1500:]}
    found: dict[str, Any] = json.loads((args.out / "result.json").read_text())
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars of tokens a second, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = {k: v for k, v in report["results"].items() if "tokens_per_s" in v}
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(done) + 1))
    bars = axes.barh(list(done)[::-1], [v["tokens_per_s"] for v in done.values()][::-1])
    labels = [f"{v['tokens_per_s']:,}  ({v['gib']:.1f} GiB)" for v in done.values()][::-1]
    axes.bar_label(bars, labels, padding=3)
    axes.set_xlabel(f"real tokens a second, {report['device']}, {report['shape']}")
    axes.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    """Run every trainer at every number of rows; write report.json and report.png."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("workspace/bench-peers-gpu"))
    parser.add_argument("--shape", choices=SHAPES, default="internlm2-1.8b")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: bundled model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers", nargs="+", default=[*PEERS, "trl"])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--length", type=int, nargs=2, default=[60, 600], help="tokens of a row")
    parser.add_argument("--grouped", action="store_true", help="rows of like length together")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--limit", type=int, default=240, help="seconds for one trainer")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.child:
        args.rows = args.rows[0]
        child(args)
        return
    if not (args.out / "model" / "config.json").is_file():
        if args.tokenizer is None:
            from core.models import bundled

            args.tokenizer = bundled.ensure()
        make_model(args.out / "model", args.shape, args.tokenizer)
    rows = make_rows(800, SHAPES[args.shape]["vocab_size"], *args.length)
    (args.out / "rows.json").write_text(json.dumps(rows))
    name = torch.cuda.get_device_name(0) if args.device == "cuda" else "cpu"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "shape": args.shape}
    report["grouped"] = args.grouped
    report["results"] = {}
    for count in args.rows:
        for peer in args.peers:
            report["results"][f"{peer} x {count}"] = one = run(peer, count, args)
            print(f"{peer:<18}{count:>4}  {json.dumps(one)}", flush=True)
            (args.out / "report.json").write_text(json.dumps(report, indent=1))
    draw(report, args.out / "report.png")


if __name__ == "__main__":
    main()
