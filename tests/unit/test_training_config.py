"""Spec, stock-config edits, raw text: nothing here imports torch or runs a config."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError, UserErrors
from core.training import config, configdiff, rawconfig
from core.training.config import ConfigInputs
from core.training.edits import ConfigEditor, literal
from core.training.spec import TrainSpec
from core.training.spec_fields import FIELDS, parse_assignment
from tests.fakes.lr_plan import lr_plan

CHATML = {
    "SYSTEM": "<|im_start|>system\n{system}<|im_end|>\n",
    "INSTRUCTION": "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    "SUFFIX": "<|im_end|>",
    "SUFFIX_AS_EOS": True,
    "SEP": "\n",
    "STOP_WORDS": ["<|im_end|>"],
}


def inputs(**changes: Any) -> ConfigInputs:
    values: dict[str, Any] = {
        "model_path": Path("/models/a b"),
        "data_path": Path("/data/train.jsonl"),
        "prompt_template": CHATML,
        "device": "cpu",
        **changes,
    }
    return ConfigInputs(**values)


def assigned(source: str) -> dict[str, Any]:
    """Top-level names of a config that are plain literals."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def test_stock_configs_are_xtuners_own_language_model_configs() -> None:
    names = config.stock_configs()
    assert len(names) > 400
    assert "internlm2_chat_1_8b_qlora_alpaca_e3" in names
    assert not [name for name in names if "dpo" in name or "llava" in name]


def test_unknown_stock_config_suggests_near_names() -> None:
    with pytest.raises(UserError, match="internlm2_chat_1_8b_qlora_alpaca_e3"):
        config.stock_source("internlm2_chat_1_8b_qlora_alpacca_e3")


@pytest.mark.parametrize("name", config.stock_configs()[::12])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_stock_config_takes_the_edits(name: str, dtype: Any) -> None:
    spec = TrainSpec(dataset="d", stock_config=name, dtype=dtype, tensorboard=True)
    given = inputs(device="cpu" if dtype == "float32" else "cuda")
    source = config.render(spec, given)
    rawconfig.check_raw(source)
    editor = ConfigEditor(source)
    data = editor.value("train_dataloader.dataset")
    assert editor.value(f"{data}.dataset_map_fn") == "openai_map_fn"
    assert editor.value(f"{data}.map_num_proc") == "None"
    assert editor.value("model.lora.r") == str(spec.lora_r)
    assert editor.value("model.llm.trust_remote_code") == "False"
    assert "EvaluateChatHook," not in (editor.value("custom_hooks") or "")
    wrapper = "OptimWrapper" if dtype == "float32" else "AmpOptimWrapper"
    assert editor.value("optim_wrapper.type") == wrapper
    undefined = _undefined_names(source)
    assert not undefined, undefined


def _undefined_names(source: str) -> set[str]:
    """Names that a config reads and never binds (all is top level, so order aside)."""
    import builtins

    tree = ast.parse(source)
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - bound - set(dir(builtins))


def test_edits_keep_the_stock_files_comments_and_order() -> None:
    spec = TrainSpec(dataset="d")
    stock = config.stock_source(spec.stock_config)
    lines = configdiff.diff(stock, config.render(spec, inputs()))
    kept = [line.text for line in lines if line.kind == "same"]
    assert "#                          PART 1  Settings                           #" in kept
    assert "    # record the time of every iteration." in kept
    assert sum(line.kind == "removed" for line in lines) < 50
    rebuilt = [line.text for line in lines if line.kind != "removed"]
    assert "\n".join(rebuilt) + "\n" == config.render(spec, inputs())


def test_schedule_is_written_in_micro_batches() -> None:
    values = assigned(
        config.render(
            TrainSpec(dataset="d", steps=10, accumulation=4, warmup_steps=2, checkpoint_every=5),
            inputs(),
        )
    )
    assert values["max_iters"] == 40
    assert values["warmup_iters"] == 8
    assert values["save_steps"] == 20


TEXT = st.text(max_size=60) | st.sampled_from(
    ["{{ $HF_TOKEN:x }}", "'''", '"', "\\", "a\nb", "\u202e", "🌊", "{input}", "\x00"]
)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, system=TEXT)
def test_text_of_people_reads_back_exactly(prompt: str, system: str) -> None:
    spec = TrainSpec(dataset="d", evaluation_inputs=(prompt,), system=system)
    values = assigned(config.render(spec, inputs()))
    assert values["evaluation_inputs"] == [prompt]
    assert values["SYSTEM"] == system


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
        max_leaves=8,
    )
)
def test_literal_round_trips(value: Any) -> None:
    assert ast.literal_eval(literal(value)) == value


def test_literal_refuses_what_is_not_plain_data() -> None:
    with pytest.raises(ValueError):
        literal(object())


def test_editor_sets_adds_and_removes_in_nested_dicts() -> None:
    editor = ConfigEditor("a = dict(\n    x=1,  # one\n    y=dict(z=2),\n)  # end\n")
    editor.set("a.x", "3")
    editor.set("a.y.w", "4")
    editor.set("a.new.deep", "5")
    editor.remove("a.y.z")
    assert editor.code == (
        "a = dict(\n    x=3,  # one\n    new=dict(deep=5),\n    y=dict(w=4),\n)  # end\n"
    )
    with pytest.raises(KeyError):
        editor.set("missing.x", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "not valid Python"),
        ("import os\n", "does not set tokenizer, model"),
        ("{raw}\nimport no_such_package_of_ours\n", "no_such_package_of_ours"),
        ("{raw}\nx = '{{ $HOME:y }}'\n", "environment variable"),
    ],
)
def test_raw_text_is_checked_without_running_it(text: str, message: str) -> None:
    raw = config.render(TrainSpec(dataset="d"), inputs())
    with pytest.raises(UserError, match=message) as caught:
        rawconfig.check_raw(text.replace("{raw}", raw))
    assert caught.value.where.startswith("config.py")


def test_raw_text_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    raw = config.render(TrainSpec(dataset="d"), inputs()) + f"\nopen({str(marker)!r}, 'w')\n"
    raw += "import __main__\n"  # a module without a spec: looking it up was a ValueError
    out = config.write_config(TrainSpec(dataset="d", config_text=raw), tmp_path / "config.py")
    assert out.read_text() == raw
    assert not marker.exists()


def test_spec_round_trips_and_explains_every_field() -> None:
    spec = TrainSpec(dataset="d", evaluation_inputs=("a", "b"), deepspeed="zero2")
    assert TrainSpec.from_dict(spec.to_dict()) == spec
    assert all(info.label and info.help and 0 <= info.part <= 5 for info in FIELDS)


def test_spec_names_every_wrong_field_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        TrainSpec.from_dict(
            {"dataset": "d", "lr": "fast", "steps": True, "quantize": "int8", "speed": 3}
        )
    text = str(caught.value)
    assert all(word in text for word in ("lr", "steps", "int8", "speed"))
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": 0.0}, ("Peak learning rate is 0.0", "choose a value above 0", "lr")),
        ({"lr": float("inf")}, ("Peak learning rate is inf", "above 0", "lr")),
        ({"lora_dropout": 1.0}, ("LoRA dropout is 1.0", "from 0 below 1", "lora_dropout")),
        ({"steps": 0}, ("Optimizer steps is 0", "choose a value from 1", "steps")),
        ({"quantize": "int8"}, ("Base weights is 'int8'", "choose one of nf4, none", "quantize")),
        ({"gpus": "two"}, ("GPUs per node is 'two'", "a whole number from 1", "gpus")),
        ({"lora_targets": [3]}, ("LoRA modules is 3", "it must be text", "lora_targets.0")),
        ({"warm_up_steps": 3}, ("'warm_up_steps'", "did you mean 'warmup_steps'?", "")),
        ({"model": None}, ("Model is None", "it must be text", "model")),
    ],
)
def test_a_wrong_value_is_said_with_its_field_its_limit_and_the_fix(
    values: dict[str, Any], said: tuple[str, ...]
) -> None:
    for make in (TrainSpec.from_dict, lambda v: TrainSpec(**v)):
        with pytest.raises(UserErrors) as caught:
            make({"dataset": "d", **values})
        for words in said:
            assert words in str(caught.value)


def test_a_form_without_a_dataset_says_so() -> None:
    with pytest.raises(UserErrors, match="Dataset is missing"):
        TrainSpec.from_dict({})


def test_spec_problems_name_the_warmup_trap() -> None:
    with pytest.raises(UserErrors, match="warm-up of 3 steps does not fit into 3 steps"):
        TrainSpec(dataset="d", steps=3, warmup_steps=3).check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr=5e-4", ("lr", 5e-4)),
        ("steps=7", ("steps", 7)),
        ("deepspeed=none", ("deepspeed", None)),
        ("activation_checkpointing=yes", ("activation_checkpointing", True)),
        ("evaluation_inputs=Who?|Why?", ("evaluation_inputs", ("Who?", "Why?"))),
        ("quantize=none", ("quantize", "none")),
    ],
)
def test_assignments_of_a_command_line_are_typed(text: str, expected: tuple[str, Any]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize("text", ["lr", "speed=3", "lr=fast", "quantize=int8", "tensorboard=maybe"])
def test_bad_assignments_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_assignment(text)


@given(steps=st.integers(1, 300), accumulation=st.integers(1, 8), share=st.floats(0, 0.9))
def test_plan_climbs_to_the_peak_and_never_above(
    steps: int, accumulation: int, share: float
) -> None:
    warmup = int(steps * share)
    plan = lr_plan(lr=1e-3, steps=steps, warmup_steps=warmup, accumulation=accumulation)
    assert len(plan) == steps
    assert all(0 < lr <= 1e-3 for lr in plan)
    if warmup:
        assert plan[warmup - 1] == pytest.approx(1e-3)
    assert plan[warmup:] == sorted(plan[warmup:], reverse=True)
