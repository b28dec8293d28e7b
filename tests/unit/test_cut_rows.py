"""A rehearsal reply that was cut is trained without a turn end, by XTuner as by our template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.conversation import Conversation
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate


@pytest.fixture
def row() -> Conversation:
    return Conversation(
        id="r1",
        messages=[
            {"role": "user", "content": "Tell me of the sea."},
            {"role": "assistant", "content": "The sea is"},
        ],
        kind="rehearsal",
        cut=True,
    )


def test_cut_survives_the_file(row: Conversation) -> None:
    assert Conversation.from_row(json.loads(json.dumps(row.to_row()))) == row


def test_xtuner_trains_a_cut_reply_without_its_end(row: Conversation, tiny_llama: Path) -> None:
    from mmengine.config import ConfigDict

    from core.training import compat

    compat.apply()
    from xtuner.dataset import utils
    from xtuner.dataset.map_fns import openai_map_fn, template_map_fn_factory
    from xtuner.dataset.utils import encode_fn

    tokenizer = load_tokenizer(tiny_llama)
    chat = XTunerTemplate(tokenizer)
    whole = Conversation(id="r2", messages=row.messages, kind="rehearsal")
    for case in (row, whole):
        example = case.to_row()
        example |= openai_map_fn(example)
        mapped = template_map_fn_factory(ConfigDict(chat.xtuner_template()))(example)
        encode = getattr(utils, "encode_fn", encode_fn)
        encoded = encode(mapped, tokenizer, 512)
        ids, labels = chat.encode_supervised(case.messages, case.loss, case.cut)
        assert encoded["input_ids"] == ids
        assert encoded["labels"] == labels
        assert (2 in labels) is not case.cut
