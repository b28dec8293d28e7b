"""Whether a base can be trained, asked before anything is built or started."""

from __future__ import annotations

from pathlib import Path

from core.inference.load import load_tokenizer
from core.models import folder as folders
from core.models import trust
from core.models.xtuner_template import XTunerTemplate


def require_trainable(folder: Path) -> XTunerTemplate:
    """The chat template of a base that QLoRA can train and a merge can change.

    Raises:
        UserError: it brings code that nobody trusted, its weights are quantized already, or
            XTuner has no way to write its turns.
    """
    trust.require(folder)
    folders.require_trainable(folder)
    template = XTunerTemplate(load_tokenizer(folder))
    template.xtuner_template()
    return template


def warnings(template: XTunerTemplate) -> list[str]:
    """What the user should know about the template before training."""
    found = []
    if template.introduces:
        found.append(
            f"where nobody wrote a system turn, the base is told: {template.default_system!r}. "
            "Training and chat keep that turn; the merged model says the persona's own instead"
        )
    if not template.takes_system:
        found.append(
            "the chat template has no place for a system turn: its text goes to the first user turn"
        )
    if template.pieces is None:
        found.append(
            "the chat template writes a turn by where it stands: rows are trained reply by reply"
        )
    return found
