"""No pickle runs: whatever a checkpoint names, and whoever opens it."""

from __future__ import annotations

import json
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio, paths, seal
from core.errors import UserError
from core.models.data_only import data_only
from core.training import checkpoints
from core.weights.convert import convert
from tests.fakes import tiny_models as tiny


def global_call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls ``module.name(argument)`` (of runstring: with a dictionary too)."""
    text = argument.encode()
    more = b"}" if name == "runstring" else b""
    unicode = b"X" + len(text).to_bytes(4, "little") + text
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n(" + unicode + more + b"tR."


def bomb(path: Path, module: str, name: str, argument: str) -> Path:
    """A ``.pth`` with torch's layout around such a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", global_call(module, name, argument))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", sys.byteorder)
    return path


ATTACKS = [
    ("numpy.testing._private.utils", "runstring"),
    ("torch.utils.collect_env", "run"),
    ("builtins", "exec"),
    ("os", "system"),
    ("builtins", "getattr"),
    ("torch", "load"),
]


def _code(module: str, name: str, marker: Path) -> str:
    if name in {"run", "system"}:
        return f"touch {marker}"
    return f"open({str(marker)!r}, 'w')"


@pytest.mark.parametrize(("module", "name"), ATTACKS)
@pytest.mark.parametrize("asked", [True, False, None])
def test_torch_load_runs_nothing(
    module: str, name: str, asked: bool | None, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    path = bomb(tmp_path / "iter_4.pth", module, name, _code(module, name, marker))
    with data_only(), pytest.raises(UserError, match="is refused"):
        torch.load(path, weights_only=asked)
    assert not marker.exists()


def test_the_bombs_go_off_where_nothing_stops_them(tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    marker = tmp_path / "ran"
    path = bomb(
        tmp_path / "x.pth",
        "numpy.testing._private.utils",
        "runstring",
        f"open({str(marker)!r}, 'w')",
    )
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_what_a_training_run_saves_is_read(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base").path
    peft = tiny.save_adapter(base, tmp_path / "peft", target_modules=["q_proj"])
    tiny.save_checkpoint(peft, tmp_path / "iter_3.pth")
    with data_only():
        content = torch.load(tmp_path / "iter_3.pth", map_location="cpu")
    assert float(content["message_hub"]["log_scalars"]["train/loss"].mean()) == 1.5
    assert content["param_schedulers"] == [{"last_step": 3}]


def test_an_archive_whose_places_lead_outside_is_refused_in_words(tmp_path: Path) -> None:
    """Torch says "Invalid argument" of it, as if the disk had failed. Found by fuzzing."""
    path = tmp_path / "iter_2.pth"
    torch.save({"state_dict": {}}, path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[:directory] + b"x" * 5000 + whole[directory:])
    with data_only(), pytest.raises(UserError, match="is refused"):
        torch.load(path)


@pytest.mark.parametrize(("module", "name"), ATTACKS[:2])
def test_xtuners_converter_runs_nothing_of_a_checkpoint(
    module: str, name: str, tmp_path: Path
) -> None:
    base = tiny.save_base(tmp_path / "base").path
    run = tmp_path / "run"
    tiny.save_config(run / "config.py", base)
    seal.seal(run / "config.py")
    marker = tmp_path / "ran"
    (run / "work").mkdir()
    path = bomb(run / "work" / "iter_4.pth", module, name, _code(module, name, marker))
    with pytest.raises(UserError, match="is refused"):
        convert(path, run / "config.py", tmp_path / "out", engine="xtuner")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["never sealed", "changed since"])
def test_xtuners_converter_runs_no_config_of_a_stranger(change: str, tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base").path
    run, marker = tmp_path / "run", tmp_path / "ran"
    tiny.save_config(run / "config.py", base)
    if change == "changed since":
        seal.seal(run / "config.py")
    with (run / "config.py").open("a") as file:
        file.write(f"\nopen({str(marker)!r}, 'w')\n")
    (run / "work").mkdir()
    peft = tiny.save_adapter(base, tmp_path / "peft", target_modules=["q_proj"])
    path = run / "work" / "iter_4.pth"
    tiny.save_checkpoint(peft, path)
    with pytest.raises(UserError, match="not written by a training run of this workspace"):
        convert(path, run / "config.py", tmp_path / "out", engine="xtuner")
    assert not marker.exists()


def forged(folder: Path, path: Path, **more: Any) -> None:
    """Records beside a checkpoint, as its run would have written them."""
    entry = {
        "schema": 1,
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": fsio.sha256_file(path),
        **more,
    }
    (folder / "training.json").write_text(json.dumps({"schema": 1, "spec": {}, "resume": None}))
    (folder / checkpoints.LISTING).write_text(json.dumps(entry) + "\n")


@pytest.mark.parametrize("signature", [None, "", "0" * 64, 7, "é"])
def test_a_forged_record_is_no_record(signature: Any, tmp_path: Path) -> None:
    path = bomb(tmp_path / "iter_4.pth", "os", "system", "true")
    forged(tmp_path, path, **({} if signature is None else {"signature": signature}))
    with pytest.raises(UserError, match="not written by a run of this workspace"):
        checkpoints.require_own(path)


def test_a_signature_does_not_move_to_another_file(tmp_path: Path) -> None:
    good = tmp_path / "iter_2.pth"
    torch.save({"state_dict": {}}, good)
    checkpoints.record(good)
    (tmp_path / "training.json").write_text("{}")
    assert checkpoints.require_own(good) == good.resolve()
    entry = checkpoints.listed(tmp_path)["iter_2.pth"]
    path = bomb(tmp_path / "iter_4.pth", "os", "system", "true")
    forged(tmp_path, path, signature=entry["signature"])
    with pytest.raises(UserError, match="not written by a run of this workspace"):
        checkpoints.require_own(path)


def test_the_key_is_private_and_made_once(workspace: Path) -> None:
    (workspace / ".key").unlink()
    first = seal.sign("x")
    assert stat.S_IMODE((workspace / ".key").stat().st_mode) == 0o600
    assert seal.sign("x") == first
    assert seal.signed("x", first)
    shutil.rmtree(paths.home())
    assert not seal.signed("x", first)


def test_remote_code_of_a_base_does_not_run_in_xtuners_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training import compat
    from core.weights import xtuner_tools

    compat.apply()
    from xtuner.tools.model_converters import merge as tool

    seen: list[Any] = []
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        loader = type(name, (), {"from_pretrained": lambda *a, **k: seen.append(k)})
        monkeypatch.setattr(tool, name, loader())
    monkeypatch.setattr(
        tool, "main", lambda: [loader.from_pretrained("x", trust_remote_code=True)
                               for loader in (tool.AutoModelForCausalLM, tool.AutoTokenizer)]
    )  # fmt: skip
    xtuner_tools.merge(tmp_path, tmp_path, tmp_path / "o", max_shard_size="1GB")
    assert [k["trust_remote_code"] for k in seen] == [False, False]
