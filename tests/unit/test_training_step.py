"""The fused step gives the loss and the gradients of XTuner's own, and held weights are bnb's."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.models import internlm2
from core.models.nf4 import nf4_config
from core.training import cost
from core.training.step import held
from core.training.step.llama_loss import FusedStep
from core.training.step.loss import LinearCrossEntropy
from core.training.step.packing import pack
from core.training.step.pointwise import EAGER
from tests.fakes import tiny_models


def small_config(family: str) -> Any:
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    more: dict[str, Any] = {"head_dim": 16} if family == "qwen3" else {}
    if family == "internlm2":
        internlm2.register()
        kinds["internlm2"] = internlm2.InternLM2Config
        # The longest row is longer than that, so its micro-batch is stretched.
        more = {"max_position_embeddings": 12, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    return kinds[family](
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **more,
    )


def small_model(folder: Path, family: str = "llama", *, nf4: bool = True, **lora: Any) -> Any:
    """XTuner's SupervisedFinetune would hold this: NF4 base, float32 LoRA that is not zero."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(small_config(family))
    for name, parameter in base.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.1)
    base.save_pretrained(folder)
    options = {"quantization_config": nf4_config(torch.float32)} if nf4 else {}
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    base = prepare_model_for_kbit_training(base, False)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "lora_dropout": 0.0}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **{**settings, **lora}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def batch(lengths: tuple[int, ...] = (9, 4, 17)) -> dict[str, Tensor]:
    """Rows padded on the right; the second half of each is supervised."""
    torch.manual_seed(1)
    longest = max(lengths)
    ids = torch.randint(3, 320, (len(lengths), longest))
    at = torch.arange(longest)
    mask = at < torch.tensor(lengths)[:, None]
    second_half = at >= torch.tensor(lengths)[:, None] // 2
    return {
        "input_ids": torch.where(mask, ids, 0),
        "labels": torch.where(mask & second_half, ids, -100),
        "attention_mask": mask,
    }


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def plain(model: Any, data: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """transformers' own loss, and its gradients."""
    loss = model(**data).loss
    loss.backward()
    return float(loss.detach()), gradients(model)


def fused(step: FusedStep, data: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    loss = step(data)["loss"]
    loss.backward()
    return float(loss.detach()), gradients(step.model)


def assert_same(one: Any, other: Any, tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].keys() == other[1].keys() and one[1]
    for name, grad in one[1].items():
        distance = (grad - other[1][name]).norm() / other[1][name].norm()
        assert float(distance) < tolerance, name


@pytest.mark.parametrize("family", ["internlm2", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("hold", [True, False])
def test_loss_and_gradients_are_those_of_the_plain_step(
    tmp_path: Path, family: str, hold: bool
) -> None:
    model = small_model(tmp_path, family)
    wanted = plain(model, batch())
    if hold:
        held.hold(model, torch.float32)
    assert_same(fused(FusedStep(model, torch.float32), batch()), wanted, 1e-4)


@pytest.mark.parametrize(
    "lever",
    [
        {"recompute_above": 0},
        {"recompute_above": 29},
        {"recompute_above": 30},
        {"keep_padding": True},
    ],
)
def test_every_lever_leaves_the_numbers(tmp_path: Path, lever: dict[str, Any]) -> None:
    model = small_model(tmp_path)
    wanted = plain(model, batch())
    assert_same(fused(FusedStep(model, torch.float32, **lever), batch()), wanted, 1e-4)


def test_a_row_that_fills_up_teaches_nothing(tmp_path: Path) -> None:
    model = small_model(tmp_path, nf4=False)
    step = FusedStep(model, torch.float32)
    loss = step.loss(pack(batch()))
    loss.backward()
    wanted = float(loss.detach()), gradients(model)
    full = pack(batch(), multiple=64)
    assert full.ids.numel() == 64 and full.rows == 4
    loss = step.loss(full)
    loss.backward()
    assert_same((float(loss.detach()), gradients(model)), wanted, 1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["up_proj", "down_proj"]])
def test_lora_on_some_of_the_layers(tmp_path: Path, targets: list[str]) -> None:
    model = small_model(tmp_path, nf4=False, target_modules=targets)
    wanted = plain(model, batch())
    assert_same(fused(FusedStep(model, torch.float32), batch()), wanted, 1e-4)


def test_bfloat16_is_as_near_as_rounding_allows(tmp_path: Path) -> None:
    model = small_model(tmp_path, nf4=False)
    wanted = plain(model, batch())
    assert_same(fused(FusedStep(model, torch.bfloat16), batch()), wanted, 0.05)


def test_an_optimizer_step_reaches_the_next_loss(tmp_path: Path) -> None:
    """The trained weights became views of joined ones; the optimizer must move what is computed."""
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(tmp_path, nf4=False)
        step = FusedStep(model, dtype)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(4):
            loss = step(batch())["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        assert losses[3] < losses[1] < losses[0]
        ours = float(step(batch())["loss"])
        assert plain(model.float(), batch())[0] == pytest.approx(ours, rel=0.02)


def test_dropout_drops_the_same_in_both_passes(tmp_path: Path) -> None:
    """With the mask fixed by the seed, the gradient is that of finite differences."""
    model = small_model(tmp_path, nf4=False, lora_dropout=0.3)
    step = FusedStep(model, torch.float32)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return step(batch())["loss"]

    loss().backward()
    weight = step.groups[2].masters_a[0]
    assert weight.grad is not None
    direction = torch.randn_like(weight)
    expected = float((weight.grad * direction).sum())
    with torch.no_grad():
        weight += 1e-3 * direction
        up = float(loss())
        weight -= 2e-3 * direction
        down = float(loss())
    assert (up - down) / 2e-3 == pytest.approx(expected, rel=0.02)


def test_rows_do_not_see_each_other(tmp_path: Path) -> None:
    model = small_model(tmp_path, nf4=False)
    step = FusedStep(model, torch.float32)
    data = batch((9, 12))
    together = pack(data)
    assert together.positions.tolist() == [*range(9), *range(12)]
    alone = [
        float(step({k: v[i : i + 1, :n] for k, v in data.items()})["loss"])
        for i, n in ((0, 9), (1, 12))
    ]
    counts = [int((data["labels"][i, 1:] != -100).sum()) for i in (0, 1)]
    mean = sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts)
    assert float(step(data)["loss"]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("chunk", [1 << 10, 1 << 15, 1 << 28])
def test_chunked_loss_is_pytorchs(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(cost, "CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(70, 16, requires_grad=True)
    head, targets = torch.randn(320, 16), torch.randint(320, (70,))
    ours = LinearCrossEntropy.apply(hidden, head, targets, EAGER)
    (mine,) = torch.autograd.grad(3 * ours, hidden)
    theirs = torch.nn.functional.cross_entropy(hidden @ head.t(), targets)
    (wanted,) = torch.autograd.grad(3 * theirs, hidden)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert torch.allclose(mine, wanted, rtol=1e-4, atol=1e-6)


def test_held_weights_are_those_of_bitsandbytes_to_the_bit(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    data = batch()
    before, wanted = plain(model, data)
    assert held.hold(model, torch.float32) == 14
    after, found = plain(model, data)
    assert after == before
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_held_layer_takes_and_gives_the_type_of_its_input(tmp_path: Path) -> None:
    """Sample replies come with float32 from norms that were raised for training."""
    model = small_model(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model(input_ids=ids).logits.float()
        held.hold(model, torch.bfloat16)
        after = model(input_ids=ids).logits.float()
    assert (after - before).abs().max() < 0.05 * before.abs().max()


def test_no_weight_stays_a_page_of_the_file(tmp_path: Path) -> None:
    """One that does keeps all the pages resident that were read while the base was quantized."""
    tiny_models.save_base(tmp_path)
    model = tiny_models.load(tmp_path)
    file = str(tmp_path / "model.safetensors")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert file in Path("/proc/self/maps").read_text()
    held.leave_file(model.requires_grad_(False))
    gc.collect()
    assert file not in Path("/proc/self/maps").read_text()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_a_16_bit_base_takes_what_raised_norms_give_it(tiny_llama: Path) -> None:
    """As XTuner leaves a base without NF4: norms in float32, other frozen weights in 16 bits."""
    model = tiny_models.load(tiny_llama).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter.data = parameter.data.float()
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(RuntimeError, match="dtype"):
        model(ids)
    held.take_any_type(model)
    with torch.no_grad():
        assert model(ids).logits.isfinite().all()
