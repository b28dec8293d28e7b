"""Checkpoint files and DeepSpeed folders on disk, without torch: whole, torn, taken over."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from core.errors import UserError
from core.training import checkpoints

pytestmark = pytest.mark.fast


def saved(path: Path, content: bytes = b"weights" * 500) -> Path:
    """A file in the zip form that torch.save writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", content)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A run's work folder: two checkpoint files, a DeepSpeed folder, an unfinished file."""
    folder = tmp_path / "run" / "work"
    for iteration in (4, 8):
        checkpoints.record(saved(folder / f"iter_{iteration}.pth"))
        saved(folder / "random_state" / f"iter_{iteration}" / "rank_0.pt")
    zero = folder / "iter_12.pth"
    saved(zero / "mp_rank_00_model_states.pt")
    saved(zero / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    saved(folder / "random_state" / "iter_12" / "rank_0.pt")
    checkpoints.record(zero)
    saved(folder / "iter_16.pth")
    (folder / "iter_notes.txt").write_text("not a checkpoint")
    (folder / "training.json").write_text("{}")
    return folder


def test_scan_counts_optimizer_steps_and_names_what_is_unfinished(work: Path) -> None:
    found = checkpoints.scan(work, accumulation=2)
    assert [(c.step, c.whole) for c in found] == [(2, True), (4, True), (6, True), (8, False)]
    assert "did not record it" in found[-1].problem
    newest = [c for c in checkpoints.scan(work, 2) if c.whole][-1]
    assert newest is not None and newest.path.is_dir()


def test_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.scan(tmp_path / "nowhere") == []
    assert checkpoints.scan(tmp_path / "nowhere") == []


def test_listing_survives_a_torn_line_and_noise(work: Path) -> None:
    with (work / checkpoints.LISTING).open("ab") as file:
        file.write(b'\x00\xff\n[]}\n{"name": "iter_9')
    assert set(checkpoints.listed(work)) == {"iter_4.pth", "iter_8.pth", "iter_12.pth"}


@pytest.mark.parametrize("name", ["iter_8.pth", "iter_12.pth/mp_rank_00_model_states.pt"])
def test_torn_file_or_part_is_named(work: Path, name: str) -> None:
    path = work / name
    path.write_bytes(path.read_bytes()[:-40])
    torn = [c for c in checkpoints.scan(work) if c.path in (path, path.parent)]
    assert "is torn" in torn[0].problem
    with pytest.raises(UserError, match="torn or was changed"):
        checkpoints.require_own(torn[0].path)


def test_same_size_garbage_does_not_open(work: Path) -> None:
    path = work / "iter_8.pth"
    path.write_bytes(b"x" * path.stat().st_size)
    assert "does not open" in next(c for c in checkpoints.scan(work) if c.path == path).problem


@pytest.mark.parametrize("name", ["iter_4.pth", "iter_12.pth"])
def test_own_checkpoints_are_accepted_also_through_a_link(
    work: Path, name: str, tmp_path: Path
) -> None:
    assert checkpoints.require_own(work / name) == (work / name).resolve()
    (tmp_path / "shortcut").symlink_to(work)
    assert checkpoints.require_own(tmp_path / "shortcut" / name) == (work / name).resolve()


def test_new_run_takes_over_the_history_up_to_the_checkpoint(work: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "work"
    new.mkdir(parents=True)
    resumed = checkpoints.adopt(work / "iter_12.pth", new)
    assert resumed == new / "iter_12.pth"
    assert [c.path.name for c in checkpoints.scan(new) if c.whole] == [
        "iter_4.pth",
        "iter_8.pth",
        "iter_12.pth",
    ]
    assert (new / "random_state" / "iter_12" / "rank_0.pt").is_file()
    assert os.stat(new / "iter_4.pth").st_ino == os.stat(work / "iter_4.pth").st_ino
    assert checkpoints.adopt(work / "iter_12.pth", new) == resumed  # again: nothing is doubled
    assert len((new / checkpoints.LISTING).read_text().splitlines()) == 3


def test_adopting_from_another_disk_copies(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: str) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    new = tmp_path / "new" / "work"
    new.mkdir(parents=True)
    checkpoints.adopt(work / "iter_4.pth", new)
    assert [c.path.name for c in checkpoints.scan(new)] == ["iter_4.pth"]


def test_a_checkpoint_inside_its_own_run_stays_where_it_is(work: Path) -> None:
    assert (
        checkpoints.adopt((work / "iter_8.pth").resolve(), work) == (work / "iter_8.pth").resolve()
    )


def test_what_nobody_signed_stays_behind(work: Path, tmp_path: Path) -> None:
    """Lines of a stranger in the listing: a forged checkpoint, a link, a path out of the folder."""
    (work / "iter_8.pth").unlink()
    (work / "iter_8.pth").symlink_to("/etc/passwd")
    (work / "iter_6.pth").write_bytes((work / "iter_4.pth").read_bytes())
    (tmp_path / "outside").mkdir()
    with (work / checkpoints.LISTING).open("a") as listing:
        for name in ("iter_6.pth", "../../outside/x", str(tmp_path / "outside" / "x")):
            line = {"schema": 1, "name": name, "bytes": 1, "sha256": "x", "signature": "y"}
            listing.write(json.dumps(line) + "\n")
    (tmp_path / "outside" / "x").write_text("secret")
    states = work / "random_state" / "iter_12"
    (states / "rank_1.pt").symlink_to("/etc/passwd")
    (states / "more").mkdir()
    new = tmp_path / "new" / "work"
    new.mkdir(parents=True)
    checkpoints.adopt(checkpoints.require_own(work / "iter_12.pth"), new)
    assert sorted(checkpoints.listed(new)) == ["iter_12.pth", "iter_4.pth"]
    assert sorted(p.name for p in new.iterdir()) == [
        "checkpoints.jsonl", "iter_12.pth", "iter_4.pth", "random_state",
    ]  # fmt: skip
    assert [p.name for p in (new / "random_state" / "iter_12").iterdir()] == ["rank_0.pt"]
    assert sorted(p.name for p in (tmp_path / "outside").iterdir()) == ["x"]
    (new / "training.json").write_text("{}")
    assert checkpoints.require_own(new / "iter_4.pth") == (new / "iter_4.pth").resolve()
