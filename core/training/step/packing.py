"""The rows of a micro-batch one after the other, without padding, and none seeing another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A micro-batch of ``tokens`` tokens in ``rows`` rows, on the device that computes it.

    Attributes:
        ids: token ids (tokens,); ``positions``: place of each in its row (tokens,).
        bounds: where rows begin and end, int32 (rows + 1,), as flash attention takes them.
        longest: tokens of the longest row.
        slots: where each token stands when rows are padded to ``longest`` (tokens,).
        supervised: tokens whose successor has a label (supervised,); ``targets``: that label.
    """

    ids: Tensor
    positions: Tensor
    bounds: Tensor
    longest: int
    slots: Tensor
    supervised: Tensor
    targets: Tensor

    @property
    def rows(self) -> int:
        """Rows of the micro-batch."""
        return int(self.bounds.numel()) - 1


def pack(data: dict[str, Any], *, keep_padding: bool = False, multiple: int = 1) -> Packed:
    """What ``xtuner.dataset.collate_fns.default_collate_fn`` made of the rows, packed.

    Args:
        data: ``input_ids``, ``labels`` and a right-padded ``attention_mask``, all (rows, length).
        keep_padding: pack the padding too (the same loss; for comparison).
        multiple: fill up to a multiple of this many tokens with a row that nothing is learned from
            (a GPU's libraries look for the best product anew at every number of tokens).
    """
    ids, device = data["input_ids"], data["input_ids"].device
    labels, mask = data["labels"].cpu(), data["attention_mask"].cpu().bool()
    if keep_padding:
        mask = torch.ones_like(mask)
    lengths = mask.sum(1)
    if not bool((mask.long().cumsum(1)[mask] == _counted(lengths) + 1).all()):
        raise ValueError("the padding must stand behind the rows")
    filler = -int(lengths.sum()) % multiple
    if multiple > 1:  # always, so that the number of rows does not change either
        lengths = torch.cat([lengths, lengths.new_tensor([filler])])
    bounds = torch.tensor([0, *itertools.accumulate(lengths.tolist())], dtype=torch.int32)
    longest = int(lengths.max())
    positions = _counted(lengths)
    row_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    wanted = (labels[:, 1:] != -100) & mask[:, 1:]
    row, column = wanted.nonzero(as_tuple=True)

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    flat = torch.cat([mask.reshape(-1).nonzero().squeeze(1), torch.zeros(filler, dtype=torch.long)])
    return Packed(
        ids=ids.reshape(-1)[there(flat)],
        positions=there(positions),
        bounds=there(bounds),
        longest=longest,
        slots=there(row_of * longest + positions),
        supervised=there(bounds[row].long() + column),
        targets=there(labels[row, column + 1]),
    )


def _counted(lengths: Tensor) -> Tensor:
    """0, 1, ... of each row in turn."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)
