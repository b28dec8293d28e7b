"""What loading a model and asking it import late: seconds that a process which waits can spend."""

from __future__ import annotations


def ready() -> None:
    """Import it: for the base, for an adapter on it, for replies and for distributions."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from core.inference import decoding, scoring  # noqa: F401
    from core.models import internlm2

    internlm2.register()
