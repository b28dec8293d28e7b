"""What a folder from elsewhere is, and what can be done with it here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import paths
from core.errors import UserError
from core.models import folder as models
from core.models.lora import CONFIG
from core.pipeline.tune import Ledger, read_ledger


@dataclass(frozen=True)
class Opened:
    """``model``: a folder to talk to. ``persona``: made here; ``run`` is one of its runs."""

    kind: Literal["model", "persona"]
    folder: Path
    run: str = ""


def open_folder(folder: Path) -> Opened:
    """Tell a model's folder and the output of ``tune`` from anything else.

    Raises:
        UserError: it is neither; a workspace is told how to be opened.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", fix="correct the path")
    if (folder / Ledger.FILE).is_file():
        made = read_ledger(folder).made.values()
        here = [one.id for one in made if Path(one.run).parent == paths.runs_dir()]
        if here:
            return Opened("persona", folder, here[-1])
        if (folder / "merged").is_dir():
            folder = folder / "merged"
    if (folder / "config.json").is_file() and models.weight_files(folder):
        return Opened("model", folder)
    if (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} is an adapter, which works only on top of its base",
            fix="choose the base in Compare and add the adapter, or merge the two on the Merge "
            "page: python -m core merge --help",
        )
    if (folder / "runs").is_dir() and (folder / "datasets").is_dir():
        raise UserError(
            f"{folder} is a workspace of its own",
            why="one server works in one workspace",
            fix=f"start the app in it: PERSONA_HOME={folder} make run",
        )
    raise UserError(
        f"{folder} holds no model and no persona",
        why="a model's folder has config.json and its weights, a tuned one tune.json",
        fix="choose such a folder",
    )
