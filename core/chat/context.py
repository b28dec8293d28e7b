"""What of a conversation fits the model, decided and told before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.conversation import Message
from core.errors import UserError
from core.models.template import ChatTemplate


@dataclass(frozen=True)
class Feed:
    """What one column will be fed.

    Attributes:
        messages: what is fed, after the cut.
        cut: messages that are left out (the oldest exchanges; never the system turn).
        text, token_ids: the exact prompt.
        limit: longest possible reply, tokens; less than asked for when the context ends first.
    """

    messages: list[Message]
    cut: list[Message]
    text: str
    token_ids: list[int]
    limit: int


def plan(
    template: ChatTemplate, messages: Sequence[Message], max_new_tokens: int, context: int
) -> Feed:
    """Drop oldest exchanges until prompt and reply fit ``context`` tokens.

    A conversation is cut only as far as a reply of ``max_new_tokens`` needs, but never for more
    than half of the context: a model that may write 32,768 tokens must not lose its whole history.

    Raises:
        UserError: the last message alone does not fit.
    """
    reserve = min(max_new_tokens, context // 2)
    head = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(head) :])
    start = 0
    while True:
        kept = [*head, *rest[start:]]
        text = template.render(kept, add_generation_prompt=True)
        ids = template.ids(text)
        if len(ids) + reserve <= context:
            limit = min(max_new_tokens, context - len(ids))
            return Feed(kept, rest[:start], text, ids, limit)
        following = _next_user_turn(rest, start)
        if following is None:
            return _last_resort(kept, rest[:start], text, ids, max_new_tokens, context)
        start = following


def _last_resort(
    kept: list[Message],
    cut: list[Message],
    text: str,
    ids: list[int],
    max_new_tokens: int,
    context: int,
) -> Feed:
    """One exchange is left: let the reply be short rather than refuse, as long as there is room."""
    if len(ids) >= context:
        raise UserError(
            f"the message is too long for this model: {len(ids):,} tokens with its template",
            why=f"the model reads at most {context:,} tokens, reply included",
            fix="shorten the message or split it",
        )
    return Feed(kept, cut, text, ids, min(max_new_tokens, context - len(ids)))


def _next_user_turn(rest: Sequence[Message], start: int) -> int | None:
    for index in range(start + 1, len(rest)):
        if rest[index]["role"] == "user":
            return index
    return None


def context_length(config: object, tokenizer: object) -> int:
    """Positions the model was made for; the tokenizer's limit where the config has none."""
    length = getattr(config, "max_position_embeddings", None) or getattr(
        config, "n_positions", None
    )
    limit = getattr(tokenizer, "model_max_length", None) or 0
    # transformers writes 1e30 where a tokenizer has no limit.
    return int(length or (limit if 0 < limit < 10**9 else 2048))
