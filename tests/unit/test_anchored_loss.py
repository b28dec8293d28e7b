"""The anchored loss: its numbers against the formula, and a resumed run to the last bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from core import fsio
from core.conversation import Conversation
from core.training import config
from core.training.spec import TrainSpec
from tests.fakes import tiny_models
from tests.unit.test_training_run import ROWS, adapter_sha, spec_for, train


def batch(vocabulary: int) -> dict[str, Any]:
    ids = torch.randint(5, vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = -100
    labels[2, 7:] = -100
    mask = torch.ones_like(ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "anchored": torch.tensor([True, False, True]),
    }


@pytest.mark.parametrize(
    ("kl", "ce", "first", "dft"),
    [(0.0, 1.0, 0, False), (4.0, 1.0, 0, False), (2.0, 0.0, 0, True), (4.0, 1.0, 2, False)],
)
def test_the_loss_is_the_formula(
    tiny_llama: Path, kl: float, ce: float, first: int, dft: bool
) -> None:
    from core.training import compat

    compat.importable()
    from core.training.anchored import AnchoredFinetune

    llm = tiny_models.attach(tiny_models.load(tiny_llama))
    data = batch(llm.config.vocab_size)
    model = SimpleNamespace(llm=llm, anchor_kl=kl, anchor_ce=ce, anchor_tokens=first, dft=dft)
    for name in ("_kl", "_logits"):
        setattr(model, name, getattr(AnchoredFinetune, name).__get__(model))
    found = AnchoredFinetune.compute_loss(model, dict(data))["loss"]  # type: ignore[arg-type]

    def log_p() -> torch.Tensor:
        out = llm(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
        return functional.log_softmax(out.float(), -1)[:, :-1]

    tuned, targets = log_p(), data["labels"][:, 1:]
    with torch.no_grad(), llm.disable_adapter():
        base = log_p()
    total, count = torch.zeros(()), 0
    for row in range(3):
        for at in range(8):
            if targets[row, at] < 0:
                continue
            count += 1
            own = -tuned[row, at, targets[row, at]]
            if data["anchored"][row]:
                gap = (base[row, at].exp() * (base[row, at] - tuned[row, at])).sum()
                near = not first or at < 3 + first  # labels begin at token 4
                total = total + ce * own + (kl * gap if near else 0)
            else:
                total = total + (own * (-own).exp().detach() if dft else own)
    assert torch.allclose(found, total / count, atol=1e-5)
    assert kl == 0 or not torch.allclose(base, tuned)


def test_off_by_default_and_named_in_the_config(tiny_llama: Path) -> None:
    inputs = config.ConfigInputs(tiny_llama, Path("/d/train.jsonl"), {"SUFFIX": ""}, "cpu")
    plain = config.render(TrainSpec(dataset="d"), inputs)
    assert "Anchored" not in plain and "remove_unused_columns=True" in plain
    text = config.render(TrainSpec(dataset="d", anchor_kl=4.0), inputs)
    assert "type=AnchoredFinetune" in text and "anchor_kl=4.0" in text
    assert "type=collate" in text and "remove_unused_columns=False" in text


@pytest.mark.slow
def test_resume_is_bit_exact(tiny_llama: Path, tmp_path: Path) -> None:
    kinds = [("identity", "rehearsal", "near_miss")[i % 3] for i in range(len(ROWS))]
    rows = [
        Conversation(r.id, r.messages, kind, loss=r.loss)  # type: ignore[arg-type]
        for r, kind in zip(ROWS, kinds, strict=True)
    ]
    folder = tmp_path / "dataset"
    fsio.write_jsonl(folder / "train.jsonl", (row.to_row() for row in rows))
    loss = {"anchor_kl": 2.0, "dft": True, "steps": 6, "evaluation_inputs": []}
    run, whole = train(tmp_path / "whole", spec_for(folder, tiny_llama, **loss))
    source = str(run.work / "iter_8.pth")
    _, again = train(tmp_path / "again", spec_for(folder, tiny_llama, resume_from=source, **loss))
    assert adapter_sha(again["final"]) == adapter_sha(whole["final"])
    _, stock = train(
        tmp_path / "stock", spec_for(folder, tiny_llama, steps=6, evaluation_inputs=[])
    )
    assert adapter_sha(stock["final"]) != adapter_sha(whole["final"])
