"""NF4 on a CPU: a look at the model between two steps does not change what it learns."""

from __future__ import annotations

import pytest
import torch

from core.models import nf4


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A quantized layer on a CPU of which bitsandbytes believes that it has AVX512-BF16."""
    import bitsandbytes as bnb
    from bitsandbytes.nn import modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    nf4.keep_unpacked()
    torch.manual_seed(0)
    made = bnb.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return made.to("cpu")


def test_the_gradient_survives_an_evaluation(layer: torch.nn.Module) -> None:
    x = torch.randn(3, 128)

    def gradient() -> torch.Tensor:
        asked = x.clone().requires_grad_()
        layer.train()(asked).square().sum().backward()
        assert asked.grad is not None
        return asked.grad

    before = gradient()
    with torch.no_grad():
        shown = layer.eval()(x)
    assert torch.equal(gradient(), before) and before.abs().max() > 0
    with torch.no_grad():
        assert torch.equal(layer.train()(x), shown)


def test_inputs_that_are_no_multiple_of_the_block() -> None:
    import bitsandbytes as bnb

    nf4.keep_unpacked()
    made = bnb.nn.Linear4bit(160, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    with torch.no_grad():
        assert made.to("cpu").eval()(torch.randn(2, 160)).shape == (2, 64)
