"""safetensors headers: everything whole is read, everything else is refused with its reason."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from core.errors import UserError
from core.weights.files import read_model
from core.weights.tensors import header_bytes, read_safetensors
from core.weights.writer import TensorWriter

_shapes = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(shapes=_shapes, dtype=st.sampled_from(["<f4", "<f2", "<i8", "|u1"]))
def test_reads_what_safetensors_writes_and_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("st")
    arrays = {
        f"t{i}": np.asarray(np.arange(int(np.prod(s))).reshape(s) % 100, dtype=dtype)
        for i, s in enumerate(shapes)
    }
    save_file(arrays, folder / "a.safetensors")
    refs = read_safetensors(folder / "a.safetensors")
    assert {n: bytes(r.read()) for n, r in refs.items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }
    layout = [(n, r.dtype, r.shape) for n, r in refs.items()]
    with TensorWriter(folder / "b.safetensors", layout) as writer:
        for at, ref in enumerate(refs.values()):
            writer.copy(ref) if at % 2 else writer.write(ref.read())
        digest = writer.close()
    from core import fsio

    assert digest == fsio.sha256_file(folder / "b.safetensors")
    back = load_file(folder / "b.safetensors")
    assert all(np.array_equal(back[n], a) for n, a in arrays.items())


@pytest.mark.parametrize("disk", ["direct", "unknown", "refused", "other-blocks"])
def test_writes_with_and_without_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    """Chunks of three pages, tensors across them, an end within a page; on any file system."""
    from core import fsio
    from core.weights import writer as module

    monkeypatch.setattr(module, "_CHUNK", 3 * 4096)
    real_open, real_write = os.open, os.write
    refusals = []

    def open_(path: Any, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        if flags & os.O_DIRECT and disk == "refused":
            refusals.append(path)
            os.close(fd)
            raise OSError(errno.EINVAL, "no such flag here")
        return fd

    def write(fd: int, data: Any) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT and disk == "other-blocks":
            refusals.append(fd)
            raise OSError(errno.EINVAL, "not such blocks")
        return real_write(fd, data)

    if disk == "unknown":
        monkeypatch.delattr(os, "O_DIRECT")
    else:
        monkeypatch.setattr(os, "open", open_)
        monkeypatch.setattr(os, "write", write)
    sizes = [5, 3 * 4096, 20_001, 0, 1]
    arrays = {f"t{i}": np.arange(n).astype("u1") for i, n in enumerate(sizes)}
    path = tmp_path / "a.safetensors"
    with TensorWriter(path, [(n, "U8", a.shape) for n, a in arrays.items()]) as writer:
        for array in arrays.values():
            writer.write(array.data)
        digest = writer.close()
    monkeypatch.undo()
    assert len(refusals) == (disk in ("refused", "other-blocks"))
    assert digest == fsio.sha256_file(path)
    back = load_file(path)
    assert all(np.array_equal(back[n], a) for n, a in arrays.items())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.ones((4, 4), "f4"), "b": np.zeros(3, "f4")}, path)
    return path


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda d: b"", "0 bytes"),
        (lambda d: d[:-1], "tensors end at"),
        (lambda d: d[:40], "truncated"),
        (lambda d: d + b"\0", "tensors end at"),
        (lambda d: b"<html><body>404 not found</body></html>" * 4, "HTML"),
        (lambda d: d[:8] + b"x" + d[9:], "not JSON"),
        (lambda d: d.replace(b"F32", b"F99"), "dtype"),
        (lambda d: d.replace(b"[4,4]", b"[4,5]"), "needs"),
        (lambda d: d.replace(b"[4,4]", b"[4,-]"), "not JSON"),
    ],
)
def test_refuses_damage(whole: Path, damage, word: str) -> None:  # type: ignore[no-untyped-def]
    whole.write_bytes(damage(whole.read_bytes()))
    with pytest.raises(UserError) as caught:
        read_safetensors(whole)
    assert word in str(caught.value)


def test_refuses_overlap(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 12)
    with pytest.raises(UserError, match="overlap"):
        read_safetensors(path)


def test_index_names_a_missing_shard_and_a_missing_key(whole: Path) -> None:
    whole.rename(whole.with_name("part.safetensors"))  # a single file would come first
    index = whole.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(UserError, match="gone"):
        read_model(whole.parent)
    index.write_text(json.dumps({"weight_map": {"zz": "part.safetensors"}}))
    with pytest.raises(UserError, match="lacks 1 tensors"):
        read_model(whole.parent)
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(UserError, match="outside"):
        read_model(whole.parent)


def test_a_bin_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be read in place"):
        read_model(tmp_path)


def test_payload_is_aligned() -> None:
    assert len(header_bytes([("x", "F32", (1,))])) % 8 == 0
