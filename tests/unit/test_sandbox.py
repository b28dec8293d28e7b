"""Templates and patterns of strangers: the process that asks stays alive and says which file."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from core.errors import UserError
from core.models import sandbox
from core.models.template import _KNOWN, ChatTemplate
from core.persona import templating
from core.persona.persona import parse_persona

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def _render(source: str, messages: Any = TALK) -> str:
    return sandbox.render(
        source, messages, add_generation_prompt=True, special_tokens={"bos_token": "<s>"}, name="F"
    )


BOMBS = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "folded text": "{{ 'a' * 10 ** 10 }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "only for long talks": "{% if messages|length > 1 %}{{ 9 ** (9 ** 9) }}{% endif %}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "width": "{{ '%9999999999d' % 1 }}",
    "output": "{% for i in range(99999) %}{{ 'abcdefghij' * 10 }}{% endfor %}",
    "depth": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "attribute": "{{ messages.__class__.__mro__ }}",
    "not a template": "{% if %}",
    "raises": "{{ raise_exception('no system turn') }}",
    "division": "{{ 1 // 0 }}",
    "encoding": "{{ 'a'.encode('x') }}",
    "overflow": "{{ '%c' % -1 }}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS.keys())
def test_a_template_costs_its_share_and_no_more(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="the chat template of F"):
        _render(source)
    # The child's three seconds of processor time, on a machine that others use as well.
    assert time.monotonic() - began < 60
    assert _render("{{ bos_token }}{{ messages[0].content }}") == "<s>Hi"


def test_a_broken_template_is_called_broken_and_the_child_lives() -> None:
    _render("{{ 1 }}")
    before = sandbox._child._process
    for name in ("division", "encoding", "overflow"):
        with pytest.raises(sandbox.TemplateRefused, match="Error"):
            _render(BOMBS[name])
    assert sandbox._child._process is before


def test_what_a_template_refuses_is_told_in_its_own_words() -> None:
    with pytest.raises(sandbox.TemplateRefused, match="no system turn"):
        _render(BOMBS["raises"])


def test_a_rendering_is_transformers_own(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    talk = [*TALK, {"role": "user", "content": "你好\u2028\x00 {{ x }} \ud83d"}]
    for source in (
        "{{ bos_token or '' }}{% for m in messages %}\n  {{ m.content | trim }}{% endfor %}",
        "{% for m in messages %}{% if loop.index0 > 1 %}{% break %}{% endif %}{{ m | tojson }}"
        "{% endfor %}{% if add_generation_prompt %}{{ eos_token }}{% endif %}",
        "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
    ):
        tokenizer.chat_template = source
        want = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert ChatTemplate(tokenizer).render(talk, True) == want  # type: ignore[arg-type]


def test_the_bundled_models_template_needs_no_child(bundled_model: Path) -> None:
    import hashlib

    source = AutoTokenizer.from_pretrained(bundled_model).get_chat_template()
    assert hashlib.sha256(source.encode()).hexdigest() in _KNOWN


def test_a_call_is_quick_once_the_child_is_there() -> None:
    _render("{{ 1 }}")
    began = time.monotonic()
    for _ in range(50):
        _render("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert (time.monotonic() - began) / 50 < 0.05


def test_the_child_ends_with_its_parent() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # a parent that is killed without a word
        _render("{{ 1 }}")
        child = sandbox._child._process
        os.write(writer, str(child.pid if child else 0).encode())
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    child_pid = int(os.read(reader, 20))
    for _ in range(100):
        if not Path(f"/proc/{child_pid}").exists():
            return
        if "Z" in Path(f"/proc/{child_pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


NAMES = [f"model.layers.{i}.self_attn.q_proj" for i in range(24)]


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"(\\w+\\.?)+x": 8}},
        {"alpha_pattern": {"([a-z_.0-9]+)+!": 8}},
        {"target_modules": "([a-z_.0-9]*)*!"},
        {"exclude_modules": "(a|[a-z_.0-9]+)+!"},
        {"layers_pattern": ["([a-z_.0-9]+)+!"]},
        {"rank_pattern": {"(": 8}},
        {"target_modules": "(?P<x>"},
    ],
)
def test_an_adapters_patterns_cannot_hang(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the-adapter"):
        sandbox.require_matchable(config, NAMES, "the-adapter")


def test_patterns_that_peft_writes_pass() -> None:
    config = {
        "rank_pattern": {"layers.0.*q_proj": 4, "^model.*k_proj": 2},
        "target_modules": r".*\.(q|v)_proj",
        "layers_pattern": "layers",
        "exclude_modules": ["lm_head"],
    }
    sandbox.require_matchable(config, NAMES, "the-adapter")


SENTENCES = [
    "{{ 9**(9**9) }}",
    '{{ "a" * 10**9 }}',
    "{{ 9 * 9 }}",
    "{{ [1] * 3 }}",
    "{% for a in range(9) %}{% for b in range(9) %}x{% endfor %}{% endfor %}",
    "{{ " + "(" * 900 + "name" + ")" * 900 + " }}",
    "{{ name" + " | a" * 450 + " }}",
    "{{ " + "not " * 450 + "name }}",
    "{{ " + "9" * 1900 + " }}",
    "{% macro x() %}{{ x() }}{% endmacro %}",
    "{{ name ~ name }}",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_of_a_pack_is_walked_before_it_is_compiled(sentence: str) -> None:
    began = time.process_time()
    problem = templating.check(sentence, ["name"])
    assert problem is not None or len(templating.render(sentence, {"name": "Luna"})) < 20_000
    assert time.process_time() - began < 2


ODD = [
    "extends: assistant\npersona: {id: x, locales: [[1]]}\n",
    "extends: assistant\npersona: {id: x, locales: {a: b}}\n",
    "extends: assistant\npersona: [1]\nintents: [2]\nslots: 3\n",
    "extends: [assistant]\n",
    "extends: assistant\ndialogues: {rounds: {1:30: 0.5}}\n",
    "extends: assistant\ndialogues: {insert_general: " + ":".join(["59"] * 9000) + "}\n",
    "extends: assistant\ndialogues: {insert_general: " + "9" * 9000 + "}\n",
    "extends: assistant\ndialogues: {insert_general: 0x" + "f" * 9000 + "}\n",
    "extends: assistant\ndialogues: {insert_general: .nan}\n",
    "extends: assistant\nuser_styles: " + "[" * 500 + "]" * 500 + "\n",
    "extends: assistant\nintents: {who: {weight: 1e999}}\n",
    "extends: assistant\n? [1, 2]\n: 3\n",
    "extends: assistant\n2026-13-45: 1\n",
    "extends: assistant\nslots: {name: {text: {en: 2026-99-99}}}\n",
    "schema: persona/1\npersona: !!python/object:os.system {}\n",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_yaml_is_refused_in_words(text: str) -> None:
    with pytest.raises(UserError):
        parse_persona(text, "odd.yaml")


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("name")
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["schema", "persona", "slots", "params", "intents", "dialogues", "user_styles", "system"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_KEYS, _values, max_size=4), st.booleans())
def test_any_pack_is_a_pack_or_refused_in_words(data: dict[str, Any], extends: bool) -> None:
    text = json.dumps({**data, **({"extends": "assistant"} if extends else {})})
    with contextlib.suppress(UserError):
        parse_persona(text, "x")
