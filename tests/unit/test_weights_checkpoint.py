"""Checkpoints are read without running them."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.weights.checkpoint import open_checkpoint


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class _Eval:
    def __reduce__(self) -> Any:
        return eval, ("1+1",)


def test_reads_a_checkpoint_with_history_buffers(tmp_path: Path) -> None:
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("reader")
    hub.update_scalar("train/loss", 2.0)
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path = tmp_path / "iter_1.pth"
    torch.save(
        {
            "state_dict": OrderedDict(layer.state_dict(), half=torch.ones(2).bfloat16()),
            "message_hub": hub.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        path,
    )
    opened = open_checkpoint(path)
    refs = opened.tensors(opened.content["state_dict"], "state_dict")
    assert {n: (r.dtype, r.shape) for n, r in refs.items()} == {
        "weight": ("F32", (3, 4)),
        "bias": ("F32", (3,)),
        "half": ("BF16", (2,)),
    }
    assert bytes(refs["weight"].read()) == layer.weight.detach().numpy().tobytes()


@pytest.mark.parametrize("where", ["state_dict", "meta"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, where: str) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {}, where: {"x": _Attack(marker)}}, path)
    with pytest.raises(UserError, match="system"):
        open_checkpoint(path)
    assert not marker.exists()


def test_eval_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"x": _Eval()}}, path)
    with pytest.raises(UserError, match="eval"):
        open_checkpoint(path)


def test_a_name_of_an_allowed_package_is_not_called(tmp_path: Path) -> None:
    """torch.load itself would be a way to run code; here it is an inert stand-in."""
    marker = tmp_path / "made-by-torch-save"

    class Sneaky:
        def __reduce__(self) -> Any:
            return torch.save, ({}, str(marker))

    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"x": torch.ones(1)}, "meta": Sneaky()}, path)
    marker.unlink(missing_ok=True)
    opened = open_checkpoint(path)
    assert list(opened.tensors(opened.content["state_dict"], "state_dict")) == ["x"]
    assert not marker.exists()


def test_torn_empty_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"w": torch.ones(1000)}}, path)
    data = path.read_bytes()
    for damage in (b"", data[: len(data) // 2], data[100:], pickle.dumps({"a": 1}), b"<html>"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"not a whole checkpoint|cannot be decoded"):
            open_checkpoint(path)
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(tmp_path / "gone.pth")


def test_a_transposed_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"w": torch.ones(3, 4).T}}, path)
    opened = open_checkpoint(path)
    with pytest.raises(UserError, match="'w'"):
        opened.tensors(opened.content["state_dict"], "state_dict")


_STORAGE = ("storage", torch.FloatStorage, "0", "cpu", 4)


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        ("x", (2, 2), (2, 1)), (None, (2, 2), (2, 1)), (0, (-2, -2), (-2, 1)),
        (0, (2.0, 2), (2, 1)), (0, ("2", 2), (2, 1)), (0, ((2,), 2), (2, 1)),
        (0, (True, 2), (2, 1)), (0, (2, 2), (1,)), (0, (0, 10**30), (10**30, 1)),
        (0, (1,) * 70, (1,) * 70),
    ],
)  # fmt: skip
def test_a_tensor_that_is_none_is_refused(
    offset: Any, shape: Any, stride: Any, tmp_path: Path
) -> None:
    """What a pickle says of a tensor may be anything: it was a TypeError in the converter."""

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, ("the storage", offset, shape, stride)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return _STORAGE if value == "the storage" else None

    out = io.BytesIO()
    Pickler(out, 2).dump({"state_dict": {"a": Tensor()}})
    with zipfile.ZipFile(tmp_path / "iter_1.pth", "w") as archive:
        archive.writestr("x/data.pkl", out.getvalue())
        archive.writestr("x/data/0", bytes(16))
    with pytest.raises(UserError, match="a tensor of shape"):
        open_checkpoint(tmp_path / "iter_1.pth")
