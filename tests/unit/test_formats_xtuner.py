"""Exported files through `datasets` and XTuner's own reading, to the very token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.conversation import Conversation
from core.data.formats import export_rows, get_format
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate

pytestmark = pytest.mark.slow

HARD = [
    'He said "no" and left',
    "{name} {{ name }} {{ $HOME:x }} {% if x %} {0}",
    "line\nbreak\r\n\ttab",
    "back\\slash \\n 'quote' '''",
    "emoji 👩‍🚀🏳️‍🌈 e\u0301",
    "\u202eright to left\u202c שלום عربى",
    "\u200bzero\u200dwidth\ufeff",
    "<script>alert(1)</script> <image>",
    "2024-01-01",
    "null",
    "1.10",
    "你好，世界。",
    " leading and trailing ",
    "\x00nul\x1b[31m",
    "\u2028separator\u2029",
]


@pytest.fixture(scope="module")
def tokenizer(bundled_model: Path) -> Any:
    """With the repair that training applies: no beginning-of-text token where there is none."""
    from core.training import compat

    compat.importable()
    compat.bos_of_template()
    return load_tokenizer(bundled_model)


def rows() -> list[Conversation]:
    made = []
    for at, text in enumerate(HARD):
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"Re: {text}"}]
        loss = [True]
        if at % 3 == 0:
            turns.insert(0, {"role": "system", "content": f"Be {text}"})
        if at % 2 == 0:
            turns += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": text}]
            loss = [False, True] if at % 4 else [True, True]
        made.append(Conversation(f"r{at}", turns, "own", "i", "c", "en", loss))  # type: ignore[arg-type]
    return made


#: The formats that XTuner's own map functions read ("" = a row is what they make of it).
XTUNER_MAPS = {"messages": "openai_map_fn", "alpaca": "alpaca_map_fn", "xtuner": ""}


def map_fn(name: str) -> Callable[..., Any] | None:
    from xtuner.dataset import map_fns

    return getattr(map_fns, XTUNER_MAPS[name]) if XTUNER_MAPS[name] else None


def tokens(path: Path, name: str, tokenizer: Any, max_length: int = 4096) -> list[Any]:
    """What XTuner's process_hf_dataset makes of a file, as the stock configs call it."""
    from datasets import load_dataset
    from mmengine.config import ConfigDict
    from xtuner.dataset import process_hf_dataset
    from xtuner.dataset.map_fns import template_map_fn_factory

    template = ConfigDict(XTunerTemplate(tokenizer).xtuner_template())
    loaded = load_dataset("json", data_files=str(path), cache_dir=str(path.parent / "cache"))
    return list(
        process_hf_dataset(
            loaded,
            tokenizer=tokenizer,
            max_length=max_length,
            dataset_map_fn=map_fn(name),
            template_map_fn=template_map_fn_factory(template),
            remove_unused_columns=True,
            pack_to_max_length=False,
            shuffle_before_pack=False,
            map_num_proc=1,
        )
    )


def expected(row: Conversation, tokenizer: Any) -> tuple[list[int], list[int]]:
    return XTunerTemplate(tokenizer).encode_supervised(row.messages, row.loss)


def supervised_text(labels: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode([i for i in labels if i != -100]))


@pytest.mark.parametrize("name", ["messages", "xtuner"])
def test_xtuner_supervises_exactly_the_assistant_turns(
    name: str, tmp_path: Path, tokenizer: Any
) -> None:
    made = rows()
    export_rows(made, name, tmp_path / "rows.jsonl")
    read = tokens(tmp_path / "rows.jsonl", name, tokenizer)
    assert len(read) == len(made)
    for row, example in zip(made, read, strict=True):
        ids, labels = expected(row, tokenizer)
        assert example["input_ids"] == ids
        # After the last turn end comes ChatML's line break, without loss in both.
        assert example["labels"] == labels
        replies = [m["content"] for m in row.messages if m["role"] == "assistant"]
        learned = [r for r, on in zip(replies, row.loss, strict=True) if on]
        assert supervised_text(labels, tokenizer) == "".join(f"{r}<|im_end|>" for r in learned)


def test_alpaca_as_xtuner_reads_it(tmp_path: Path, tokenizer: Any) -> None:
    single = [r for r in rows() if r.rounds == 1 and r.messages[0]["role"] == "user"]
    exported = export_rows(single, "alpaca", tmp_path / "rows.jsonl")
    assert not exported.notes
    for row, example in zip(single, tokens(exported.path, "alpaca", tokenizer), strict=True):
        assert supervised_text(example["labels"], tokenizer) == (
            row.messages[-1]["content"] + "<|im_end|>"
        )


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(
        lambda t: t.strip() and "<|" not in t
    )
)
def test_any_text_survives_to_the_tokenizer(text: str, tokenizer: Any) -> None:
    """Export -> JSON -> XTuner's map functions -> encode_fn, without the disk cache in between."""
    from mmengine.config import ConfigDict
    from xtuner.dataset.map_fns import template_map_fn
    from xtuner.dataset.utils import encode_fn

    template = ConfigDict(XTunerTemplate(tokenizer).xtuner_template())
    row = Conversation(
        "a", [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    )
    for name in ("messages", "xtuner"):
        example = json.loads(json.dumps(get_format(name).encode(row)))
        mapped = map_fn(name)
        example = example if mapped is None else mapped(example)
        encoded = encode_fn(template_map_fn(example, template=template), tokenizer, 4096)
        assert (encoded["input_ids"], encoded["labels"]) == expected(row, tokenizer)


def test_text_never_reads_the_environment(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "secret-canary")
    text = "{{ $CANARY:x }} ${CANARY} $CANARY {{ '$CANARY' }}"
    row = Conversation(
        "a", [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    )
    export_rows([row], "messages", tmp_path / "rows.jsonl")
    (example,) = tokens(tmp_path / "rows.jsonl", "messages", tokenizer)
    decoded = tokenizer.decode(example["input_ids"])
    assert text in decoded
    assert "secret-canary" not in decoded
