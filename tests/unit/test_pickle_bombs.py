"""Pickles that run nothing and still take for ever, or all memory, are refused unread."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import UserError
from core.inference.load import load_model
from core.models import lora, pickled
from core.models.data_only import data_only
from core.models.finite import broken
from core.models.pickled import require_small
from core.weights.checkpoint import open_checkpoint
from core.weights.preview import _adapter_numbers
from tests.fakes import tiny_models as tiny

pytestmark = pytest.mark.timeout(120)  # the old way hung, in a call that nothing interrupts


def pairs_of_pairs(depth: int = 60) -> bytes:
    """``{t60: 1}`` with ``t1 = ((1,), (1,))``, ``t2 = (t1, t1)``: its hash takes centuries."""
    pairs = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(depth))
    return b"\x80\x02}K\x01\x85q\x00" + pairs + b"K\x01s."


def _number(value: int) -> bytes:
    return b"\x8a\x0c" + value.to_bytes(12, "little", signed=True)


#: Integers of one hash: a table of them compares each with all before it.
EQUAL_HASHES = b"".join(_number(i * sys.hash_info.modulus) for i in range(60_000))
#: The hash of -1 is that of -2, and so tuples of them share theirs.
_SIGNS = [b"J\xff\xff\xff\xff", b"J\xfe\xff\xff\xff"]
EQUAL_TUPLES = b"".join(
    b"(" + b"".join(_SIGNS[i >> at & 1] for at in range(15)) + b"t" for i in range(1 << 15)
)

BOMBS = {
    "numbers of one hash": b"\x80\x02}("
    + b"".join(_number(i * sys.hash_info.modulus) + b"N" for i in range(60_000)) + b"u.",
    "a set of tuples of one hash": b"\x80\x04\x8f(" + EQUAL_TUPLES + b"\x90.",
    "frozenset of numbers of one hash": b"\x80\x04(" + EQUAL_HASHES + b"\x91.",
    "set(numbers of one hash)": b"\x80\x02cbuiltins\nset\n](" + EQUAL_HASHES + b"e\x85R.",
    "pairs": pairs_of_pairs(),
    "many": b"\x80\x02}(" + b"K\x01" * 9 + b"tq\x00" + b"(" + b"h\x00" * 9 + b"tq\x01"
    + b"".join(b"(" + b"h%c" % i * 9 + b"tq%c" % (i + 1) for i in range(1, 20)) + b"K\x01s.",
    "through a mark that is dropped": b"\x80\x02(0" + pairs_of_pairs()[2:],
    "a shared value number 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
}  # fmt: skip


def archive(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", data)
        out.writestr("archive/version", "3")
        out.writestr("archive/byteorder", "little")
    return path


def _loaded_by_torch(path: Path) -> object:
    with data_only():
        return torch.load(path)


READERS: dict[str, Callable[[Path], object]] = {
    "convert": open_checkpoint,
    "merge page": _adapter_numbers,
    "torch": _loaded_by_torch,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_checkpoint(bomb: bytes, reader: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"):
        reader(archive(tmp_path / "iter_2.pth", bomb))


def test_a_name_in_other_letters(tmp_path: Path) -> None:
    """torch finds ``data.PKL`` where it looks for ``data.pkl``."""
    path = tmp_path / "iter_2.pth"
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.PKL", pairs_of_pairs())
        out.writestr("archive/version", "3")
    with pytest.raises(UserError, match="refused"):
        _loaded_by_torch(path)


def test_an_archive_that_unpacks_to_more(tmp_path: Path) -> None:
    path, saved = tmp_path / "adapter_model.bin", io.BytesIO()
    torch.save({"a": torch.zeros(1 << 20)}, saved)
    with (
        zipfile.ZipFile(saved) as good,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for name in good.namelist():
            out.writestr(name, good.read(name))
    with pytest.raises(UserError, match="out of fewer"):
        _loaded_by_torch(path)


def test_an_array_of_numpy_begins_empty(tmp_path: Path) -> None:
    """A hundred bytes asked for a terabyte; what a real array is comes with its bytes."""
    shape = b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"
    named = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    made = _loaded_by_torch(
        archive(tmp_path / "a.pth", b"\x80\x02" + named + shape + b"U\x01b\x87R.")
    )
    assert isinstance(made, np.ndarray) and made.size == 0
    torch.save({"kept": np.arange(6.0).reshape(2, 3)}, tmp_path / "b.pth")
    kept = _loaded_by_torch(tmp_path / "b.pth")
    assert isinstance(kept, dict) and (kept["kept"] == np.arange(6.0).reshape(2, 3)).all()


def test_numbers_said_once_and_meant_often(tmp_path: Path) -> None:
    torch.save({"a": torch.full((1,), torch.nan).expand(10**11), "b": 1}, tmp_path / "x.bin")
    assert broken(tmp_path / "x.bin") == "a"
    torch.save([torch.zeros(1)], tmp_path / "y.bin")
    with pytest.raises(UserError, match="holds a list"):
        broken(tmp_path / "y.bin")


@pytest.mark.parametrize("old", [False, True])
def test_an_adapter(old: bool, tmp_path: Path) -> None:
    """``old``: as torch.save wrote before it wrote archives."""
    path = tmp_path / lora.PICKLED
    if old:
        out = io.BytesIO()
        torch.save({}, out, _use_new_zipfile_serialization=False)
        path.write_bytes(out.getvalue().replace(b"}q\x00.", pairs_of_pairs()[2:], 1))
    else:
        archive(path, pairs_of_pairs())
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    for ask in (lora.shapes, lora.shareable):
        with pytest.raises(UserError, match="refused"):
            ask(tmp_path)


def test_a_base(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base").path
    (base / "model.safetensors").unlink()
    archive(base / "pytorch_model.bin", pairs_of_pairs())
    with pytest.raises(UserError, match="refused"):
        load_model(base)


def test_every_value_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough to be read at once by who does not count."""
    path = archive(tmp_path / "iter_2.pth", pairs_of_pairs(12))
    open_checkpoint(path)
    monkeypatch.setattr(pickled, "MOST_VALUES", 1000)
    with pytest.raises(UserError, match="more than 1,000 values"):
        open_checkpoint(path)


def test_an_archive_that_another_reader_might_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be decoded"):
        require_small(archive(tmp_path / "x.pth", b"\x80\x02h\x07."))


def test_what_training_saves_passes(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base").path
    peft = tiny.save_adapter(base, tmp_path / "peft", target_modules=["q_proj"])
    tiny.save_checkpoint(peft, tmp_path / "iter_3.pth")
    require_small(tmp_path / "iter_3.pth")
    torch.save(OrderedDict(a=torch.zeros(3)), tmp_path / "o", _use_new_zipfile_serialization=False)
    require_small(tmp_path / "o")
    shared = (0.9, 0.999)
    torch.save({"groups": [{"betas": shared}] * 1000}, tmp_path / "n")
    require_small(tmp_path / "n")
    states = {number: {"step": number} for number in range(2000)}
    torch.save({"optimizer": {"state": states}}, tmp_path / "s")
    require_small(tmp_path / "s")
    (tmp_path / "page").write_text("<html>")
    require_small(tmp_path / "page")  # who reads it says that it is a web page
