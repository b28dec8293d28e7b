"""Replies decoded in rows of one cache equal transformers' own, whatever shares the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.inference import batching
from core.inference.generate import generate
from core.inference.load import load_model, load_tokenizer

CONVERSATIONS = [
    [{"role": "user", "content": f"Tell me about number {i}" + " and more" * (i % 7)}]
    for i in range(23)
]


@pytest.fixture(scope="module")
def adapted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the tiny model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(tiny_llama), config).save_pretrained(str(folder))
    return folder


def replies(model: Any, tokenizer: Any, **options: Any) -> list[list[int]]:
    made = generate(model, tokenizer, CONVERSATIONS, max_new_tokens=12, **options)
    return [r.token_ids for r in made]


@pytest.mark.parametrize("with_adapter", [False, True])
def test_rows_equal_transformers(
    tiny_llama: Path, adapted: Path, with_adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    model = load_model(tiny_llama, adapter=adapted if with_adapter else None)
    assert batching.lean_model(model) is not None
    seen: list[int] = []
    given = replies(
        model, tokenizer, batch_size=3, on_progress=lambda stage, done, total: seen.append(done)
    )
    with monkeypatch.context() as patch:
        patch.setattr(batching, "lean_model", lambda model: None)
        wanted = replies(model, tokenizer, batch_size=5)
    assert given == wanted
    assert seen == sorted(seen) and seen[-1] == len(CONVERSATIONS)
    if with_adapter:
        assert given != replies(load_model(tiny_llama), tokenizer)


def test_a_swapped_adapter_is_noticed(tiny_llama: Path, adapted: Path) -> None:
    """The pool takes one adapter out and puts another in, on one resident base."""
    from core.inference.pool import Loadable, Pool
    from tests.fakes import tiny_models

    ref = tiny_models.ref_of(tiny_llama)
    with Pool({"base": Loadable(ref), "tuned": Loadable(ref, adapted)}) as pool:
        said = []
        for side in ("base", "tuned", "base", "tuned"):
            with pool.use(side) as subject:
                assert batching.lean_model(subject.model) is not None
                said.append(replies(subject.model, subject.tokenizer))
                if side == "tuned":
                    with subject.model.disable_adapter():
                        assert replies(subject.model, subject.tokenizer) == said[0]
    assert said[0] == said[2] != said[1] == said[3]


def test_a_fused_adapter_answers_alike_and_leaves_no_trace(tiny_llama: Path, adapted: Path) -> None:
    from core.inference.pool import Loadable, Pool
    from tests.fakes import tiny_models

    ref = tiny_models.ref_of(tiny_llama)
    sides = {
        "base": Loadable(ref),
        "beside": Loadable(ref, adapted),
        "fused": Loadable(ref, adapted, fused=True),
    }
    ids = torch.tensor([[5, 9, 17, 4, 33]])
    with Pool(sides) as pool:
        logits, said, weights = {}, {}, []
        for side in ("base", "beside", "fused", "base"):
            with pool.use(side) as subject:
                assert batching.lean_model(subject.model) is not None
                said[side] = replies(subject.model, subject.tokenizer)
                with torch.inference_mode():
                    logits[side] = subject.model(input_ids=ids).logits
                if side == "base":
                    weights.append({k: v.clone() for k, v in subject.model.state_dict().items()})
                if side == "fused":
                    assert not any("lora" in name for name, _ in subject.model.named_modules())
        assert pool.fingerprint("beside") != pool.fingerprint("fused")
    assert said["fused"] == said["beside"] != said["base"]
    torch.testing.assert_close(logits["fused"], logits["beside"], rtol=0, atol=1e-4)
    assert all(torch.equal(weights[0][name], w) for name, w in weights[1].items())


def test_weights_come_back_when_fusing_fails(
    tiny_llama: Path, adapted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory after the first layer: the base must not keep half an adapter."""
    from peft.tuners.lora import Linear

    from core.inference.pool import Loadable, Pool
    from tests.fakes import tiny_models

    ref = tiny_models.ref_of(tiny_llama)
    products = Linear.get_delta_weight
    calls: list[str] = []

    def second_fails(layer: Linear, name: str) -> torch.Tensor:
        calls.append(name)
        if len(calls) > 1:
            raise MemoryError
        return products(layer, name)

    with Pool({"base": Loadable(ref), "fused": Loadable(ref, adapted, fused=True)}) as pool:
        with pool.use("base") as subject:
            before = {k: v.clone() for k, v in subject.model.state_dict().items()}
        monkeypatch.setattr(Linear, "get_delta_weight", second_fails)
        with pytest.raises(MemoryError), pool.use("fused"):
            pass
        with pool.use("base") as subject:
            after = subject.model.state_dict()
    assert len(calls) == 2 and before.keys() == after.keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


def test_an_adapter_that_does_more_than_add_is_not_fused(tiny_llama: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from core.inference.pool import _fusible

    def made(**more: object) -> object:
        return get_peft_model(
            load_model(tiny_llama), LoraConfig(r=4, target_modules=["q_proj"], **more)
        )

    assert len(_fusible(made())) == 2  # layers of the tiny model
    assert not _fusible(made(use_dora=True))
    assert not _fusible(made(lora_bias=True))
    assert not _fusible(made(modules_to_save=["lm_head"]))
    half = load_model(tiny_llama).to(torch.bfloat16)
    assert not _fusible(get_peft_model(half, LoraConfig(r=4, target_modules=["q_proj"])))


def test_a_model_that_is_trained_keeps_its_weights(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    model.requires_grad_(True)
    assert batching.lean_model(model) is None


def test_an_interrupt_ends_all_shares(tiny_llama: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    model, tokenizer = load_model(tiny_llama), load_tokenizer(tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        replies(model, tokenizer, batch_size=2, on_progress=interrupt)


def test_a_fault_in_a_share_is_raised(tiny_llama: Path) -> None:
    found = batching.lean_model(load_model(tiny_llama))
    assert found is not None

    def broken(logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no token")

    with pytest.raises(RuntimeError, match="no token"):
        batching.decode(
            *found, [[5, 6], [5, 7], [5, 8]],
            stop_ids=[2], max_new_tokens=3, rows=2, pick=broken, threads=2,
            on_done=lambda done: None,
        )  # fmt: skip
