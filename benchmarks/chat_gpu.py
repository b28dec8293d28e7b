"""Two columns on a GPU: the chat engine against two threads over two eager copies.

    python benchmarks/chat_gpu.py [--tokens 256] [--repeats 3]

Model: random weights in the shape of InternLM2-1.8B as a Llama (24 layers, 2048 wide, vocabulary
92,544), bf16, and a LoRA adapter of random weights (r 64, all linear layers). Nothing is read from
disk or network. The reference is what a page would do without an engine: two copies (base, and one
that stands for merged, so it has no LoRA cost), one thread each, ``transformers.generate`` with a
``TextIteratorStreamer``. Both sides run in this process, interleaved, on the same prompt, greedy,
with the stop tokens ignored. Medians over the repeats, with the spread.

Checked: at least 5 x the reference's tokens per second; resident weights at most 1.1 x one model;
and, in float32 on 6 layers, the same tokens as transformers.generate for base and base + adapter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.inference import adapters, decoding
from core.inference.backend import Backend
from core.inference.cuda_graph import GraphBackend
from core.inference.events import Ended, Event
from core.inference.resident import choose
from core.inference.settings import GenerationSettings
from core.inference.stream import Stream

MIN_SPEEDUP, MAX_WEIGHTS, MAX_TTFT = 5.0, 1.1, 1.3
VOCABULARY = 92_544


def words() -> Any:
    """A tokenizer that is enough to stream: every id is a word."""
    from tokenizers import Tokenizer, models

    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    )


WORDS = words()


def build(layers: int, dtype: torch.dtype, device: str, seed: int = 0) -> Any:
    """Random weights in the 1.8B shape."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=32_768,
        rope_theta=1e6,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config).to(dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def with_adapter(model: Any) -> Any:
    """Attach random LoRA weights; the PEFT model switches adapters by thread from here on."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    peft = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    peft.requires_grad_(False)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    adapters.switch_by_thread(peft)
    return peft


def weights_bytes(model: Any) -> int:
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    return sum(storages.values())


def two_threads(copies: list[Any], ids: list[int], tokens: int) -> tuple[float, float]:
    """The reference: seconds until both have a token, seconds until both are done."""
    firsts: list[float] = []

    def reply(model: Any) -> None:
        streamer = transformers.TextIteratorStreamer(WORDS, skip_prompt=True, timeout=120)
        prompt = torch.tensor([ids], device=model.device)
        worker = threading.Thread(
            target=model.generate,
            kwargs={
                "input_ids": prompt,
                "attention_mask": torch.ones_like(prompt),
                "max_new_tokens": tokens,
                "min_new_tokens": tokens,
                "do_sample": False,
                "streamer": streamer,
            },
        )
        worker.start()
        for index, _ in enumerate(streamer):
            if index == 0:
                firsts.append(time.perf_counter())
        worker.join()

    torch.cuda.synchronize()
    start = time.perf_counter()
    threads = [threading.Thread(target=reply, args=(m,)) for m in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    return max(firsts) - start, time.perf_counter() - start


def columns(
    backend: Backend, ids: list[int], tokens: int, names: list[str | None]
) -> tuple[float, float, list[list[int]]]:
    """The engine: seconds until all have a token, until all are done, the tokens."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    streams = [
        Stream(
            column=str(index),
            prompt=ids,
            stop_ids=frozenset(),
            limit=tokens,
            tokenizer=WORDS,
            emit=_raise_errors,
            adapter=name,
        )
        for index, name in enumerate(names)
    ]
    decoding.stream(backend, streams, GenerationSettings(max_new_tokens=tokens), 2)
    torch.cuda.synchronize()
    end = time.perf_counter()
    first = max(s.ttft_s or 0.0 for s in streams)
    return first, end - start, [s.token_ids for s in streams]


def _raise_errors(event: Event) -> None:
    if isinstance(event, Ended) and event.error:
        raise SystemExit(f"a column failed: {event.error}")


def same_tokens(device: str, tokens: int) -> bool:
    """In float32, where rounding does not decide: every column equals generate alone."""
    model = build(6, torch.float32, device, seed=1)
    peft = with_adapter(model)
    backend = choose(peft)
    ids = [(37 * i + 11) % VOCABULARY for i in range(40)]
    names: list[str | None] = [None, "default"]
    ours = columns(backend, ids, tokens, names)[2]
    inner = peft.get_base_model()
    prompt = torch.tensor([ids], device=device)
    for name, mine in zip(names, ours, strict=True):
        with torch.inference_mode(), adapters.using(name):
            out = inner.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
            )
        if out[0, len(ids) :].tolist() != mine:
            print(f"  {name or 'base'}: the tokens differ ({backend.name})")
            return False
    return ours[0] != ours[1]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device")
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    same = same_tokens("cuda", 48)
    torch.cuda.empty_cache()
    base = build(args.layers, torch.bfloat16, "cuda")
    one_model = weights_bytes(base)
    merged = build(args.layers, torch.bfloat16, "cuda", seed=2)
    peft = with_adapter(build(args.layers, torch.bfloat16, "cuda"))
    backend = choose(peft)
    resident = weights_bytes(peft)
    ids = [(37 * i + 11) % VOCABULARY for i in range(args.prompt)]
    two_threads([base, merged], ids, 8)
    columns(backend, ids, 8, [None, "default"])
    rows: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        slow_first, slow = two_threads([base, merged], ids, args.tokens)
        fast_first, fast, _ = columns(backend, ids, args.tokens, [None, "default"])
        lone_first, lone, _ = columns(backend, ids, args.tokens, ["default"])
        both = 2 * args.tokens
        for name, value in (
            ("reference, tokens/s", both / slow),
            ("two columns, tokens/s", both / fast),
            ("one column, tokens/s", args.tokens / lone),
            ("speed-up", slow / fast),
            ("reference, both first tokens, s", slow_first),
            ("two columns, both first tokens, s", fast_first),
            ("one column, first token, s", lone_first),
            ("both first / one first", fast_first / lone_first),
        ):
            rows.setdefault(name, []).append(value)
    print(f"{args.prompt} prompt tokens, {args.tokens} new tokens a reply, {backend.name}")
    for name, values in rows.items():
        print(f"  {name:<36}{spread(values)}")
    print(f"  weights: one model {one_model / 1e9:.2f} GB, engine {resident / 1e9:.2f} GB")
    return report(rows, resident / one_model, same, backend)


def report(
    rows: dict[str, list[float]],
    weights: float,
    same: bool,
    backend: Backend,
) -> int:
    """Print the checks; 0 if all hold."""
    speedup = statistics.median(rows["speed-up"])
    ttft = statistics.median(rows["both first / one first"])
    checks = [
        (f"speed-up {speedup:.1f} >= {MIN_SPEEDUP}", speedup >= MIN_SPEEDUP),
        (f"first tokens {ttft:.2f} <= {MAX_TTFT}", ttft <= MAX_TTFT),
        (f"weights {weights:.2f} <= {MAX_WEIGHTS}", weights <= MAX_WEIGHTS),
        ("same tokens as transformers.generate in float32", same),
        ("the graph was used", isinstance(backend, GraphBackend)),
    ]
    for text, good in checks:
        print(f"{'ok  ' if good else 'FAIL'} {text}")
    return 0 if all(good for _, good in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
