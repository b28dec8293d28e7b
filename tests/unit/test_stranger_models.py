"""Model and adapter folders with odd contents: loaded right, or one message; never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import fsio
from core.errors import UserError
from core.inference.load import load_model, load_tokenizer
from core.models import catalog, folder
from core.models.lora import read as read_adapter
from core.models.xtuner_template import XTunerTemplate
from tests.fakes import tiny_models as tiny

Change = Callable[[Path], None]


def config(**values: Any) -> Change:
    """config.json with these values; None removes a key."""

    def change(model: Path) -> None:
        found = {**fsio.read_json(model / "config.json"), **values}
        fsio.write_json(model / "config.json", {k: v for k, v in found.items() if v is not None})

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(model: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (model / name).write_bytes(data)

    return change


def tokenizer(**values: Any) -> Change:
    def change(model: Path) -> None:
        path = model / "tokenizer_config.json"
        fsio.write_json(path, {**fsio.read_json(path), **values})

    return change


def cut(name: str, keep: int | float) -> Change:
    def change(model: Path) -> None:
        data = (model / name).read_bytes()
        (model / name).write_bytes(data[: int(keep if keep >= 1 else len(data) * keep)])

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        edit(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})

    return change


def index(weight_map: dict[str, str]) -> Change:
    def change(model: Path) -> None:
        (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
        found = {"metadata": {}, "weight_map": weight_map}
        (model / "model.safetensors.index.json").write_text(json.dumps(found))

    return change


def use(model: Path) -> torch.Tensor:
    """What chat, training and the pages do with a folder first; the logits of one question."""
    ref = catalog.resolve(str(model))
    template = XTunerTemplate(load_tokenizer(ref.path))
    folder.require_trainable(ref.path)
    template.xtuner_template()
    loaded = load_model(ref.path, device="cpu")
    ids = template.encode([{"role": "user", "content": "Who are you?"}])
    with torch.no_grad():
        logits: torch.Tensor = loaded(torch.tensor([ids])).logits[0, -1]
    return logits


NORM = "model.norm.weight"
WORKS: dict[str, Change] = {
    "unknown keys": config(wandb="x", unsloth_version="2026.1", _attn_implementation="eager"),
    "torch_dtype of old": config(torch_dtype="float32", dtype=None),
    "generation_config without a value": text("generation_config.json", "{}"),
    "stray files": text("optimizer.pt", b"\x80\x04junk"),
    "a hidden pickle": text("._model.safetensors", b"junk"),
    "unknown special token": tokenizer(additional_special_tokens=["<|im_end|>"]),
    "max length of tokenizers": tokenizer(model_max_length=10**30),
    "an extra tensor": weights(lambda t: t.update({"model.rotary.inv_freq": torch.ones(4)})),
}  # fmt: skip
REFUSED: dict[str, Change] = {
    "config is no JSON": text("config.json", '{"model_type": "llama",}'),
    "config is a list": text("config.json", "[]"),
    "config is empty": text("config.json", ""),
    "config in UTF-16": lambda m: text(
        "config.json", (m / "config.json").read_text().encode("utf-16"))(m),
    "no architectures": config(architectures=None),
    "config with a byte order mark": lambda m: text(
        "config.json", b"\xef\xbb\xbf" + (m / "config.json").read_bytes()
    )(m),
    "no model type": config(model_type=None),
    "another model type": config(model_type="martian", architectures=["MartianForCausalLM"]),
    "an encoder": config(model_type="bert", architectures=["BertForMaskedLM"]),
    "width as text": config(hidden_size="64"),
    "width of another model": config(hidden_size=128),
    "more layers than weights": config(num_hidden_layers=3),
    "fewer layers than weights": config(num_hidden_layers=1),
    "a larger vocabulary than weights": config(vocab_size=50000),
    "heads that do not divide": config(num_attention_heads=5),
    "compressed-tensors": config(quantization_config={"quant_method": "compressed-tensors"}),
    "fp8": config(quantization_config={"quant_method": "fp8", "fmt": "e4m3"}),
    "weights cut by a byte": cut("model.safetensors", 0.999),
    "weights cut in the header": cut("model.safetensors", 100),
    "weights empty": cut("model.safetensors", 0),
    "weights are a web page": text("model.safetensors", "<!DOCTYPE html><html>login</html>"),
    "a header of 2 GB": text("model.safetensors", (2**31).to_bytes(8, "little") + b"{}"),
    "a tensor less": weights(lambda t: t.pop(NORM)),
    "a tensor of another shape": weights(lambda t: t.update({NORM: torch.ones(63)})),
    "index leaves the folder": index({NORM: "../../model.safetensors"}),
    "index is a list": lambda m: (index({})(m), text("model.safetensors.index.json", "[]")(m))[1],
    "index names a shard that is missing": index({NORM: "model-00002-of-00002.safetensors"}),
    "the maker's own format": lambda m: (m / "model.safetensors").rename(
        m / "consolidated.safetensors"),
    "tokenizer cut": cut("tokenizer.json", 0.5),
    "tokenizer is empty": text("tokenizer.json", "{}"),
    "tokenizer config is no JSON": text("tokenizer_config.json", "{"),
    "tokenizer of code": tokenizer(auto_map={"AutoTokenizer": ["t.M", None]}, tokenizer_class="M"),
    "an added token is a number": tokenizer(added_tokens_decoder={"x": 5}),
    "a special token is a table": tokenizer(eos_token={"a": 1}),
    "a limit is a text": text("generation_config.json", '{"max_new_tokens": "y"}'),
    "template is empty": text("chat_template.jinja", ""),
    "template is no UTF-8": text("chat_template.jinja", b"\xff\xfe{{"),
    "template does not parse": text("chat_template.jinja", "{% for m in messages %}"),
    "template calls what is not there": text("chat_template.jinja", "{{ strftime_later('x') }}"),
    "template says nothing": text("chat_template.jinja", "{# nothing #}"),
    "template without the reply": text("chat_template.jinja", "{{ messages[0].content }}"),
}  # fmt: skip


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize("what", WORKS)
def test_odd_and_right(model: Path, tiny_llama: Path, what: str) -> None:
    WORKS[what](model)
    torch.testing.assert_close(use(model), use(tiny_llama))


@pytest.mark.parametrize("what", REFUSED)
def test_odd_and_refused(model: Path, what: str) -> None:
    REFUSED[what](model)
    with pytest.raises(UserError) as caught:
        use(model)
    assert caught.value.what and "Traceback" not in str(caught.value)


BROKEN: dict[str, dict[str, Any]] = {
    "rank as text": {"r": "8"},
    "rank 0": {"r": 0},
    "negative rank": {"r": -4},
    "alpha is NaN": {"lora_alpha": float("nan")},
    "alpha is text": {"lora_alpha": "many"},
    "no targets": {"target_modules": []},
    "targets are numbers": {"target_modules": [1, 2]},
    "another method": {"peft_type": "IA3"},
    "prompt tuning": {"peft_type": "PROMPT_TUNING"},
    "no method": {"peft_type": None},
    "layers that are not there": {"layers_to_transform": [7]},
    "ranks by a broken pattern": {"rank_pattern": {"(": 4}},
}


@pytest.mark.parametrize("what", BROKEN)
def test_odd_adapters(model: Path, tmp_path: Path, what: str) -> None:
    adapter = tmp_path / "adapter"
    tiny.save_adapter(model, adapter, target_modules=["q_proj"])
    found = {**json.loads((adapter / "adapter_config.json").read_text()), **BROKEN[what]}
    (adapter / "adapter_config.json").write_text(json.dumps(found))
    with pytest.raises(UserError):
        read_adapter(adapter)
        load_model(model, device="cpu", adapter=adapter)
