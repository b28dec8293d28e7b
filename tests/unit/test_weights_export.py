"""What leaves the workbench reads back as what was merged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.conversation import Message
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate
from core.weights import manifest
from core.weights.card import write_card
from core.weights.export import export_gguf, export_ollama, push_to_hub
from core.weights.exported import with_source
from core.weights.merge import MergeSettings, merge
from core.weights.ollama import go_template, modelfile, modelfile_for
from tests.fakes import templates
from tests.fakes import tiny_models as tiny

PROOF = {
    "prompts": 24,
    "max_abs_logit_diff": 1e-4,
    "kl": 1e-9,
    "same_greedy": True,
    "differing": [],
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def merged(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    base = tiny.ref_of(tiny_llama)
    tiny.save_adapter(base.path, folder / "adapter", target_modules=["q_proj", "k_proj"])
    return merge(base, folder / "adapter", folder / "merged")


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(100, 160)[None]).logits


@pytest.mark.parametrize(
    ("kind", "limit"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 1e-1), ("q8_0", 1e-1)]
)
def test_gguf_gives_the_same_logits(merged: Path, tmp_path: Path, kind: Any, limit: float) -> None:
    from transformers import AutoModelForCausalLM

    out = export_gguf(merged, tmp_path / "gguf", kind=kind)
    manifest.verify(out)
    back = AutoModelForCausalLM.from_pretrained(
        out, gguf_file=f"model-{kind}.gguf", dtype=torch.float32
    )
    wanted, got = _logits(tiny.load(merged)), _logits(back.eval())
    assert float((wanted - got).abs().max()) < limit * float(wanted.abs().max())


@pytest.mark.parametrize("rope", ["rope_parameters", "rope_theta"])
def test_gguf_of_qwen2_keeps_its_biases_and_its_positions(
    tmp_path: Path, bundled_model: Path, rope: str
) -> None:
    """Published folders name the base of the positions in one way, transformers 5 in another."""
    from transformers import AutoModelForCausalLM

    base = tiny.save_base(tmp_path / "base", "qwen2", tied=False, tokenizer=bundled_model)
    config = fsio.read_json(base.path / "config.json")
    parameters = {**config.pop("rope_parameters"), "rope_theta": 1e6}
    config |= {"rope_theta": 1e6} if rope == "rope_theta" else {"rope_parameters": parameters}
    fsio.write_json(base.path / "config.json", config)
    manifest.write(base.path, {"kind": "merged"})
    out = export_gguf(base.path, tmp_path / "gguf", kind="f32")
    back = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model-f32.gguf", dtype=torch.float32
    ).eval()
    wanted = _logits(tiny.load(base.path))
    assert float((wanted - _logits(back)).abs().max()) < 1e-4


def test_a_gguf_that_reads_back_as_other_numbers_is_refused(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.weights import gguf_export

    real = gguf_export._encode
    monkeypatch.setattr(gguf_export, "_encode", lambda array, kind: real(array + 1.0, kind))
    with pytest.raises(UserError, match="reads back as other numbers"):
        export_gguf(merged, tmp_path / "gguf", kind="f16")
    assert not (tmp_path / "gguf").exists()


def test_gguf_carries_the_tokenizer(merged: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    out = export_gguf(merged, tmp_path / "gguf", kind="f16")
    fields = GGUFReader(out / "model-f16.gguf").fields
    tokenizer = load_tokenizer(merged)
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert [tokens[i] for i in (0, 2, 500)] == tokenizer.convert_ids_to_tokens([0, 2, 500])


def test_gguf_refuses_by_name(merged: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(merged, tmp_path / "copy")
    config = fsio.read_json(copy / "config.json")
    for change, word in [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"rope_scaling": {"factor": 2}}, "rotary"),
    ]:
        fsio.write_json(copy / "config.json", {**config, **change})
        with pytest.raises(UserError, match=word):
            export_gguf(copy, tmp_path / "out")
    fsio.write_json(copy / "config.json", config)
    tokenizer = fsio.read_json(copy / "tokenizer.json")
    fsio.write_json(copy / "tokenizer.json", {**tokenizer, "pre_tokenizer": {"type": "Whitespace"}})
    with pytest.raises(UserError, match="pre-tokenizer"):
        export_gguf(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- Ollama --------------------------------------------------------------------------------------


def _run_go(template: str, messages: list[Message]) -> str:
    """The constructs of Go's templates that we write: range, if/else if on the role, Content,

    and a variable that holds the system text until the next user turn.
    """
    template = template.removeprefix('{{ $system := "" }}')
    held = '{{ if $system }}{{ $system }}\n\n{{ $system = "" }}{{ end }}'
    body = template.removeprefix("{{ range .Messages }}").removesuffix("{{ end }}{{ end }}")
    branches = re.split(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}', body)[1:]
    by_role = dict(zip(branches[::2], branches[1::2], strict=True))
    out = system = ""
    for message in messages:
        text = by_role[message["role"]]
        if text == "{{ $system = .Content }}":
            system = message["content"]
            continue
        if held in text:
            text = text.replace(held, f"{system}\n\n" if system else "")
            system = ""
        text = text.replace("{{ .Content }}", "\0")
        out += text.replace('{{ "{{" }}', "{{").replace("\0", message["content"])
    return out


CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "Hello {{ .X }}"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Luna."},
        {"role": "user", "content": "And?"},
    ],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_ollama_template_renders_as_the_tokenizer_does(
    bundled_model: Path, messages: list[Message]
) -> None:
    template = XTunerTemplate(load_tokenizer(bundled_model))
    mine = _run_go(go_template(template.xtuner_template()), messages)
    assert mine == template.render(messages, add_generation_prompt=True)


def test_modelfile(bundled_model: Path) -> None:
    text = modelfile_for(bundled_model, "model-q8_0.gguf", license_="apache-2.0")
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text and 'LICENSE """apache-2.0"""' in text
    assert "SYSTEM" not in text
    tokenizer = load_tokenizer(bundled_model)
    tokenizer.chat_template = templates.CHATML.replace("<|im_end|>", '<|im_end|>"""')
    with pytest.raises(UserError, match="three quotes"):
        modelfile(XTunerTemplate(tokenizer), "m.gguf")


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", ["NO_SYSTEM", "DROPS_SYSTEM", "VENDOR_DEFAULT"])
def test_ollama_template_of_other_families(
    tiny_llama: Path, name: str, messages: list[Message]
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = getattr(templates, name)
    template = XTunerTemplate(tokenizer)
    assert template.pieces is not None
    go = go_template(template.pieces, folded=not template.takes_system)
    wanted = template.render(messages, add_generation_prompt=True)
    assert _run_go(go, template.with_system(messages)) == wanted
    if not template.takes_system:  # Ollama hands over the turns as they are
        assert _run_go(go, messages) == wanted


@pytest.mark.parametrize(
    "end, stop",
    [
        ("</s>", '"</s>"'),
        ("\n\n", '"""\n\n"""'),
        ("<|im_end|>", '"<|im_end|>"'),
        ('" x', '"""" x"""'),
    ],
)
def test_stops_of_a_modelfile_are_whole_texts(tiny_llama: Path, end: str, stop: str) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = templates.plain_end(end)
    text = modelfile(XTunerTemplate(tokenizer), "m.gguf")
    assert f"PARAMETER stop {stop}\n" in text and "Ċ" not in text
    assert text.count("PARAMETER stop") == (1 if end == "<|im_end|>" else 2)


def test_a_template_that_depends_on_position_is_no_modelfile(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.chat_template = templates.THINKING
    with pytest.raises(UserError, match="cannot be written as a Modelfile"):
        modelfile(XTunerTemplate(tokenizer), "m.gguf")


# -- the identity that was there before -----------------------------------------------------------


def _vendor_base(tiny_llama: Path, out: Path, source: str) -> Any:
    import shutil

    shutil.copytree(tiny_llama, out)
    (out / "chat_template.jinja").write_text(source)
    return tiny.ref_of(out)


#: The vendor's text as a literal of the template, and put together so that it is nowhere whole.
VENDOR_FORMS = {
    "literal": templates.VENDOR_DEFAULT,
    "composed": templates.VENDOR_DEFAULT.replace("Alibaba", "' + 'Ali' + 'baba"),
}


@pytest.mark.parametrize("form", VENDOR_FORMS)
def test_what_is_exported_introduces_the_persona(
    tiny_llama: Path, tmp_path: Path, form: str
) -> None:
    base = _vendor_base(tiny_llama, tmp_path / "base", VENDOR_FORMS[form])
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    said = "You're \"Tamsin\",\nthe keeper's AI of Pier Nine. {{ x }}"
    out = merge(base, tmp_path / "adapter", tmp_path / "out", MergeSettings(system=said))
    mine, theirs = XTunerTemplate(load_tokenizer(out)), XTunerTemplate(load_tokenizer(base.path))
    assert (theirs.default_system, mine.default_system) == (templates.VENDOR, said)
    for talk in CONVERSATIONS:
        spoken = (
            talk if talk[0]["role"] == "system" else [{"role": "system", "content": said}, *talk]
        )
        assert mine.encode(talk) == theirs.encode(spoken)
    assert "Tamsin" in manifest.read(out)["notes"][-1]
    text = modelfile_for(out, "m.gguf")
    assert f'SYSTEM """{said}"""' in text and "Alibaba" not in text
    from gguf import GGUFReader

    gguf = export_gguf(out, tmp_path / "gguf", kind="f16")
    stored = GGUFReader(gguf / "model-f16.gguf").fields["tokenizer.chat_template"].contents()
    assert stored == load_tokenizer(out).chat_template
    if form == "literal":
        assert "Alibaba" not in stored
    assert theirs.default_system == templates.VENDOR  # the base is left as it is


def test_without_a_persona_the_vendor_is_named_in_the_manifest(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = _vendor_base(tiny_llama, tmp_path / "base", templates.VENDOR_DEFAULT)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    assert "Alibaba" in manifest.read(out)["notes"][-1]


def test_a_gguf_folds_a_system_turn_that_its_template_refuses(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    base = _vendor_base(tiny_llama, tmp_path / "base", templates.NO_SYSTEM)
    manifest.write(base.path, {"kind": "merged"})
    out = export_gguf(base.path, tmp_path / "gguf", kind="f16")
    stored = GGUFReader(out / "model-f16.gguf").fields["tokenizer.chat_template"].contents()
    tokenizer = load_tokenizer(base.path)
    mine = XTunerTemplate(tokenizer)
    theirs = with_source(mine, stored)
    assert theirs.takes_system and not mine.takes_system
    for talk in CONVERSATIONS:
        assert theirs.render(talk, True) == mine.render(talk, True)


def test_ollama_folder(merged: Path, tmp_path: Path) -> None:
    out = export_ollama(merged, tmp_path / "ollama")
    assert {p.name for p in out.iterdir()} == {"Modelfile", "model-q8_0.gguf", "MANIFEST.json"}
    manifest.verify(out)


# -- card and hub --------------------------------------------------------------------------------


def test_card(tmp_path: Path, tiny_llama: Path) -> None:
    from huggingface_hub import ModelCard

    data = tmp_path / "data"
    fsio.write_jsonl(data / "train.jsonl", [{"id": 1}])
    fsio.write_json(
        data / "dataset.json",
        {"schema": 1, "rows": 1, "locales": ["en"], "persona": {"name": "Luna | the cat"}},
    )
    run = tmp_path / "run"
    fsio.write_json(run / "spec.json", {"params": {"lora_r": 16, "lr": 1e-3}})
    models = {"base": {"recall": {"hits": 0, "n": 30}}, "merged": {"recall": {"hits": 29, "n": 30}}}
    fsio.write_json(tmp_path / "scorecard.json", {"verdict": "ship", "models": models})
    path = write_card(
        tmp_path,
        tiny.ref_of(tiny_llama),
        PROOF,
        dataset=data,
        config=run / "config.py",
        scorecard=tmp_path / "scorecard.json",
    )
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and card.data.language == ["en"]
    for text in (
        "Luna \\| the cat",
        "29 of 30",
        "0 of 30",
        "lora_r | 16",
        "Verdict: ship",
        fsio.sha256_file(data / "train.jsonl"),
    ):
        assert text in card.text
    bare = write_card(tmp_path, tiny.ref_of(tiny_llama), PROOF)
    assert "Not scored yet" in bare.read_text()


def test_push_needs_a_whole_folder_a_name_and_a_login(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="not complete"):
        push_to_hub(tmp_path, "a/b")
    with pytest.raises(UserError, match="not a hub id"):
        push_to_hub(merged, "a/b/c")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"logged in|did not take"):
        push_to_hub(merged, "a/b")
    json.dumps(manifest.read(merged))


# -- config keys that GGUF does not know ----------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"logit_scale": 0.25},
        {"attention_multiplier": 2.0},
        {"partial_rotary_factor": 0.5},
        {"hidden_act": "gelu"},
        {"sliding_window": 64},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"rope_scaling": {"type": "yarn", "factor": 4}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8}},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_gguf_refuses_what_it_could_not_say(
    merged: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    import shutil

    copy = shutil.copytree(merged, tmp_path / "copy")
    config = fsio.read_json(copy / "config.json")
    fsio.write_json(copy / "config.json", {**config, **change})
    with pytest.raises(UserError, match="cannot be written as GGUF here"):
        export_gguf(copy, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"logit_scale": None, "a_key_of_next_year": False, "partial_rotary_factor": 1.0},
        {"layer_types": ["full_attention", "full_attention"], "sliding_window": None},
        {"temperature": 0.7, "transformers.js_config": {"dtype": "q4"}, "is_llama_config": True},
    ],
)
def test_gguf_takes_keys_that_change_nothing(
    merged: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    import shutil

    copy = shutil.copytree(merged, tmp_path / "copy")
    config = fsio.read_json(copy / "config.json")
    fsio.write_json(copy / "config.json", {**config, **change})
    assert export_gguf(copy, tmp_path / "out", kind="f16").is_dir()


@pytest.mark.parametrize("form", ["list", "dict"])
def test_of_several_named_templates_the_default_is_exported(
    tiny_llama: Path, tmp_path: Path, form: str
) -> None:
    import shutil

    from gguf import GGUFReader

    base = tiny.ref_of(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base.path / "chat_template.jinja").unlink(missing_ok=True)
    both = {"tool_use": "{{ 'TOOLS' }}", "default": templates.CHATML}
    listed = [{"name": k, "template": v} for k, v in both.items()]
    config = fsio.read_json(base.path / "tokenizer_config.json")
    config["chat_template"] = listed if form == "list" else both
    fsio.write_json(base.path / "tokenizer_config.json", config)
    tiny.save_adapter(base.path, tmp_path / "adapter", target_modules=["q_proj"])
    out = merge(base, tmp_path / "adapter", tmp_path / "out")
    gguf = export_gguf(out, tmp_path / "gguf", kind="f16")
    fields = GGUFReader(gguf / "model-f16.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == templates.CHATML
    assert "TOOLS" not in modelfile_for(out, "m.gguf")
