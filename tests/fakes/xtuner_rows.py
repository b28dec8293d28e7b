"""What XTuner trains on, made by XTuner's own code."""

from __future__ import annotations

from core.conversation import Conversation
from core.models.xtuner_template import XTunerTemplate


def by_xtuner(chat: XTunerTemplate, row: Conversation) -> list[tuple[list[int], list[int]]]:
    """What XTuner's own mapping and encoding make of the rows that it is given."""
    from mmengine.config import ConfigDict

    from core.training import compat

    compat.apply()
    from xtuner.dataset import utils
    from xtuner.dataset.map_fns import openai_map_fn, template_map_fn_factory

    mapped = template_map_fn_factory(ConfigDict(chat.xtuner_template()))
    found = []
    for part in chat.training_rows(row):
        example = part.to_row()
        example |= openai_map_fn(example)
        example |= mapped(example)
        encoded = utils.encode_fn(example, chat.tokenizer, 10_000)
        found.append((encoded["input_ids"], encoded["labels"]))
    return found
