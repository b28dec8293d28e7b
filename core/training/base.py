"""Whether a base can be trained, asked before anything is built or started."""

from __future__ import annotations

from pathlib import Path

from core import fsio
from core.inference import whole
from core.inference.load import load_tokenizer
from core.models import folder as folders
from core.models import trust
from core.models.xtuner_template import XTunerTemplate


def require_trainable(folder: Path) -> XTunerTemplate:
    """The chat template of a base that QLoRA can train and a merge can change.

    Raises:
        UserError: it brings code that nobody trusted, its weights are quantized already, not all
            there or not all numbers, or XTuner has no way to write its turns.
    """
    trust.require(folder)
    folders.require_trainable(folder)
    whole.require_whole(folder)
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
    if not _taught_to_end(template):
        found.append(
            f"neither the tokenizer nor generation_config.json ends a reply at "
            f"{template.turn_end!r}, as the chat template does: this is probably a base model, "
            "which was never taught to talk; the chat or instruct version learns a persona better"
        )
    if template.pieces is None:
        found.append(
            "the chat template writes a turn by where it stands: rows are trained reply by reply"
        )
    return found


def _taught_to_end(template: XTunerTemplate) -> bool:
    """Whether the model stops by itself at what ends its turns; only chat models do."""
    path = Path(template.tokenizer.name_or_path) / "generation_config.json"
    stored = fsio.read_json(path).get("eos_token_id") if path.is_file() else None
    ends = stored if isinstance(stored, list) else [stored]
    return template.ids(template.turn_end)[0] in {*ends, template.tokenizer.eos_token_id}
