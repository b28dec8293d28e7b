"""Two models talk: one plays the user, one the assistant, after UltraChat (arXiv 2305.14233).

``openings`` makes first lines, ``cards`` the user's role, ``checks`` looks at every turn,
``backends`` reaches a model, ``loop`` plays the dialogues. The generator of the paper was never
published; this follows its description. Phrases are our own.
"""
