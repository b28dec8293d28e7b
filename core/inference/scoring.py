"""What a model would say, without letting it speak: its distributions over given tokens.

KL is the mean, over prompts, of the mean over the tokens t of the base's greedy reply, of
sum_v p_b(v) [log p_b(v) - log p_t(v)], in nats. Both models see the same tokens. The base's
log-probabilities are computed once and kept in host memory as float16 (the KL moves by less than
1e-3 by that), so that base and target need not be in memory together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from core.inference.resident import Voice

#: Tokens computed at once, which bounds the activations, and bytes of the logits of those that are
#: weighed: a vocabulary of 150,000 takes 0.6 MB a token, and the softmax as much again.
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 1024, 4096
_LOGITS_ON_CPU, _LOGITS_ON_GPU = 1 << 27, 1 << 30


@dataclass(frozen=True)
class Passage:
    """A prompt and the reply whose tokens are weighed, as token ids."""

    prompt: list[int]
    reply: list[int]


def spread(n: int, count: int) -> list[int]:
    """``count`` indices spread evenly over ``range(n)``; all of them if there are no more."""
    return list(range(n)) if count >= n else [i * n // count for i in range(count)]


@dataclass(frozen=True)
class Reference:
    """The base's view of passages: log-probabilities (tokens, vocab) of each, as float16."""

    passages: list[Passage]
    log_probs: list[Tensor]


@dataclass(frozen=True)
class Divergence:
    """How far a model's distribution is from the base's.

    ``kl``: mean over prompts, nats a token; ``top1``: share of tokens whose most likely token is
    the same; ``ppl_ratio``: perplexity of the base's replies under the model over that under the
    base.
    """

    prompts: int
    tokens: int
    kl: float
    top1: float
    ppl_ratio: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def logits(voice: Voice, passages: Sequence[Passage], *, end: bool = False) -> Iterator[Tensor]:
    """The one pass over given tokens: per passage, in order, float32 logits (reply tokens, vocab).

    Args:
        end: one row more, for the token after the reply.
    """
    backend = voice.resident.backend
    on_cpu = backend.device.type == "cpu"
    logit_bytes = 4 * voice.resident.vocab_size
    room = _Room(
        _TOKENS_ON_CPU if on_cpu else _TOKENS_ON_GPU,
        (_LOGITS_ON_CPU if on_cpu else _LOGITS_ON_GPU) // logit_bytes,
    )
    for batch in _batches(passages, room):
        with torch.inference_mode():
            # Position i predicts token i + 1: the last token is fed for the sake of ``end`` only.
            rows = [p.prompt + (p.reply if end else p.reply[:-1]) for p in batch]
            keep = [len(p.reply) + end for p in batch]
            found = backend.score(rows, keep, voice.adapter)
        yield from (row.float() for row in found)


@dataclass(frozen=True)
class _Room:
    """Of a batch, padded to its longest row: tokens, and tokens whose logits exist."""

    tokens: int
    weighed: int

    def holds(self, batch: Sequence[Passage]) -> bool:
        longest = max(len(p.prompt) + len(p.reply) for p in batch)
        reply = max(len(p.reply) for p in batch)
        return len(batch) * longest <= self.tokens and len(batch) * reply <= self.weighed


def _batches(passages: Sequence[Passage], room: _Room) -> Iterator[list[Passage]]:
    """Neighbours together, at least one, while there is room."""
    batch: list[Passage] = []
    for passage in passages:
        if batch and not room.holds([*batch, passage]):
            yield batch
            batch = []
        batch.append(passage)
    if batch:
        yield batch


def log_probs(voice: Voice, passages: Sequence[Passage]) -> Iterator[Tensor]:
    """Per passage, in order: float32 log-probabilities (reply tokens, vocab)."""
    return (row.log_softmax(-1) for row in logits(voice, passages))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each position in nats, (tokens,), from two (tokens, vocab) log-probabilities.

    What p all but rules out counts nothing: a masked vocabulary entry (-inf) would give NaN.
    """
    return torch.where(log_p > -60, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def reference(voice: Voice, passages: Sequence[Passage]) -> Reference:
    """The base's log-probabilities on the passages."""
    kept = [lp.to(torch.float16).cpu() for lp in log_probs(voice, passages)]
    return Reference(list(passages), kept)


def divergence(voice: Voice, base: Reference) -> tuple[Divergence, list[float]]:
    """Compare a model with the base; also returns the KL of each passage."""
    kls: list[float] = []
    same = tokens = 0
    drift = 0.0
    for passage, mine, theirs in zip(
        base.passages, log_probs(voice, base.passages), base.log_probs, strict=True
    ):
        ours = theirs.to(mine.device).float()
        kls.append(float(kl(ours, mine).mean()))
        same += int((ours.argmax(-1) == mine.argmax(-1)).sum())
        drift += float(_of_tokens(ours - mine, passage.reply).sum())
        tokens += len(passage.reply)
    if not tokens:
        return Divergence(0, 0, math.nan, math.nan, math.nan), []
    found = Divergence(
        len(kls),
        tokens,
        max(0.0, sum(kls) / len(kls)),
        same / tokens,
        math.exp(min(drift / tokens, 50.0)),
    )
    return found, kls


def mean_log_prob(voice: Voice, passages: Sequence[Passage]) -> list[float]:
    """Mean log-probability of each reply's tokens."""
    return [
        float(_of_tokens(row, passage.reply).mean())
        for passage, row in zip(passages, log_probs(voice, passages), strict=True)
    ]


def loss(voice: Voice, rows: Sequence[tuple[list[int], list[int]]]) -> float | None:
    """Mean loss per supervised token over (input_ids, labels), as training counts it.

    Labels of -100 have no loss. None where there is nothing to learn, or no number.
    """
    total, count = 0.0, 0
    learned = [(ids, labels) for ids, labels in rows if any(i != -100 for i in labels[1:])]
    # From the first supervised token on; the first token of all has no prediction.
    starts = [next(i for i, t in enumerate(labels) if i and t != -100) for _, labels in learned]
    passages = [
        Passage(ids[:start], ids[start:]) for (ids, _), start in zip(learned, starts, strict=True)
    ]
    for (_, labels), start, row in zip(learned, starts, log_probs(voice, passages), strict=True):
        wanted = torch.tensor(labels[start:])
        mine = _of_tokens(row, labels[start:]).cpu()
        total -= float(mine[wanted != -100].sum())
        count += int((wanted != -100).sum())
    mean = total / count if count else math.nan
    return mean if math.isfinite(mean) else None


def _of_tokens(values: Tensor, ids: Sequence[int]) -> Tensor:
    """The entry of each token, (tokens,), from (tokens, vocab); any for an id below zero."""
    return values.gather(-1, torch.tensor(ids, device=values.device).clamp(min=0)[:, None])[:, 0]
