"""What the model would say, without letting it speak: distributions over the base's own replies.

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

from core.conversation import Message
from core.inference.pool import Subject
from core.models.template import ChatTemplate
from core.text.intervals import quantile


@dataclass(frozen=True)
class Passage:
    """A prompt and the reply whose tokens are weighed, as token ids."""

    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True)
class Reference:
    """The base's view of passages: log-probabilities (tokens, vocab) of each, as float16."""

    passages: list[Passage]
    log_probs: list[Any]


@dataclass(frozen=True)
class Divergence:
    """How far a model's distribution is from the base's.

    ``kl``: mean over prompts, nats a token; ``kl_p90``: its 90th percentile over prompts;
    ``top1``: share of tokens whose most likely token is the same; ``ppl_ratio``: perplexity of the
    base's replies under the model over that under the base.
    """

    prompts: int
    tokens: int
    kl: float
    kl_p90: float
    top1: float
    ppl_ratio: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def passages(
    subject: Subject,
    conversations: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[int]],
    limit: int,
) -> list[Passage]:
    """Prompts with the first ``limit`` tokens of their replies; empty replies are left out."""
    template = ChatTemplate(subject.tokenizer)
    return [
        Passage(template.encode(messages), list(reply[:limit]))
        for messages, reply in zip(conversations, replies, strict=True)
        if reply
    ]


def reference(subject: Subject, items: Sequence[Passage]) -> Reference:
    """The base's log-probabilities on the passages."""
    import torch

    kept = [lp.to(torch.float16).cpu() for lp in _log_probs(subject, items)]
    return Reference(list(items), kept)


def divergence(subject: Subject, base: Reference) -> tuple[Divergence, list[float]]:
    """Compare a model with the base; also returns the KL of each passage."""
    import torch

    kls: list[float] = []
    same = tokens = 0
    drift = 0.0
    for passage, mine, theirs in zip(
        base.passages, _log_probs(subject, base.passages), base.log_probs, strict=True
    ):
        ours = theirs.to(mine.device).float()
        # -inf (a float16 underflow never reaches it, a masked vocabulary may) would give NaN.
        terms = torch.where(ours > -60, ours.exp() * (ours - mine), 0.0)
        kls.append(float(terms.sum(-1).mean()))
        same += int((ours.argmax(-1) == mine.argmax(-1)).sum())
        ids = torch.tensor(passage.reply, device=mine.device)[:, None]
        drift += float((ours - mine).gather(-1, ids).sum())
        tokens += len(passage.reply)
    if not tokens:
        return Divergence(0, 0, math.nan, math.nan, math.nan, math.nan), []
    found = Divergence(
        len(kls),
        tokens,
        max(0.0, sum(kls) / len(kls)),
        quantile(kls, 0.9),
        same / tokens,
        math.exp(min(drift / tokens, 50.0)),
    )
    return found, kls


def mean_log_prob(subject: Subject, items: Sequence[Passage]) -> list[float]:
    """Mean log-probability of each reply's tokens."""
    import torch

    out = []
    for passage, log_probs in zip(items, _log_probs(subject, items), strict=True):
        ids = torch.tensor(passage.reply, device=log_probs.device)[:, None]
        out.append(float(log_probs.gather(-1, ids).mean()))
    return out


def _log_probs(subject: Subject, items: Sequence[Passage]) -> Iterator[Any]:
    """Per passage, in order: float32 log-probabilities (reply tokens, vocab).

    Right-padded batches in the given order (callers pass passages of similar length); the head is
    applied to the reply positions only, since with a large vocabulary it outweighs the rest.
    """
    import torch

    step = 8 if subject.model.device.type == "cpu" else 32
    for start in range(0, len(items), step):
        batch = items[start : start + step]
        yield from _batch_log_probs(subject, batch, torch)


def _batch_log_probs(subject: Subject, batch: Sequence[Passage], torch: Any) -> Iterator[Any]:
    device = subject.model.device
    rows = [p.prompt + p.reply for p in batch]
    width = max(map(len, rows))
    pad = subject.tokenizer.pad_token_id or 0
    ids = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    first = min(len(p.prompt) for p in batch) - 1
    with torch.inference_mode():
        # Position i predicts token i + 1: logits from the first reply's predecessor on.
        logits = subject.model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=width - first
        ).logits
        for row, passage in enumerate(batch):
            begin = len(passage.prompt) - 1 - first
            yield logits[row, begin : begin + len(passage.reply)].float().log_softmax(-1)
