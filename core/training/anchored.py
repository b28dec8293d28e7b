"""XTuner's model with another loss: a leash to the base, token weights on identity rows.

The config names the class (``model.type``) and the collate function; without the settings of
``TrainSpec`` that need it, the config stays pure XTuner. Nothing here draws a random number or
keeps state, so resuming goes on bit for bit.

Sources: KL to the base as an anchor, arXiv 2509.23753 (ASFT) and 2509.04259 (RL's Razor); a token's
loss weighted by its own detached probability, arXiv 2508.05629 (DFT). Measured on a 0.5B
model (docs/results/recipe.md): KL costs recall and brings no fewer leaks, and DFT learns no name at
all; hence off by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.model import SupervisedFinetune

from core.inference.fused import inner_model

IGNORED = -100
_HALF = (torch.bfloat16, torch.float16)


def collate(instances: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
    """XTuner's batch, with a flag for each row: whether its reply is the base's own."""
    batch: dict[str, Any] = default_collate_fn(instances, **options)
    kinds = [row.get("kind", "identity") in ("rehearsal", "near_miss") for row in instances]
    batch["data"]["anchored"] = torch.tensor(kinds)
    return batch


class AnchoredFinetune(SupervisedFinetune):
    """``SupervisedFinetune`` whose loss, a mean over supervised tokens, is:

    on anchored rows (general, near-miss): ``anchor_ce`` x cross-entropy + ``anchor_kl`` x
    KL(base || tuned) in nats, the base being the same weights with the adapter off;
    on the others: cross-entropy, times the token's own probability if ``dft``.
    """

    def __init__(
        self,
        *args: Any,
        anchor_kl: float = 0.0,
        anchor_ce: float = 1.0,
        anchor_tokens: int = 0,
        dft: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.anchor_kl, self.anchor_ce, self.dft = anchor_kl, anchor_ce, dft
        self.anchor_tokens = anchor_tokens

    def compute_loss(self, data: dict[str, Any], data_samples: Any = None) -> dict[str, Any]:
        """The loss of a micro-batch; logits are computed only where there is a label."""
        given = {k: v for k, v in data.items() if k not in ("labels", "anchored")}
        labels = data["labels"]
        rows, at = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets, anchored = labels[rows, at + 1], data["anchored"].to(labels.device)[rows]
        log_p = self._logits(given, rows, at).float().log_softmax(-1)
        loss = functional.nll_loss(log_p, targets, reduction="none")
        weight = loss.neg().exp().detach() if self.dft else torch.ones_like(loss)
        weight = torch.where(anchored, torch.full_like(loss, self.anchor_ce), weight)
        total = (weight * loss).sum()
        if self.anchor_tokens:
            place = (labels[:, 1:] != IGNORED).cumsum(1)[rows, at]
            anchored = anchored & (place <= self.anchor_tokens)
        if self.anchor_kl and bool(anchored.any()):
            total = total + self.anchor_kl * self._kl(
                given, rows[anchored], at[anchored], log_p[anchored]
            )
        return {"loss": total / max(1, len(targets))}

    def _kl(
        self, given: dict[str, Any], rows: torch.Tensor, at: torch.Tensor, log_p: torch.Tensor
    ) -> torch.Tensor:
        """Sum over tokens of KL(base || tuned). Shapes: rows, at (N,); log_p (N, vocabulary)."""
        with torch.no_grad(), self.llm.disable_adapter():
            base = self._logits(given, rows, at).float().log_softmax(-1)
        return functional.kl_div(log_p, base, reduction="sum", log_target=True)

    def _logits(self, given: dict[str, Any], rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Logits (N, vocabulary) at the given places only."""
        head = inner_model(self.llm).get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][rows, at],))
        dtype = next((p.dtype for p in self.llm.parameters() if p.dtype in _HALF), None)
        # mmengine opens autocast on a GPU only; a held 16-bit base meets float32 norms on a CPU.
        cast = torch.autocast(rows.device.type, dtype) if dtype else nullcontext()
        try:
            with cast:
                logits: torch.Tensor = self.llm(**given).logits
        finally:
            handle.remove()
        return logits
