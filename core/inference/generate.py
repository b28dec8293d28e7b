"""Batched replies from one model: rehearsal rows, evaluation and the merge check use this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from core.conversation import Message, OnProgress
from core.models.template import ChatTemplate

if TYPE_CHECKING:
    from core.inference.batching import Picker

#: Replies computed at a time where many are wanted; with more, a CPU is hardly faster.
ROWS_ON_CPU = 96


def rows_at_once(model: Any) -> int:
    """Replies to compute at a time where many are wanted."""
    return ROWS_ON_CPU if model.device.type == "cpu" else 256


@dataclass(frozen=True)
class Reply:
    """One reply. ``token_ids`` has no stop token; ``finish_reason`` length means it was cut."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    stage: str = "generate",
) -> list[Reply]:
    """Answer each conversation; replies come in input order.

    Prompts are sorted by length so that a batch has little padding, and padded on the left. At
    ``temperature`` 0 decoding is greedy and the result does not depend on the batch, but for
    rounding; sampling depends on ``seed``, the prompts and ``batch_size``.
    """
    template = ChatTemplate(tokenizer)
    prompts = [template.encode(c) for c in conversations]
    return generate_ids(
        model,
        tokenizer,
        prompts,
        stop_ids=template.stop_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        on_progress=on_progress,
        stage=stage,
    )


def generate_ids(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    stage: str = "generate",
) -> list[Reply]:
    """``generate`` for prompts that are token ids already (drawing prompts from a base model)."""
    import torch

    from core.inference import batching

    generator = torch.Generator(device=model.device).manual_seed(seed)
    pick = _sampler(temperature, top_p, top_k, generator)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    queue = [list(prompts[i]) for i in order]

    def report(done: int) -> None:
        if on_progress:
            on_progress(stage, done, len(prompts))

    lean = batching.lean_model(model)
    if lean is not None and queue:
        made = batching.decode(
            *lean,
            queue,
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            rows=batch_size,
            pick=pick,
            # Sampling draws from one generator, in an order that must not depend on threads.
            threads=torch.get_num_threads() if temperature <= 0 else 1,
            on_done=report,
        )
    else:
        made = []
        for start in range(0, len(queue), batch_size):
            batch = queue[start : start + batch_size]
            made += _decode(model, tokenizer, batch, stop_ids, max_new_tokens, pick)
            report(len(made))
    replies = {i: _reply(ids, stop_ids, tokenizer) for i, ids in zip(order, made, strict=True)}
    return [replies[i] for i in range(len(prompts))]


def _reply(ids: list[int], stop_ids: Sequence[int], tokenizer: Any) -> Reply:
    stopped = bool(ids) and ids[-1] in stop_ids
    kept = ids[:-1] if stopped else ids
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Reply(text, kept, "stop" if stopped else "length")


def _sampler(temperature: float, top_p: float, top_k: int, generator: Any) -> Picker:
    """Logits (batch, vocab) -> token ids (batch,)."""
    import torch

    if temperature <= 0:
        return lambda logits: logits.argmax(-1)

    def pick(logits: Any) -> Any:
        scores = logits.float() / temperature
        if top_k:
            floor = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < floor, float("-inf"))
        if top_p < 1:
            ranked, order = scores.sort(descending=True)
            probs = ranked.softmax(-1)
            drop = probs.cumsum(-1) - probs >= top_p
            scores = scores.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
        return torch.multinomial(scores.softmax(-1), 1, generator=generator).squeeze(-1)

    return pick


def _decode(
    model: Any,
    tokenizer: Any,
    batch: list[list[int]],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    pick: Picker,
) -> list[list[int]]:
    """Decode a left-padded batch with a key-value cache; finished rows leave the batch.

    transformers' own generate() carries finished rows to the end; on a CPU, where the cost is
    per row, dropping them saves the difference between the longest and the mean reply.
    """
    import torch
    from transformers import DynamicCache

    device = model.device
    width = max(map(len, batch))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in batch], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=device)
    position = mask.cumsum(-1) - 1
    cache: Any = DynamicCache()
    alive = list(range(len(batch)))
    out: list[list[int]] = [[] for _ in batch]
    stops = set(stop_ids)
    step_ids, step_position = ids, position.clamp(min=0)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(
                input_ids=step_ids,
                attention_mask=mask,
                position_ids=step_position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            chosen = pick(logits)
            tokens = chosen.tolist()
            for row, token in zip(alive, tokens, strict=True):
                out[row].append(token)
            keep = [k for k, token in enumerate(tokens) if token not in stops]
            if not keep:
                break
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            step_position = step_position[:, -1:] + 1
            if len(keep) < len(alive):
                index = torch.tensor(keep, device=device)
                mask, step_position, chosen = mask[index], step_position[index], chosen[index]
                cache.batch_select_indices(index)
                alive = [alive[k] for k in keep]
            step_ids = chosen[:, None]
    return out
