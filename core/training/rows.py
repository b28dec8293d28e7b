"""What the rows of a dataset become for a model: counts of rows, tokens, supervised tokens."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from core import fsio
from core.conversation import Conversation, read_conversations
from core.errors import UserError
from core.models.xtuner_template import XTunerTemplate
from core.paths import DatasetPaths, require_plain


def read_rows(dataset: Path) -> list[Conversation]:
    """Rows of ``dataset``/train.jsonl. Raises UserError if it is missing, empty or torn."""
    path = DatasetPaths(dataset).train
    if not path.is_file():
        raise UserError(
            f"dataset {dataset} has no {path.name}",
            fix="build the dataset again, or point to another folder",
        )
    rows = list(read_conversations(path))
    if not rows:
        raise UserError(f"{path} has no rows", fix="build the dataset again")
    return rows


@dataclass(frozen=True)
class RowStats:
    """Token counts of a dataset under one tokenizer, after the cut at ``max_length``.

    ``kept`` of ``tokens`` survive; ``supervised`` of those carry loss. ``unusable`` rows have no
    supervised token left, XTuner drops them. ``lengths`` are those of the usable rows.
    """

    rows: int
    tokens: int
    kept: int
    supervised: int
    cut_rows: int
    unusable: int
    lengths: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest usable row."""
        return max(self.lengths, default=0)


def measure(rows: list[Conversation], template: XTunerTemplate, max_length: int) -> RowStats:
    """Tokenize every row as XTuner will; rows that are trained reply by reply count as several."""
    tokens = kept = supervised = cut = unusable = 0
    lengths: list[int] = []
    examples = [example for row in rows for example in template.examples(row)]
    for ids, labels in examples:
        tokens += len(ids)
        cut += len(ids) > max_length
        labels = labels[:max_length]
        with_loss = sum(label >= 0 for label in labels)
        if not with_loss:
            unusable += 1
            continue
        supervised += with_loss
        kept += len(labels)
        lengths.append(len(labels))
    return RowStats(len(examples), tokens, kept, supervised, cut, unusable, lengths)


def differing(rows: list[Conversation], template: XTunerTemplate) -> list[str]:
    """Ids of rows whose turns, encoded one by one as XTuner does, are not what chat feeds."""
    return [row.id for row in rows if template.differs(row)]


def data_pattern(path: Path) -> str:
    """The file as ``datasets.load_dataset`` takes it: a pattern that matches it alone.

    Raises:
        UserError: its name is expanded whatever one does: a variable that is set, or ``::``.
    """
    require_plain(path)
    return glob.escape(str(path))


def write_for_xtuner(rows: list[Conversation], template: XTunerTemplate, out: Path) -> Path | None:
    """Write the rows as XTuner must get them; None if they are that already.

    XTuner writes a system block only for rows that have one, while some chat templates insert
    their own at inference; it knows no folding; and a template that is not made of its pieces is
    given to it rendered (``XTunerTemplate.training_rows``). Training and chat would differ.
    """
    given = [part for row in rows for part in template.training_rows(row)]
    if given == rows:
        return None
    fsio.write_jsonl(out, (row.to_row() for row in given))
    return out
