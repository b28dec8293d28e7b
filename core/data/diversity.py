"""How varied texts are: distinct-n, self-BLEU, gzip ratio, duplicates and near duplicates.

Reference band for identity replies, measured on a public hand-written identity set of 91 rows:
distinct-1 0.11, distinct-2 0.31, self-BLEU 77, gzip ratio 4, near duplicates 12 %. One sentence
copied 10,000 times: distinct 0, self-BLEU 100, gzip ratio 200, near duplicates 100 %.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from core.data.findings import Finding
from core.text.textstats import ngrams, normal, tokens

#: Texts compared pairwise; more are sampled. 3,000 take about a second.
MAX_COMPARED = 3000
#: Texts whose BLEU against the others is taken.
MAX_BLEU = 200
#: Char-3-gram Jaccard from which two replies count as near duplicates.
NEAR_REPLY = 0.7
#: Edit ratio (0-100) from which two questions do. Short paraphrases share few n-grams.
NEAR_QUESTION = 90.0

#: Share of near copies from which it is said; 12 % is what a hand-written set has.
MUCH_ALIKE = 0.3
#: Fewer different replies say nothing about a share.
_ENOUGH = 20


@dataclass(frozen=True)
class Diversity:
    """Measures of one set of texts.

    Attributes:
        texts: how many there are, ``unique`` of them after normalising case and marks.
        distinct: share of different n-grams among all, for n = 1, 2, 3.
        self_bleu: mean BLEU-4 of a text against all others, 0-100; high = alike.
        gzip_ratio: bytes over compressed bytes; high = repeated.
        near_duplicates: share of the unique texts (of ``compared``) that resemble another.
        most_copies: how often the most frequent text occurs.
    """

    texts: int
    unique: int
    distinct: tuple[float, float, float]
    self_bleu: float
    gzip_ratio: float
    near_duplicates: float
    compared: int
    most_copies: int


def measure(texts: Sequence[str], *, questions: bool = False, seed: int = 0) -> Diversity:
    """Measure a set of texts (``questions``: near duplicates by edit ratio, else by Jaccard)."""
    split = [tokens(t) for t in texts]
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in texts:
        key = normal(text)
        first.setdefault(key, text)
        counts[key] += 1
    unique = list(first)
    sample = unique
    if len(unique) > MAX_COMPARED:
        sample = Random(f"near/{seed}").sample(unique, MAX_COMPARED)
    near = near_questions(sample) if questions else near_replies(sample)
    return Diversity(
        texts=len(texts),
        unique=len(unique),
        distinct=(_distinct(split, 1), _distinct(split, 2), _distinct(split, 3)),
        self_bleu=self_bleu(split, seed=seed),
        gzip_ratio=gzip_ratio(texts),
        near_duplicates=sum(near) / len(sample) if sample else 0.0,
        compared=len(sample),
        most_copies=max(counts.values(), default=0),
    )


def findings(replies: Diversity) -> list[Finding]:
    """What is said of identity replies that are much alike; a few hand-written ones always are."""
    if replies.near_duplicates <= MUCH_ALIKE or replies.compared < _ENOUGH:
        return []
    return [
        Finding(
            "note",
            "near_duplicates",
            f"{replies.near_duplicates:.0%} of the persona's different replies are near copies of "
            "another",
            "add reply wordings to the pack, or rows of your own; a few wordings are learned by "
            "heart",
            count=round(replies.near_duplicates * replies.compared),
        )
    ]


def _distinct(split: Sequence[Sequence[str]], n: int) -> float:
    grams = [g for parts in split for g in ngrams(parts, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def gzip_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts over their gzip size; 0 for nothing."""
    raw = "\n".join(texts).encode("utf-8")
    return len(raw) / len(gzip.compress(raw, 6, mtime=0)) if raw else 0.0


def self_bleu(split: Sequence[Sequence[str]], *, seed: int = 0) -> float:
    """Mean sentence BLEU-4 of each text against all others (a sample of 200), 0-100.

    Against n - 1 references the clipped count of an n-gram is its highest count in any *other*
    text, so the two highest counts of each n-gram are enough and the cost is linear. Add-one
    smoothing from bigrams on; the brevity penalty is 1, since some other text is about as long.
    """
    texts = [list(t) for t in split if t]
    if len(texts) > MAX_BLEU:
        texts = Random(f"bleu/{seed}").sample(texts, MAX_BLEU)
    if len(texts) < 2:
        return 0.0
    grams = [[Counter(ngrams(t, n)) for n in range(1, 5)] for t in texts]
    best: list[dict[tuple[str, ...], tuple[int, int]]] = [{} for _ in range(4)]
    for text in grams:
        for n, counts in enumerate(text):
            for gram, count in counts.items():
                one, two = best[n].get(gram, (0, 0))
                best[n][gram] = (max(one, count), max(two, min(one, count)))
    return sum(_bleu(text, best) for text in grams) / len(grams) * 100


def _bleu(
    text: list[Counter[tuple[str, ...]]], best: list[dict[tuple[str, ...], tuple[int, int]]]
) -> float:
    logs = 0.0
    for n, counts in enumerate(text):
        total = sum(counts.values())
        # Where this text holds the highest count itself, the second highest is the others'.
        hits = sum(
            min(c, best[n][g][1] if c == best[n][g][0] else best[n][g][0])
            for g, c in counts.items()
        )
        smooth = 1 if n else 0
        if hits + smooth == 0:
            return 0.0
        logs += math.log((hits + smooth) / (total + smooth))
    return math.exp(logs / 4)


def near_questions(plain: Sequence[str]) -> list[bool]:
    """Whether each text has an edit ratio of NEAR_QUESTION or more to another."""
    import numpy as np
    from rapidfuzz import fuzz, process

    if len(plain) < 2:
        return [False] * len(plain)
    found = np.zeros(len(plain), dtype=bool)
    for start in range(0, len(plain), 500):
        block = plain[start : start + 500]
        scores = process.cdist(
            block, plain, scorer=fuzz.ratio, score_cutoff=NEAR_QUESTION, dtype=np.uint8, workers=2
        )
        scores[np.arange(len(block)), np.arange(start, start + len(block))] = 0
        found[start : start + len(block)] = scores.max(axis=1) > 0
    return [bool(x) for x in found]


def near_replies(plain: Sequence[str]) -> list[bool]:
    """Whether each text shares NEAR_REPLY of its char-3-grams (Jaccard) with another."""
    import numpy as np

    if len(plain) < 2:
        return [False] * len(plain)
    matrix, sizes = _char_matrix(plain)
    found = np.zeros(len(plain), dtype=bool)
    for start in range(0, len(plain), 500):
        shared = np.asarray((matrix[start : start + 500] @ matrix.T).todense(), dtype=np.float32)
        union = sizes[start : start + shared.shape[0], None] + sizes[None, :] - shared
        score = shared / np.maximum(union, 1)
        score[np.arange(shared.shape[0]), np.arange(start, start + shared.shape[0])] = 0
        found[start : start + shared.shape[0]] = score.max(axis=1) >= NEAR_REPLY
    return [bool(x) for x in found]


def _char_matrix(plain: Sequence[str]) -> tuple[Any, Any]:
    """Sparse 0/1 matrix (texts, char-3-grams) and the number of grams of each text."""
    import numpy as np
    from scipy.sparse import csr_matrix

    index: dict[str, int] = {}
    columns: list[int] = []
    starts = [0]
    for text in plain:
        grams = {text[i : i + 3] for i in range(max(1, len(text) - 2))}
        columns += sorted(index.setdefault(g, len(index)) for g in grams)
        starts.append(len(columns))
    data = np.ones(len(columns), dtype=np.float32)
    matrix = csr_matrix((data, columns, starts), shape=(len(plain), len(index)))
    return matrix, np.diff(np.array(starts)).astype(np.float32)
