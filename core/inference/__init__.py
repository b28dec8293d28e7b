"""One inference engine: rehearsal, simulation, samples, scorecard, sweep, proof and chat ask it.

- One place that loads (``load``) and that attaches adapters (``adapters``).
- One copy of weights with its adapters (``resident``); a ``Voice`` is who answers. It also decides
  whether the lean forward (``llama``, ``fused``) computes what transformers computes.
- One decode loop (``decoding``), over three backends behind one protocol (``backend``): ``lean`` on
  a CPU, ``graph`` on a GPU, and ``padded``, transformers' own forward, for all other models.
- One sampler (``sampling``), one record of settings (``settings``), one text stream (``stream``).
- One pass over given tokens (``scoring``): log-probabilities, KL and loss.
"""
