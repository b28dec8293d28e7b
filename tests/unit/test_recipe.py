"""The default recipe: the learning rate by size, the mix by what the base says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import paths
from core.data import own_identity
from core.models.catalog import resolve
from core.training import cost
from core.training.recipe import learning_rate


@pytest.mark.parametrize(
    ("parameters", "quantize", "rate", "word"),
    [
        (134.5e6, "nf4", 1e-3, "measured"),
        (134.5e6, "none", 1e-3, "measured"),
        (494e6, "nf4", 3e-4, "between"),
        (494e6, "none", 4e-4, "a third more"),
        (1.8e9, "nf4", 1.6e-4, "guess"),
        (70e9, "nf4", 1e-4, "guess"),
    ],
)
def test_the_rate_at_known_sizes(parameters: float, quantize: str, rate: float, word: str) -> None:
    found, reason = learning_rate(parameters, quantize)  # type: ignore[arg-type]
    assert found == pytest.approx(rate, rel=0.05) and word in reason


def test_the_rate_never_rises_with_size() -> None:
    for quantize in ("nf4", "none"):
        rates = [learning_rate(n * 1e6, quantize)[0] for n in range(50, 20_000, 50)]  # type: ignore[arg-type]
        assert rates == sorted(rates, reverse=True)


def test_sizes_are_read_from_the_config(bundled_model: Path) -> None:
    assert cost.shape_of(bundled_model).parameters == pytest.approx(134.5e6, rel=0.01)


def test_a_base_that_names_itself_gets_more_of_its_own_talk() -> None:
    qwen = ["I am Qwen.", "My name is Qwen.", "我是由阿里云开发的。", "Hello!"]
    strong = own_identity.judge(qwen)
    assert (strong.asked, strong.named) == (4, 3) and strong.names["Qwen"] == 2
    assert strong.languages == {"en": 3, "zh": 1}
    ratio, reason = own_identity.rehearsal_ratio(strong)
    assert ratio == own_identity.MANY and "3 of 4" in reason
    none = own_identity.judge(["I'm Dr. Elena Martinez.", "ChatGPT is made by OpenAI."])
    assert own_identity.rehearsal_ratio(none)[0] == own_identity.FEW


def test_the_base_is_asked_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = resolve(str(tiny_llama))
    first = own_identity.ask(model)
    assert first.asked == 10 and any((paths.cache_dir() / "own-identity").iterdir())
    monkeypatch.setattr(own_identity, "_answers", lambda *args: pytest.fail("asked again"))
    assert own_identity.ask(model) == first
