"""Model folders as people have them: found, from a GGUF, given a template, refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import fsio
from core.commands.main import main
from core.conversation import Message
from core.errors import UserError
from core.inference import load
from core.inference.load import load_model, load_tokenizer
from core.models import catalog, chat_templates, device, found, prepared
from core.models.xtuner_template import XTunerTemplate
from core.training import base
from tests.fakes import tiny_families

TALK: list[Message] = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "qwen"
    tiny_families.save(folder, "Qwen2.5")
    return folder


@pytest.fixture
def model(qwen: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    shutil.copytree(qwen, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def caches(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One model in each place where models lie, and beside each what is none."""
    hub, scope = tmp_path / "hub", tmp_path / "modelscope"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(scope))
    shutil.copytree(qwen, hub / "models--Qwen--Qwen2.5-0.5B" / "snapshots" / "abc")
    (hub / "models--a--torn" / "snapshots" / "abc").mkdir(parents=True)
    (hub / "datasets--a--b" / "snapshots" / "abc").mkdir(parents=True)
    shutil.copytree(qwen, scope / "hub" / "models" / "Shanghai" / "internlm2_5___1")
    shutil.copytree(qwen, scope / "hub" / "Old" / "layout")
    shutil.copytree(qwen, scope / "models" / "New" / "layout")
    embedding = hub / "models--an--embedding" / "snapshots" / "abc"
    shutil.copytree(qwen, embedding)
    config = fsio.read_json(embedding / "config.json")
    fsio.write_json(embedding / "config.json", {**config, "architectures": ["BertModel"]})
    return tmp_path


def test_models_on_this_machine_are_found(caches: Path, workspace: Path, qwen: Path) -> None:
    shutil.copytree(qwen, workspace / "models" / "mine")
    (workspace / "models" / "half.123.partial").mkdir()
    (workspace / "models" / "small.gguf").write_bytes(b"GGUF")
    names = [(m.place, m.name) for m in found.models()]
    assert names == [
        ("bundled", "SmolLM2-135M-Instruct"),
        ("workspace", "mine"),
        ("workspace", "small.gguf"),
        ("Hugging Face cache", "Qwen/Qwen2.5-0.5B"),
        ("ModelScope cache", "New/layout"),
        ("ModelScope cache", "Shanghai/internlm2_5.1"),
        ("ModelScope cache", "Old/layout"),
    ]
    hub = next(m for m in found.models() if m.place == "Hugging Face cache")
    assert catalog.resolve(hub.model).name == "Qwen/Qwen2.5-0.5B"


@pytest.mark.slow
def test_a_gguf_file_is_a_base(tiny_llama: Path, tmp_path: Path) -> None:
    """Our own export of a tiny model, read back by transformers' reader: the same replies."""
    import torch

    from core.weights.gguf_export import write_gguf

    file = tmp_path / "tiny model.gguf"
    write_gguf(tiny_llama, file)
    seen: list[str] = []
    ref = catalog.resolve(str(file), lambda stage, done, total: seen.append(stage))
    assert ref.name == "tiny model"
    assert seen
    assert catalog.resolve(str(file)).path == ref.path
    ids = torch.tensor([load_tokenizer(ref.path).encode("Hello there")])
    before, after = (load_model(p, device="cpu") for p in (tiny_llama, ref.path))
    assert (before(ids).logits - after(ids).logits).abs().max() < 1e-3
    mine, theirs = (XTunerTemplate(load_tokenizer(p)) for p in (tiny_llama, ref.path))
    assert theirs.encode(TALK) == mine.encode(TALK)
    assert theirs.turn_end == mine.turn_end
    assert base.require_trainable(ref.path)


def test_a_damaged_gguf_is_one_message(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UserError, match=r"x\.gguf cannot be used as a model"):
        catalog.resolve(str(tmp_path / "x.gguf"))
    assert not list((workspace / "models").glob("*"))


def test_a_folder_with_a_gguf_alone_is_told_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"give the GGUF file itself: .*x\.gguf"):
        catalog.resolve(str(tmp_path / "dir"))


def test_the_way_out_of_no_chat_template_is_true(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="probably a base model") as caught:
        load_tokenizer(model)
    command = str(caught.value.fix).partition("python -m core ")[2].split()
    assert command == ["model", str(model), "--chat-template", "chatml"]
    assert main(command) == 0
    made = Path(capsys.readouterr().out.splitlines()[0].split()[1].rstrip(":"))
    chat = base.require_trainable(made)
    assert chat.turn_end == "<|im_end|>"
    assert load_model(made, device="cpu").generation_config.eos_token_id
    assert (made / "model.safetensors").is_symlink()
    assert not (model / "chat_template.jinja").exists()


def test_the_familys_template_comes_first(tmp_path: Path) -> None:
    tiny_families.save(tmp_path / "llama", "Llama 3")
    (tmp_path / "llama" / "chat_template.jinja").unlink()
    tokenizer, _ = load.open_tokenizer(tmp_path / "llama")
    assert chat_templates.offered(tokenizer) == ["llama3", "chatml"]
    chat = XTunerTemplate(load_tokenizer(prepared.with_template(tmp_path / "llama", "llama3")))
    assert chat.render(TALK, True).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    with pytest.raises(UserError, match="use one of chatml, llama3, gemma"):
        prepared.with_template(tmp_path / "llama", "alpaca")


@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_offered_templates_can_be_trained(qwen: Path, name: str) -> None:
    """Also where their tokens are ordinary text."""
    tokenizer = load_tokenizer(qwen)
    tokenizer.chat_template = chat_templates.source(name)
    chat = XTunerTemplate(tokenizer)
    assert chat.turn_end == chat_templates.TEMPLATES[name][0][-1]
    assert chat.xtuner_template()["SUFFIX"] == chat.turn_end


def test_a_base_model_with_a_template_is_told_apart(model: Path) -> None:
    def told(folder: Path) -> bool:
        chat = XTunerTemplate(load_tokenizer(folder))
        return any("probably a base model" in warning for warning in base.warnings(chat))

    assert not told(model)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = model / name
        if path.is_file():
            fsio.write_json(path, {**fsio.read_json(path), "eos_token": "<|endoftext|>"})
    path = model / "generation_config.json"
    fsio.write_json(path, {**fsio.read_json(path), "eos_token_id": 259})
    assert told(model)


@pytest.mark.parametrize("name", tiny_families.FAMILIES)
def test_chat_models_of_no_family_are_taken_for_base_models(name: str, tmp_path: Path) -> None:
    tiny_families.save(tmp_path / "m", name)
    chat = XTunerTemplate(load_tokenizer(tmp_path / "m"))
    assert not any("probably a base model" in warning for warning in base.warnings(chat))


def test_a_tokenizer_without_a_pad_token_gets_one(tmp_path: Path) -> None:
    tiny_families.save(tmp_path / "llama", "Llama 3")
    assert load.open_tokenizer(tmp_path / "llama")[0].pad_token is None
    assert load_tokenizer(tmp_path / "llama").pad_token == "<|eot_id|>"


def test_a_tokenizer_without_any_end_says_what_to_name(tmp_path: Path) -> None:
    model = tmp_path / "llama"
    tiny_families.save(model, "Llama 3")
    path = model / "tokenizer_config.json"
    config = fsio.read_json(path)
    bare = {k: v for k, v in config.items() if not k.endswith("_token")}
    fsio.write_json(path, bare)
    with pytest.raises(UserError, match="neither a pad nor an end token") as caught:
        load_tokenizer(model)
    assert "name its eos_token in tokenizer_config.json" in str(caught.value)
    fsio.write_json(path, {**bare, "eos_token": "<|eot_id|>"})
    assert load_tokenizer(model).pad_token == "<|eot_id|>"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_folder_with_a_part_missing(model: Path, missing: str, said: str) -> None:
    (model / missing).unlink()
    with pytest.raises(UserError, match=said):
        catalog.resolve(str(model))


def test_a_model_that_is_too_large_is_said_before_it_is_loaded(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def load_anyway(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_anyway)
    monkeypatch.setattr(device, "free_bytes", lambda kind: 50_000)
    with pytest.raises(UserError, match="too large for this CPU") as caught:
        load_model(qwen, device="cpu")
    assert "parameters take about" in str(caught.value)
    assert "50.0 kB are free" in str(caught.value)
