"""Two columns on a CPU: the chat engine against the same replies one after the other.

    python benchmarks/chat_cpu.py [--tokens 48] [--repeats 5]

Model: the bundled SmolLM2-135M and a LoRA adapter of random weights (r 16, all linear layers).
Both sides run in this process, interleaved, on the same two prompts, greedy, with the stop tokens
ignored so that every reply has the same number of tokens. Medians over the repeats, with the
spread. The reference is one PEFT model with ``transformers.generate``: first the base under
``disable_adapter()``, then base + adapter. The engine keeps what all prompts begin with, if it is
worth it; the bundled model's template writes no system turn of its own, so here it is not.

Checked: the two columns' first tokens within 1.3 x of one reply's, at least 1.5 x the reference's
tokens per second, the same tokens as the reference, and at most 1.15 x the resident memory of one
plain model that answers one prompt (measured in processes of their own).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROMPT = "Please introduce yourself. Who are you, who made you, and what do you like to do?"
MIN_SPEEDUP, MAX_TTFT, MAX_MEMORY = 1.5, 1.3, 1.15


@dataclass
class Timing:
    """One run of both replies, seconds from the start."""

    both_first: float
    both_done: float
    tokens: dict[str, list[int]]


def make_adapter(model: Path, out: Path) -> None:
    """Random LoRA weights, small enough to leave the text readable."""
    import torch
    from peft import LoraConfig, get_peft_model

    from core.inference.load import load_model

    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    peft = get_peft_model(load_model(model), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.002)
    peft.save_pretrained(str(out))


def reference(model: Any, ids: list[int], tokens: int, clock: dict[str, float]) -> list[int]:
    """One reply by transformers.generate; notes the time of its first token."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    class First(BaseStreamer):
        def __init__(self) -> None:
            self.calls = 0

        def put(self, value: Any) -> None:
            self.calls += 1
            if self.calls == 2:  # the first call brings the prompt
                clock["first"] = time.perf_counter()

        def end(self) -> None:
            return

    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=None,
            do_sample=False,
            eos_token_id=None,
            streamer=First(),
        )
    return out[0, len(ids) :].tolist()


def sequential(peft: Any, ids: list[int], tokens: int, threads: int) -> Timing:
    """The reference: base, then base + adapter, on one copy."""
    import torch

    torch.set_num_threads(threads)
    clock: dict[str, float] = {}
    start = time.perf_counter()
    with peft.disable_adapter():
        base = reference(peft, ids, tokens, clock)
    tuned = reference(peft, ids, tokens, clock)
    end = time.perf_counter()
    return Timing(clock["first"] - start, end - start, {"a": base, "b": tuned})


def single(peft: Any, ids: list[int], tokens: int, threads: int) -> float:
    """Seconds to the first token of one reply (base + adapter) by transformers.generate."""
    import torch

    torch.set_num_threads(threads)
    clock: dict[str, float] = {}
    start = time.perf_counter()
    reference(peft, ids, tokens, clock)
    return clock["first"] - start


def columns(engine: Any, names: list[str], ids: list[int], tokens: int, threads: int) -> Timing:
    """The engine: these columns at once."""
    from core.inference import decoding
    from core.inference.settings import GenerationSettings
    from core.inference.stream import Stream

    start = time.perf_counter()
    resident = engine.voice("a").resident
    streams = [
        Stream(
            column=column,
            prompt=ids,
            stop_ids=frozenset(),
            limit=tokens,
            tokenizer=resident.tokenizer,
            emit=_raise_errors,
            adapter=engine.voice(column).adapter,
        )
        for column in names
    ]
    settings = GenerationSettings(max_new_tokens=tokens)
    decoding.stream(resident.backend, streams, settings, threads)
    end = time.perf_counter()
    return Timing(
        max(s.ttft_s or 0.0 for s in streams),
        end - start,
        {s.column: s.token_ids for s in streams},
    )


def _raise_errors(event: Any) -> None:
    if getattr(event, "error", None):
        raise SystemExit(f"a column failed: {event.error}")


def load_engine(model: Path, adapter: Path) -> Any:
    """Base and base + adapter on one copy."""
    from core.chat.columns import Column
    from core.chat.engine import Engine

    engine = Engine()
    errors = engine.load(
        [
            Column("a", "base", "base", str(model)),
            Column("b", "adapter", "adapter", str(model), str(adapter)),
        ]
    )
    if errors:
        raise SystemExit(f"cannot load: {errors}")
    return engine


def memory_of(what: str, model: Path, adapter: Path, tokens: int) -> int:
    """Highest resident memory while answering, bytes, of a process that does only this."""
    out = subprocess.run(
        [
            sys.executable,
            __file__,
            f"--tokens={tokens}",
            "--memory-of",
            what,
            str(model),
            str(adapter),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(json.loads(out.stdout.splitlines()[-1])["rss"])


def answer_and_weigh(what: str, model: Path, adapter: Path, tokens: int) -> None:
    """Body of the process that ``memory_of`` starts."""
    import psutil

    from core.inference.load import load_model, load_tokenizer
    from core.models.template import ChatTemplate

    ids = ChatTemplate(load_tokenizer(model)).encode([{"role": "user", "content": PROMPT}])
    work: Callable[[], Any]
    if what == "plain":
        plain = load_model(model)
        work = lambda: reference(plain, ids, tokens, {})  # noqa: E731
    else:
        engine = load_engine(model, adapter)
        work = lambda: columns(engine, ["a", "b"], ids, tokens, 2)  # noqa: E731
    peak = [0]
    over = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not over.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            over.wait(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    over.set()
    watcher.join()
    print(json.dumps({"rss": peak[0]}))


def spread(values: list[float], unit: str = "") -> str:
    """median [min, max]."""
    middle = statistics.median(values)
    return f"{middle:.2f}{unit} [{min(values):.2f}, {max(values):.2f}]"


def measure(model: Path, adapter: Path, tokens: int, repeats: int, threads: int) -> bool:
    """Print the table and the checks; True if all hold."""
    from peft import PeftModel

    from core.inference.load import load_model, load_tokenizer
    from core.models.template import ChatTemplate

    ids = ChatTemplate(load_tokenizer(model)).encode([{"role": "user", "content": PROMPT}])
    peft = PeftModel.from_pretrained(load_model(model), str(adapter)).eval()
    engine = load_engine(model, adapter)
    backend = engine.voice("a").resident.backend.name
    sequential(peft, ids, 4, threads)
    columns(engine, ["a", "b"], ids, 4, threads)
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    same = True
    for number in range(repeats):
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
        slow = sequential(peft, ids, tokens, threads)
        fast = columns(engine, ["a", "b"], ids, tokens, threads)
        lone = columns(engine, ["b"], ids, tokens, threads)
        plain_first = single(peft, ids, 2, threads)
        own = lone.both_done + columns(engine, ["a"], ids, tokens, threads).both_done
        same = same and slow.tokens == fast.tokens
        note("reference, tokens/s", 2 * tokens / slow.both_done)
        note("two columns, tokens/s", 2 * tokens / fast.both_done)
        note("engine, one after the other, tokens/s", 2 * tokens / own)
        note("speed-up over the reference", slow.both_done / fast.both_done)
        note("speed-up over the engine one by one", own / fast.both_done)
        note("reference, first token of one reply, s", plain_first)
        note("engine, first token of one reply, s", lone.both_first)
        note("two columns, both first tokens, s", fast.both_first)
        note("both first / one reply of the reference", fast.both_first / plain_first)
        note("both first / one reply of the engine", fast.both_first / lone.both_first)
    print(f"{len(ids)} prompt tokens, {tokens} new, {threads} threads, {backend}")
    for name, values in rows.items():
        print(f"  {name:<44}{spread(values)}")
    speedup = statistics.median(rows["speed-up over the reference"])
    ttft = statistics.median(rows["both first / one reply of the reference"])
    plain, ours = (memory_of(what, model, adapter, tokens) for what in ("plain", "engine"))
    print(f"  resident memory: one plain model {plain / 1e6:.0f} MB, engine {ours / 1e6:.0f} MB")
    checks = [
        (f"speed-up {speedup:.2f} >= {MIN_SPEEDUP}", speedup >= MIN_SPEEDUP),
        (f"first tokens {ttft:.2f} <= {MAX_TTFT}", ttft <= MAX_TTFT),
        (f"memory {ours / plain:.2f} <= {MAX_MEMORY}", ours <= MAX_MEMORY * plain),
        ("same tokens as transformers.generate", same),
    ]
    for text, good in checks:
        print(f"{'ok  ' if good else 'FAIL'} {text}")
    return all(good for _, good in checks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", nargs=3, metavar=("WHAT", "MODEL", "ADAPTER"))
    args = parser.parse_args()
    if args.memory_of:
        what, model, adapter = args.memory_of
        answer_and_weigh(what, Path(model), Path(adapter), args.tokens)
        return 0
    from core.models import bundled

    path = bundled.ensure()
    with tempfile.TemporaryDirectory() as folder:
        adapter_path = Path(folder) / "adapter"
        make_adapter(path, adapter_path)
        return 0 if measure(path, adapter_path, args.tokens, args.repeats, args.threads) else 1


if __name__ == "__main__":
    sys.exit(main())
