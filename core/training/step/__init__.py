"""The training step of Llama-shaped models: the same function as XTuner's step, in less work.

``held`` keeps the dequantized base, ``packing`` drops the padding, ``linear`` and ``layer`` compute
a decoder layer and its gradients by hand, ``loss`` never holds a vocabulary-wide float32 matrix,
``fused`` puts them in the place of XTuner's ``compute_loss``. Each can be turned off in the spec.
"""
