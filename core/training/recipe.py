"""The learning rate for a base, from what is known before training.

What is measured (identity data of ``core.data.build``, 16 rows a step, rank 64, alpha/r 2, cosine):

=====================  ======  ==========  =======================================================
base                   NF4     rate        outcome
=====================  ======  ==========  =======================================================
SmolLM2-135M-Instruct  yes     1e-3        LEARNED in 7 runs of 9, nothing general lost in any;
                                           5e-4 missed held-out wordings
Qwen2.5-Coder-0.5B     yes     1e-3        ruined: perplexity of general replies 2.1 x the base's
                       yes     2.7e-4      LEARNED in 9 runs of 9, perplexity 0.91 to 0.99 x
                       yes     1.8e-4      LEARNED in 6 runs of 9, with the rows of before: the old
                                           identity is what failed
                       no      4e-4        LEARNED with the mix with which NF4 at 2e-4 was not
=====================  ======  ==========  =======================================================

What is extrapolated: everything between and beyond these two models. Between them the rate follows
the line through both in log-log; two bases differ in more than size (family, training tokens), so
the line is a guess. Above 0.5B it falls with the square root of the size, down to 1e-4, the rate at
which public recipes for 0.5B to 8B with alpha/r from 2 to 4 report that an identity was learned
(ms-swift, LLaMA-Factory). XTuner's tutorial trains 1.8B with 2e-4 at alpha/r 0.25; under Adam the
push grows with rate times alpha/r, so that is weaker than anything here.
"""

from __future__ import annotations

import math

from core.training.spec import Quantize

#: (parameters, peak rate) where a run was LEARNED with an NF4 base.
SMALL = (134.5e6, 1e-3)
LARGE = (494e6, 3e-4)
#: What a base without NF4's rounding bore at ``LARGE``, as a multiple.
UNQUANTIZED = 4 / 3
#: The rate of public recipes for larger models.
FLOOR = 1e-4
#: Start warns from this multiple of the rule on: at 0.5B 3.3 times the rate of the rule ruined the
#: model, 1.3 times was LEARNED (docs/results/recipe.md).
FAR_ABOVE = 3.0


def learning_rate(parameters: float, quantize: Quantize) -> tuple[float, str]:
    """Peak learning rate at alpha/r 2, two significant digits, and its reason.

    Args:
        parameters: of the base, embeddings included once if they are tied.
    """
    (small, high), (large, low) = SMALL, LARGE
    if parameters <= small:
        rate, basis = high, "measured at 135M"
    elif parameters <= large:
        share = math.log(parameters / small) / math.log(large / small)
        rate, basis = high * (low / high) ** share, "between what was measured at 135M and at 0.5B"
    else:
        rate = max(FLOOR, low * math.sqrt(large / parameters))
        basis = "measured up to 0.5B, beyond it a guess"
    if quantize == "none" and parameters > small:
        rate, basis = min(high, rate * UNQUANTIZED), f"{basis}; a third more without NF4"
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"
    return float(f"{rate:.1e}"), f"{size} parameters: {basis}"


def too_high(lr: float, scale: float, parameters: float, quantize: Quantize) -> str:
    """What to say before a run whose rate is far above the rule; '' if it is not.

    Args:
        scale: alpha/r. Under Adam the push grows with rate times alpha/r; the rule is for 2.
    """
    suited, reason = learning_rate(parameters, quantize)
    suited *= 2 / scale if scale > 0 else 1
    times = lr / suited
    if times < FAR_ABOVE:
        return ""
    return (
        f"the learning rate {lr:.2g} is {times:,.0f} times what suits this model ({suited:.1g}; "
        f"{reason}): expect it to lose what the base can do"
    )
