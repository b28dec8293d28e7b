"""Every file and folder name, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

REPO = Path(__file__).resolve().parent.parent
TEMPLATES = REPO / "data_templates"


def home() -> Path:
    """Where models, datasets, runs and chats live: ``PERSONA_HOME`` or ``<repo>/workspace``.

    Raises:
        UserError: training could not read from there, whatever one does.
    """
    place = Path(os.environ.get("PERSONA_HOME") or REPO / "workspace").resolve()
    require_plain(place, "set PERSONA_HOME to a folder without them")
    return place


def require_plain(path: Path, fix: str = "rename or move the folder") -> None:
    """Raise UserError for a path that the readers of datasets expand before they open it."""
    text = str(path)
    if os.path.expandvars(text) != text or "::" in text:
        raise UserError(
            f"{path} cannot be read by XTuner",
            why="the library that reads the rows expands $NAME and :: in a path",
            fix=fix,
        )


def models_dir() -> Path:
    """Model folders that we made (the bundled model)."""
    return home() / "models"


def datasets_dir() -> Path:
    """One folder a dataset version."""
    return home() / "datasets"


def runs_dir() -> Path:
    """One folder a job."""
    return home() / "runs"


def chats_dir() -> Path:
    """Transcripts of the Compare page."""
    return home() / "chats"


def tuned_dir() -> Path:
    """What ``tune`` hands out when it was given no --output; the originals are runs."""
    return home() / "tuned"


def packs_dir() -> Path:
    """The user's own persona packs."""
    return home() / "packs"


def drafts_dir() -> Path:
    """Unsaved work of the Dataset page: the persona form, and edits by dataset."""
    return home() / "drafts"


def cache_dir() -> Path:
    """Things that can be made again: rehearsal replies, evaluation results by content."""
    return home() / "cache"


@dataclass(frozen=True)
class DatasetPaths:
    """A dataset folder."""

    root: Path

    @property
    def train(self) -> Path:
        """OpenAI-messages JSONL, what XTuner reads."""
        return self.root / "train.jsonl"

    @property
    def probes(self) -> Path:
        """Held-out wordings (JSONL of Probe), never trained on."""
        return self.root / "probes.jsonl"

    @property
    def persona(self) -> Path:
        """The pack with every slot filled."""
        return self.root / "persona.yaml"

    @property
    def manifest(self) -> Path:
        """Seed, counts, hashes; written last, so its presence means the dataset is whole."""
        return self.root / "dataset.json"


@dataclass(frozen=True)
class RunPaths:
    """A run directory; the table in the design names the one writer of each file."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def config(self) -> Path:
        return self.root / "config.py"

    @property
    def env(self) -> Path:
        return self.root / "env.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def supervisor(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def stop(self) -> Path:
        return self.root / "stop"

    @property
    def result(self) -> Path:
        """What the job returned; written by the child, checked by the supervisor."""
        return self.root / "result.json"

    @property
    def error(self) -> Path:
        """Why the child gave up; written by the child."""
        return self.root / "error.json"

    @property
    def exit(self) -> Path:
        return self.root / "exit.json"

    @property
    def note(self) -> Path:
        """What a person wrote about the run."""
        return self.root / "note.txt"

    @property
    def work(self) -> Path:
        """XTuner's --work-dir."""
        return self.root / "work"

    @property
    def adapter(self) -> Path:
        """PEFT adapters by checkpoint, e.g. adapter/iter_120."""
        return self.root / "adapter"

    @property
    def export(self) -> Path:
        return self.root / "export"
