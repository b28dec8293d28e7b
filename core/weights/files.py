"""The tensors of a model or adapter folder, wherever they lie; nothing is loaded or run."""

from __future__ import annotations

from pathlib import Path

from core.errors import UserError
from core.models import folder as folders
from core.weights.checkpoint import open_checkpoint
from core.weights.tensors import TensorRef, read_safetensors


def read_tensors(path: Path) -> dict[str, TensorRef]:
    """Tensors of one safetensors or ``.bin`` file.

    Raises:
        UserError: the file is not whole, or is a pickle that names more than tensors.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        opened = open_checkpoint(path)
        return opened.tensors(opened.content, "weights")
    except UserError as error:
        raise UserError(
            f"the weights in {path} cannot be read in place",
            why=f"{error.what}{f': {error.why}' if error.why else ''}",
            fix="download the file again; if it is whole, load the folder with transformers, write "
            "it to a new one with save_pretrained, and give that one",
        ) from error


def read_model(folder: Path) -> dict[str, TensorRef]:
    """All weights of a model folder: safetensors or ``.bin``, one file or shards.

    Raises:
        UserError: no weights, a shard missing, or a key in the index that no shard has.
    """
    tensors: dict[str, TensorRef] = {}
    for path in folders.weight_files(folder):
        tensors.update(read_tensors(path))
    if missing := sorted(folders.indexed(folder) - set(tensors)):
        raise UserError(
            f"{folder} lacks {len(missing)} tensors that its index lists",
            why=", ".join(missing[:5]),
            fix="download the model folder again",
        )
    return tensors
