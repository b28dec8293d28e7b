"""NF4 base weights by bitsandbytes: how they are quantized, and kept as they are on a CPU."""

from __future__ import annotations

from typing import Any


def nf4_config(compute_dtype: Any) -> Any:
    """QLoRA's quantization (arXiv 2305.14314): NF4 with double quantization."""
    from transformers import BitsAndBytesConfig

    keep_unpacked()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_unpacked() -> None:
    """Stop bitsandbytes from repacking NF4 weights on a CPU; call it before a model is made.

    On CPUs with AVX512-BF16 ``Linear4bit.forward`` (0.50.2) repacks them at the first call without
    gradients, for a product in bf16 that has no gradient. A run that shows sample replies and then
    trains on is silently ruined: nothing reaches the layers below through the base any more. In a
    run of the bundled model the gradient norm fell from 1.07 to 0.28 at the step after the first
    samples, and the loss stood still. It also rounds the block scales to bf16, so a resumed run
    differs, and it cannot pack layers whose input is no multiple of the block of 64.
    """
    from bitsandbytes.nn import modules

    # mypy: imported there, not exported
    modules.has_avx512bf16 = lambda: False  # type: ignore[attr-defined]
