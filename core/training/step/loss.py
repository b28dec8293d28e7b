"""Cross-entropy of the output head, a few hundred tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from core.training.cost import chunk_tokens
from core.training.step.pointwise import Pointwise


class LinearCrossEntropy(Function):
    """Mean cross-entropy of ``hidden head^T``; the head is frozen.

    The gradient of the hidden states is computed with the loss, chunk by chunk, so the logits
    (tokens, vocabulary) never exist as a whole.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, run: Pointwise) -> Tensor:
        gradient, count = torch.empty_like(hidden), max(1, len(targets))
        loss = hidden.new_zeros((), dtype=torch.float32)
        size = chunk_tokens(head.shape[0])
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            one, d_logits = run.softmax_loss(hidden[part] @ head.t(), targets[part], 1 / count)
            loss += one
            torch.mm(d_logits, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None
