"""InternLM2-chat-1.8B at full shape through the whole main job, in one call of a few minutes.

    python benchmarks/internlm2_full.py --out DIR [--limit 150]     # one GPU
    python benchmarks/internlm2_full.py --toy --out DIR             # the same path on a CPU

A folder with the published names, random weights and InternLM's own tokenizer; chat rows of 60 to
600 tokens; a QLoRA run of 60 optimizer steps with the settings that the app proposes, stopped
near step 30 and resumed from its checkpoint; convert, merge, two columns of chat, proof. Beside the
proof, two smaller shapes train a few steps, for their peak memory. Runs, stop and resume are the
app's own jobs. ``internlm2_full.json`` is written anew after every stage, so that a call that is
cut off has its figures too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks.train_cpu import WORDS  # noqa: E402  (after the path)

#: hidden, layers, heads, key heads, intermediate, vocabulary. The first is
#: https://huggingface.co/internlm/internlm2-chat-1_8b; the others have the widths of
#: SmolLM2-135M and Qwen2.5-0.5B, InternLM2's tokenizer and a head of their own.
SHAPES = {
    "1.8b": (2048, 24, 16, 8, 8192, 92544),
    "0.5b": (896, 24, 14, 2, 4864, 151936),
    "135m": (576, 30, 9, 3, 1536, 92544),
    "toy": (64, 2, 4, 2, 160, 92544),
}
TOKENIZER = REPO / "tests" / "data" / "internlm2"
SMALLER = ("0.5b", "135m")


def make_model(folder: Path, shape: str) -> float:
    """Write random bfloat16 weights under the published names; returns their gigabytes."""
    import torch
    from safetensors.torch import save_file

    hidden, layers, heads, groups, wide, vocab = SHAPES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def weight(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()

    rows = (heads + 2 * groups) * (hidden // heads)
    tensors = {
        "model.tok_embeddings.weight": weight(vocab, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "output.weight": weight(vocab, hidden),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        tensors |= {
            at + "attention.wqkv.weight": weight(rows, hidden),
            at + "attention.wo.weight": weight(hidden, hidden),
            at + "feed_forward.w1.weight": weight(wide, hidden),
            at + "feed_forward.w3.weight": weight(wide, hidden),
            at + "feed_forward.w2.weight": weight(hidden, wide),
            at + "attention_norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            at + "ffn_norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})
    config = {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": wide,
        "max_position_embeddings": 32768,
        "model_type": "internlm2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return sum(t.numel() for t in tensors.values()) * 2 / 1e9


def make_dataset(folder: Path, rows: int) -> None:
    """Chat rows of 60 to 600 tokens, short ones as often as long ones."""
    from core import fsio
    from core.conversation import Conversation

    draw = random.Random(0)

    def row(index: int) -> dict[str, Any]:
        words = int(40 * 11 ** draw.random())  # about 1.3 tokens each
        text = " ".join(draw.choices(WORDS, k=words))
        asked = " ".join(draw.choices(WORDS, k=12))
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        return Conversation(f"r{index}", turns).to_row()  # type: ignore[arg-type]

    fsio.write_jsonl(folder / "train.jsonl", map(row, range(rows)))


class Memory:
    """The device's used memory, sampled while stages run ('' where there is no nvidia-smi)."""

    def __init__(self) -> None:
        self.peak = 0
        tool = shutil.which("nvidia-smi")
        query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        if only := os.environ.get("CUDA_VISIBLE_DEVICES"):
            query += ["-i", only]
        self._process = (
            subprocess.Popen([tool, *query], stdout=subprocess.PIPE, text=True) if tool else None
        )
        if self._process:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.peak = max(self.peak, int(line) * 2**20)

    def take(self) -> float | None:
        """GB at the peak since the last call."""
        peak, self.peak = self.peak, 0
        return round(peak / 1e9, 2) if self._process else None

    def close(self) -> None:
        if self._process:
            self._process.terminate()


class Report:
    """Figures by stage, on disk after each."""

    def __init__(self, file: Path, limit: float) -> None:
        self.file, self.limit = file, limit
        self.began = time.monotonic()
        self.stages: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self.memory = Memory()

    @property
    def left(self) -> float:
        """Seconds until the call is cut off."""
        return self.limit - (time.monotonic() - self.began)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage; what fails is noted, and the next one is tried."""
        found = self.stages.setdefault(name, {})
        started = time.monotonic()
        try:
            yield found
        except Exception:
            found["error"] = traceback.format_exc()[-2000:]
        found["seconds"] = round(time.monotonic() - started, 1)
        found["device_peak_gb"] = self.memory.take()
        self.write()
        print(name, json.dumps(found), flush=True)

    def write(self) -> None:
        """Everything so far."""
        total = round(time.monotonic() - self.began, 1)
        whole = {**self.facts, "seconds": total, "stages": self.stages}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(whole, indent=1))
        part.replace(self.file)


def watch(run: Any, until: Callable[[int], bool] = lambda step: False) -> Any:
    """Wait for a run's end, or for a step; returns the metrics so far."""
    from core.jobs import api
    from core.jobs.metrics import MetricsReader

    reader = MetricsReader(run.metrics)
    looked = 0.0
    while True:
        series = reader.refresh()
        if until(int(series.last.get("step") or 0)):
            return series
        if time.monotonic() - looked > 0.5:
            looked = time.monotonic()
            if api.status(run).final:
                return reader.refresh()
        time.sleep(0.03)


def figures(series: Any) -> dict[str, Any]:
    """Median speed after three steps, first and last loss, peak memory that torch allocated."""
    import statistics

    points = series.points
    steady = points[3:] or points
    if not points:
        return {"steps": 0}
    return {
        "steps": [points[0]["step"], points[-1]["step"]],
        "loss": [round(points[0]["loss"], 4), round(points[-1]["loss"], 4)],
        "tokens_per_s": round(statistics.median(p["tokens_per_s"] for p in steady)),
        "s_per_step": round(statistics.median(p["s_per_step"] for p in steady), 3),
        "allocated_peak_gb": round(max(p["memory_bytes"] for p in points) / 1e9, 2),
    }


def losses(series: Any) -> dict[int, float]:
    return {p["step"]: p["loss"] for p in series.points}


def proposed(args: argparse.Namespace, report: Report, found: dict[str, Any]) -> Any:
    """The run as the app proposes it, and its estimate of the memory."""
    from core.models.device import describe
    from core.training.defaults import choose
    from core.training.preflight import preflight

    steps = args.steps
    asked = {"steps": steps, "checkpoint_every": max(1, steps // 4), "evaluation_inputs": []}
    if args.toy:
        asked |= {"lora_r": 8, "lora_alpha": 16}
    spec, choices = choose(str(args.work / "data"), str(args.work / "base"), describe(), asked)
    checked = preflight(spec).check()
    assert checked.memory is not None
    report.facts |= {
        "device": describe().name,
        "settings": {c.name: [str(c.value), c.reason] for c in choices},
        "memory_estimate_gb": round(checked.memory.value / 1e9, 2),
    }
    found["longest"] = spec.max_length
    return checked


def train(args: argparse.Namespace, report: Report) -> Any:
    """Train, stop in the middle, resume; returns the resumed run."""
    from core.jobs import api
    from core.training import lifecycle

    half = args.steps // 2
    with report.stage("plan") as found:
        checked = proposed(args, report, found)
    with report.stage("train to a stop") as found:
        run = lifecycle.start_training(checked, name="internlm2")
        first = watch(run, lambda step: step >= half)
        found["seconds_to_first_steps"] = round(time.monotonic() - report.began, 1)
        api.stop(run)
        first = watch(run)
        end = api.status(run)
        found |= {"state": end.state.value, **figures(first), "tail": _tail(end)}
    with report.stage("resume") as found:
        again = lifecycle.resume_training(run, half)
        second = watch(again)
        end = api.status(again)
        both = {s: (a, losses(second)[s]) for s, a in losses(first).items() if s in losses(second)}
        found |= {"state": end.state.value, "from_step": half, **figures(second)}
        # The steps that the first run did before the stop reached it were done twice.
        found["steps_done_twice"] = len(both)
        found["largest_loss_difference"] = max((abs(a - b) for a, b in both.values()), default=None)
        found["tail"] = _tail(end)
    return again


def _tail(status: Any) -> str:
    """The end of the log of a run that failed."""
    return "" if status.state.value in ("SUCCEEDED", "STOPPED") else str(status.log_tail)[-1500:]


def chat(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Base and merged model answer together, streamed, through the chat worker."""
    from core.chat import transcripts
    from core.chat.client import WorkerClient
    from core.chat.columns import from_arguments
    from core.chat.endpoint import Endpoints
    from core.chat.session import ChatSession
    from core.inference.settings import GenerationSettings

    sides = from_arguments(str(args.work / "base"), "", [], [str(args.work / "merged")], [])
    worker = WorkerClient()
    try:
        started = time.monotonic()
        if errors := worker.load(sides):
            raise RuntimeError(str(errors))
        found["load_seconds"] = round(time.monotonic() - started, 1)
        session = ChatSession(transcripts.create(sides, ""), worker, Endpoints())
        settings = GenerationSettings(max_new_tokens=args.reply_tokens)
        found["turns"] = []
        for prompt in ("Please introduce yourself.", "你是谁开发的？"):  # the second one is warm
            session.clear()
            started = time.monotonic()
            live = session.send(prompt, settings)
            seen = -1
            while session.live is live:
                seen = live.wait(seen, 0.2)
            seconds = time.monotonic() - started
            replies = [live.turn.replies[s.id] for s in sides]
            if failed := [r.error for r in replies if r.error]:
                raise RuntimeError(str(failed))
            found["turns"].append(
                {
                    "seconds": round(seconds, 2),
                    "tokens": [r.tokens for r in replies],
                    "tokens_per_s_together": round(sum(r.tokens for r in replies) / seconds, 1),
                    "first_token_s": [round(r.ttft_s or 0, 3) for r in replies],
                }
            )
        found["worker_memory_gb"] = {k: round(v / 1e9, 2) for k, v in worker.memory.items()}
    finally:
        worker.close()


def smaller(args: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    """Start the small shapes' few steps, each a process of its own."""
    started = []
    for shape in () if args.toy else SMALLER:
        root = args.work / f"shape-{shape}"
        root.mkdir(parents=True)
        command = [sys.executable, __file__, "--child", shape, "--work", str(args.work)]
        with (root / "log.txt").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    return started


def child(shape: str, work: Path) -> None:
    """Four steps of a small shape in this process: estimate and peak to ``memory.json``."""
    import torch

    from core import fsio
    from core.models.device import describe
    from core.paths import RunPaths
    from core.training import train_job
    from core.training.defaults import choose
    from core.training.preflight import preflight

    root = work / f"shape-{shape}"
    make_model(root / "base", shape)
    asked = {"steps": 12, "checkpoint_every": 12, "evaluation_inputs": []}
    spec, _ = choose(str(work / "data"), str(root / "base"), describe(), asked)
    checked = preflight(spec).check()
    assert checked.memory is not None
    train_job.run(spec, RunPaths(root), lambda *done: None)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = {"estimate_gb": round(checked.memory.value / 1e9, 2), "allocated_gb": peak / 1e9}
    fsio.write_json(root / "memory.json", found)


def collect(args: argparse.Namespace, report: Report, children: list[Any]) -> None:
    """Wait for the small shapes as long as there is time."""
    from core import fsio

    for process, shape in zip(children, SMALLER, strict=False):
        try:
            process.wait(max(0.1, report.left - 2))
        except subprocess.TimeoutExpired:
            process.kill()
        root = args.work / f"shape-{shape}"
        file = root / "memory.json"
        log = (root / "log.txt").read_text(errors="replace")[-600:]
        report.stages[f"memory {shape}"] = (
            fsio.read_json(file) if file.is_file() else {"error": log}
        )
    report.write()


def whole(args: argparse.Namespace, report: Report) -> None:
    """All stages."""
    with report.stage("model") as found:
        found["weights_gb"] = round(
            make_model(args.work / "base", "toy" if args.toy else "1.8b"), 2
        )
    with report.stage("dataset"):
        make_dataset(args.work / "data", 40 if args.toy else 320)
    run = train(args, report)
    from core.models import catalog
    from core.weights.convert import convert
    from core.weights.merge import merge
    from core.weights.prove import ProofPlan, prove

    base, adapter, merged = (
        catalog.resolve(str(args.work / "base")),
        args.work / "adapter",
        args.work / "merged",
    )
    with report.stage("convert") as found:
        convert(run.work / f"iter_{_last(run)}.pth", run.config, adapter)
        size = (adapter / "adapter_model.safetensors").stat().st_size
        found["adapter_mb"] = round(size / 1e6, 1)
    with report.stage("merge"):
        merge(base, adapter, merged)
    with report.stage("chat") as found:
        chat(args, found)
    children = smaller(args) if report.left > 30 else []
    if report.left > 12:
        with report.stage("proof") as found:
            proof = prove(base, adapter, merged, ProofPlan(nf4=report.left > 30)).to_dict()
            found |= {k: v for k, v in proof.items() if k not in ("differing", "notes", "losses")}
            found["differing"] = len(proof["differing"])
    collect(args, report, children)


def _last(run: Any) -> int:
    """The newest checkpoint's micro-batch."""
    return max(int(p.stem[5:]) for p in run.work.glob("iter_*.pth"))


def main() -> None:
    """Parse arguments, run all stages, print the whole report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("."), help="where the JSON goes")
    parser.add_argument("--work", type=Path, default=Path("/tmp/internlm2-full"), help="the rest")
    parser.add_argument("--toy", action="store_true", help="two layers, a few steps, on a CPU")
    parser.add_argument("--steps", type=int, help="optimizer steps (default 60, toy 8)")
    parser.add_argument("--reply-tokens", type=int, help="of each chat reply (default 256, toy 12)")
    parser.add_argument("--limit", type=float, default=150, help="seconds that the call may last")
    args = parser.parse_args()
    args.work = args.work.resolve()
    os.environ["PERSONA_HOME"] = str(args.work / "home")
    if args.child:
        child(args.child, args.work)
        return
    args.steps = args.steps or (8 if args.toy else 60)
    args.reply_tokens = args.reply_tokens or (12 if args.toy else 256)
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.out / "internlm2_full.json", args.limit)
    try:
        whole(args, report)
    finally:
        report.memory.close()
        report.write()
    print(report.file.read_text())


if __name__ == "__main__":
    main()
