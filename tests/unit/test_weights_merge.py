"""The merge equals PEFT's merge_and_unload: bit for bit in fp32, within one rounding in 16 bits."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import UserError, UserErrors
from core.weights import manifest
from core.weights.convert import convert
from core.weights.merge import MergeSettings, merge
from core.weights.merge_plan import notes_on, parse_size, plan_merge
from tests.fakes import tiny_models as tiny

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": ATTENTION},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"v_proj": 5},
    },
    "regex": {"target_modules": r".*\.(q|k)_proj"},
    "one-layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "norm-saved": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def _merged_by_peft(base: Path, adapter: Path, dtype: str) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(tiny.load(base, dtype), adapter)
        return dict(model.merge_and_unload().state_dict())


def _step(value: torch.Tensor) -> torch.Tensor:
    """Distance to the next number of the value's dtype."""
    info = torch.finfo(value.dtype)
    exponent = torch.floor(torch.log2(value.abs().double().clamp(min=info.tiny)))
    return torch.exp2(exponent) * info.eps


def _assert_equal(mine: dict[str, Any], theirs: dict[str, Any], dtype: str) -> None:
    for name, tensor in mine.items():
        assert tensor.dtype == getattr(torch, dtype)
        if dtype == "float32":
            assert torch.equal(tensor, theirs[name]), name
        else:
            gap = (tensor.double() - theirs[name].double()).abs()
            assert bool((gap <= _step(theirs[name])).all()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_families(tmp_path: Path, family: str, tied: bool, dtype: str) -> None:
    base = tiny.save_base(tmp_path / "base", family, tied=tied, dtype=dtype)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=ATTENTION)
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    mine, before = _weights(out), _weights(base.path)
    assert mine.keys() == before.keys()
    _assert_equal(mine, _merged_by_peft(base.path, tmp_path / "adapter", dtype), dtype)
    changed = {n for n in mine if not torch.equal(mine[n], before[n])}
    assert len(changed) == 2 * len(ATTENTION)
    assert tiny.load(out, dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variants(tmp_path: Path, name: str, dtype: str) -> None:
    base = tiny.save_base(tmp_path / "base", tied=False, dtype=dtype)
    tiny.save_adapter(base.path, tmp_path / "adapter", **VARIANTS[name])
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    _assert_equal(_weights(out), _merged_by_peft(base.path, tmp_path / "adapter", dtype), dtype)


@pytest.mark.parametrize("use_dora", [False, True])
def test_gpt2_keeps_its_weights_transposed(tmp_path: Path, use_dora: bool) -> None:
    base = tiny.save_base(tmp_path / "base", "gpt2")
    tiny.save_adapter(
        base.path,
        tmp_path / "adapter",
        target_modules=["c_attn", "c_proj"],
        fan_in_fan_out=True,
        use_dora=use_dora,
    )
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    _assert_equal(
        _weights(out), _merged_by_peft(base.path, tmp_path / "adapter", "float32"), "float32"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused_projection_of_internlm2(tmp_path: Path, dtype: str) -> None:
    from peft import PeftModel

    base, model = tiny.save_fused(tmp_path / "base", dtype)
    targets = ["wqkv", "wo", "w1", "w2", "w3"]
    tiny.attach(
        tiny.save_fused(tmp_path / "again")[1], target_modules=targets, task_type=None
    ).save_pretrained(tmp_path / "adapter")
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    _assert_equal(_weights(out), dict(merged.state_dict()), dtype)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora-embedding", "lora-head", "saved-head", "saved-embedding"],
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_answer_as_base_and_adapter_do(
    tmp_path: Path, lora: dict[str, Any], tied: bool
) -> None:
    """PEFT's own merge changes both ends of a tied model; ours parts them, as the adapter acted."""
    from peft import PeftModel

    base = tiny.save_base(tmp_path / "base", tied=tied)
    tiny.save_adapter(base.path, tmp_path / "adapter", **lora)
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    ids = torch.arange(3, 40)[None]
    attached = PeftModel.from_pretrained(tiny.load(base.path), tmp_path / "adapter")
    with torch.inference_mode():
        wanted, got = attached(input_ids=ids).logits, tiny.load(out)(input_ids=ids).logits
        plain = tiny.load(base.path)(input_ids=ids).logits
    assert float((wanted - got).abs().max()) < 1e-4
    assert float((wanted - plain).abs().max()) > 1e-2
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_other_dtype_shards_and_companions(tmp_path: Path, tiny_llama: Path) -> None:
    base = tiny.ref_of(tiny_llama)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "marker.py").write_text("x")
    out = merge(
        base,
        tmp_path / "adapter",
        tmp_path / "out",
        MergeSettings(dtype="float16", max_shard_size="100KB"),
    )
    names = {p.name for p in out.iterdir()}
    assert {
        "model.safetensors.index.json",
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "config.json",
        "MANIFEST.json",
    } <= names
    assert len(list(out.glob("model-*.safetensors"))) > 2
    record = json.loads((out / "config.json").read_text())
    assert (record.get("dtype") or record["torch_dtype"]) == "float16"
    model = tiny.load(out, "float16")
    assert model.generation_config.eos_token_id == 2
    assert {v.dtype for v in _weights(out).values()} == {torch.float16}
    manifest.verify(out)


def test_nf4_faithful_base_is_what_qlora_saw(tmp_path: Path) -> None:
    from core.models.nf4 import nf4_config

    base = tiny.save_base(tmp_path / "base", tied=False)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    out = merge(base, tmp_path / "adapter", tmp_path / "out", MergeSettings(faithful_nf4=True))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    nf4 = AutoModelForCausalLM.from_pretrained(
        base.path,
        quantization_config=nf4_config(torch.float32),
        device_map={"": "cpu"},
        dtype=torch.float32,
    )
    attached = PeftModel.from_pretrained(nf4, tmp_path / "adapter").eval()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        wanted, got = attached(input_ids=ids).logits, tiny.load(out)(input_ids=ids).logits
        plain = merge(base, tmp_path / "adapter", tmp_path / "plain")
        far = tiny.load(plain)(input_ids=ids).logits
    assert float((wanted - got).abs().max()) < 1e-4 < float((wanted - far).abs().max())


# -- refusals ------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Path]:
    base = tiny.save_base(tmp_path / "base", tied=False)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    return base, tmp_path / "adapter"


def _edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "DROP"}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"lora_alpha": "DROP"}, "lora_alpha is missing"),
        ({"r": 0}, "r is 0"),
        ({"r": 4}, "wrong rank"),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"something_new": 3}, "something_new"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"target_modules": ["q_proj", "down_proj", "k_proj"]}, "lacks 2 of the layers"),
    ],
)
def test_settings_are_refused_by_name(
    pair: tuple[Any, Path], tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    base, adapter = pair
    _edit(adapter, **changes)
    with pytest.raises(UserError) as caught:
        merge(base, adapter, tmp_path / "out")
    assert word in str(caught.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_adapter_of_another_base_names_key_and_shapes(
    pair: tuple[Any, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    other = tiny.save_base(tmp_path / "qwen", "gpt2")
    with pytest.raises(UserErrors) as caught:
        plan_merge(other.path, adapter)
    assert "q_proj.weight is not in the base" in str(caught.value)
    (tmp_path / "wide").mkdir()
    config = json.loads((base.path / "config.json").read_text()) | {"hidden_size": 96}
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserErrors) as caught:
        plan_merge(tmp_path / "wide", adapter)
    text = str(caught.value)
    assert "expected a weight of shape (64, 64), found" in text and len(caught.value.problems) == 4


def test_missing_half_of_a_pair_and_empty_adapters(pair: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base, adapter = pair
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    lost = next(k for k in whole if "lora_B" in k)
    save_file({k: v for k, v in whole.items() if k != lost}, path)
    with pytest.raises(UserError, match="lora_B is missing"):
        merge(base, adapter, tmp_path / "out")
    save_file({}, path)
    with pytest.raises(UserError, match="no LoRA weights"):
        merge(base, adapter, tmp_path / "out")
    for text in (b"", b"<html>not found</html>"):
        path.write_bytes(text)
        with pytest.raises(UserError, match="not a whole safetensors"):
            merge(base, adapter, tmp_path / "out")
    path.unlink()
    (adapter / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read in place"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_overflow_are_refused(pair: tuple[Any, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base, adapter = pair
    path = adapter / "adapter_model.safetensors"
    save_file({k: v * 1e4 for k, v in load_file(path).items()}, path)
    with pytest.raises(UserError, match="not finite"):
        merge(base, adapter, tmp_path / "out", MergeSettings(dtype="float16"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_output_places(pair: tuple[Any, Path], tmp_path: Path) -> None:
    base, adapter = pair
    (tmp_path / "there").mkdir()
    for out, word in [
        (base.path / "merged", "lies inside"),
        (adapter / "merged", "lies inside"),
        (tmp_path / "there", "exists already"),
        (base.path, "exists already"),
    ]:
        with pytest.raises(UserError, match=word):
            merge(base, adapter, out)
    link = tmp_path / "link"
    link.symlink_to(base.path, target_is_directory=True)
    with pytest.raises(UserError, match="lies inside"):
        merge(base, adapter, link / "merged")


def test_truncated_base_shard_is_refused_before_writing(
    pair: tuple[Any, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    weights = base.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="tensors end at"):
        merge(base, adapter, tmp_path / "out")


def test_flipped_bit_in_an_input_with_a_manifest_is_refused(
    pair: tuple[Any, Path], tmp_path: Path
) -> None:
    base, adapter = pair
    manifest.write(adapter, {"kind": "adapter"})
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserErrors, match="was changed after it was written"):
        merge(base, adapter, tmp_path / "out")


def test_code_that_nothing_needs_is_not_copied(pair: tuple[Any, Path], tmp_path: Path) -> None:
    base, adapter = pair
    (base.path / "modeling_x.py").write_text("raise SystemExit\n")
    config = json.loads((base.path / "config.json").read_text())
    (base.path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "m.X"}}))
    plain = merge(base, adapter, tmp_path / "plain")
    assert not list(plain.glob("*.py"))
    assert "code of its own" in manifest.read(plain)["notes"][0]


def test_bit_flip_lost_and_added_files_are_noticed(pair: tuple[Any, Path], tmp_path: Path) -> None:
    base, adapter = pair
    out = merge(base, adapter, tmp_path / "out")
    manifest.verify(out)
    weights = out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    load_file(weights)  # safetensors itself notices nothing
    (out / "config.json").unlink()
    shutil.copy(adapter / "adapter_config.json", out / "extra.json")
    with pytest.raises(UserErrors) as caught:
        manifest.verify(out)
    text = str(caught.value)
    assert all(w in text for w in ("was changed", "config.json is missing", "extra.json is not"))


def test_engines_and_sizes(pair: tuple[Any, Path], tmp_path: Path) -> None:
    base, adapter = pair
    with pytest.raises(UserError, match="unknown merge engine"):
        wrong = MergeSettings(engine="magic")  # type: ignore[arg-type]
        merge(base, adapter, tmp_path / "o", wrong)
    with pytest.raises(UserError, match="writes float16"):
        merge(base, adapter, tmp_path / "o", MergeSettings(engine="xtuner", dtype="bfloat16"))
    assert parse_size("2GB") == 2_000_000_000 and parse_size("1.5 MiB") == 1_572_864
    for text in ("", "GB", "-1GB", "0", "2XB"):
        with pytest.raises(UserError, match="not a size"):
            parse_size(text)


def test_another_base_of_the_same_shape_is_said(tmp_path: Path) -> None:
    """Names may be the same; what convert saw of the base is not."""
    from tests.unit.test_weights_convert import _run

    checkpoint, config, *_ = _run(tmp_path, target_modules=["q_proj"])
    adapter = convert(checkpoint, config, tmp_path / "adapter")
    assert notes_on(tmp_path / "base", adapter) == []
    twin = tiny.save_base(tmp_path / "else" / "base", dtype="float16").path
    (note,) = notes_on(twin, adapter)
    assert "are not those that the adapter was trained on" in note
    out = merge(tiny.ref_of(twin), adapter, tmp_path / "out")
    assert note in manifest.read(out)["notes"]


def test_another_base_name_is_noted(pair: tuple[Any, Path], tmp_path: Path) -> None:
    base, adapter = pair
    assert notes_on(base.path, adapter) == []
    _edit(adapter, base_model_name_or_path="internlm/internlm2-chat-1_8b")
    assert "internlm2-chat" in notes_on(base.path, adapter)[0]


@pytest.mark.slow
def test_xtuners_merge_stays_selectable(tmp_path: Path, tiny_llama: Path) -> None:
    base = tiny.ref_of(tiny_llama)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    out = merge(base, tmp_path / "adapter", tmp_path / "out", MergeSettings(engine="xtuner"))
    theirs = _weights(out)
    half = MergeSettings(dtype="float16")
    mine = _weights(merge(base, tmp_path / "adapter", tmp_path / "mine", half))
    assert {v.dtype for v in theirs.values()} == {torch.float16}
    before = _weights(base.path)
    for name, tensor in mine.items():
        gap = (tensor.double() - theirs[name].double()).abs()
        # XTuner rounds the base to float16 before it adds: a step of the larger of the two more.
        step = torch.maximum(_step(theirs[name]), _step(before[name].half()))
        assert bool((gap <= 2 * step).all()), name
    manifest.verify(out)
