"""What the sampler draws, and from what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.errors import UserErrors
from core.inference.requests import Request
from core.inference.sampling import Sampler
from core.inference.settings import GenerationSettings, preset


def request(prompt: list[int], seed: int = 0) -> Request:
    return Request(prompt, frozenset(), 10**6, seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, 60),
    penalty=st.floats(0.8, 2),
    min_p=st.floats(0, 0.3),
)
def test_filters_are_those_of_transformers_generate(
    seed: int, temperature: float, top_p: float, top_k: int, penalty: float, min_p: float
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(1, 50) * 4
    prompt = torch.randint(50, (1, 8))
    ours = Sampler(GenerationSettings(temperature, top_p, top_k, penalty, min_p=min_p))
    asked = request(prompt[0, :5].tolist())
    asked.token_ids = prompt[0, 5:].tolist()
    scores = logits if penalty == 1 else ours._penalized(logits[0], asked)
    scores = ours.filters(None, scores)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(prompt, logits)
    theirs = TemperatureLogitsWarper(temperature)(prompt, theirs)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(prompt, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(prompt, theirs)
    if min_p:
        theirs = MinPLogitsWarper(min_p)(prompt, theirs)
    torch.testing.assert_close(scores, theirs)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    sampler, asked = Sampler(GenerationSettings(temperature=1.0)), request([], seed=3)
    drawn = torch.tensor([int(sampler(logits, [asked])) for _ in range(4000)])
    share = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(share, logits.exp()[0], atol=0.03, rtol=0)


def test_rows_are_independent_of_their_company() -> None:
    torch.manual_seed(0)
    steps = [torch.randn(2, 30) for _ in range(20)]
    sampler = Sampler(GenerationSettings(temperature=1.0, repetition_penalty=1.3))
    both, alone = [request([1, 2], 11), request([3], 11)], request([3], 11)
    for logits in steps:
        tokens = sampler(logits, both).tolist()
        for asked, token in zip(both, tokens, strict=True):
            asked.push(token)
        alone.push(int(sampler(logits[1:], [alone])))
    assert both[1].token_ids == alone.token_ids


def test_every_setting_out_of_range_is_named_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        GenerationSettings(temperature=-1, top_p=0, max_new_tokens=10**9).check()
    text = str(caught.value)
    assert all(name in text for name in ("temperature", "top_p", "max_new_tokens"))


def test_presets() -> None:
    assert preset("greedy").greedy
    assert (preset("xtuner chat").temperature, preset("xtuner chat").top_k) == (0.1, 40)
    assert preset("web demo").repetition_penalty == 1.005
