"""The one pass over given tokens: how much at once, and in what shape it reaches the head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.inference import resident, scoring
from core.inference.padded import PaddedBackend
from core.inference.resident import Resident
from core.inference.scoring import Passage

pytestmark = pytest.mark.fast

PASSAGES = [Passage([5, 6, 7], [8, 9]), Passage([5], [6, 7, 8, 9]), Passage([9, 8], [7])]


def test_the_head_gets_a_whole_block_of_memory_and_the_logits_are_the_lean_ones(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice took the head of a 0.5B model 33 s instead of 1.1, and 3.7 GB, in bf16 on a CPU."""
    lean = list(scoring.logits(Resident.load(tiny_llama).voice(), PASSAGES))
    monkeypatch.setattr(resident, "unsupported", lambda model: "not wanted")
    plain = Resident.load(tiny_llama)
    assert isinstance(plain.backend, PaddedBackend)
    seen: list[torch.Tensor] = []
    plain.model.lm_head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    found = list(scoring.logits(plain.voice(), PASSAGES))
    assert seen and all(x.is_contiguous() for x in seen)
    assert [f.shape[0] for f in found] == [2, 4, 1]
    for one, other in zip(found, lean, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=30),
    st.integers(1, 200),
    st.integers(1, 100),
)
def test_no_batch_is_larger_than_the_room_unless_one_passage_alone_is(
    sizes: list[tuple[int, int]], tokens: int, weighed: int
) -> None:
    passages = [Passage([0] * a, [0] * b) for a, b in sizes]
    room = scoring._Room(tokens, weighed)
    batches = list(scoring._batches(passages, room))
    assert [p for batch in batches for p in batch] == passages
    for batch in batches:
        longest = max(len(p.prompt) + len(p.reply) for p in batch)
        reply = max(len(p.reply) for p in batch)
        fits = len(batch) * longest <= tokens and len(batch) * reply <= weighed
        assert fits or len(batch) == 1
