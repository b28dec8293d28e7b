"""What loading a model and asking it import late: seconds that a process which waits can spend."""

from __future__ import annotations


def ready() -> None:
    """Import it: for the base, for an adapter on it, for replies and for distributions."""
    import peft
    import transformers

    from core.inference import decoding, scoring
    from core.models import internlm2

    internlm2.register()
    assert peft and transformers.AutoModelForCausalLM and transformers.AutoTokenizer
    assert decoding and scoring
