"""How often is the scorer right? Precision and recall by label, and the confusion table.

    python benchmarks/scorer_quality.py [FILE.jsonl ...]
    python benchmarks/scorer_quality.py --draw 100 RUN/replies.jsonl ... > to_label.jsonl

Each line: {"label", "prompt", "reply", "must": [[spelling, ...], ...], "locale", "must_not"}.
``--draw`` takes replies from real runs, identity suites only, without the scorer's label: write the
right one into each "label" by hand. ``tests/data/labelled_replies.jsonl`` holds such replies,
labelled before the scorer saw them; ``tests/data/scorer_cases.jsonl`` the hard cases that the
scorer was written against.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import fsio
from core.conversation import Probe
from core.probes.scorer import LABELS, score_reply

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
#: Names that no persona of the labelled files may claim.
FORBIDDEN = [
    "ChatGPT",
    "GPT-4",
    "OpenAI",
    "Claude",
    "Anthropic",
    "Gemini",
    "Google",
    "Llama",
    "Copilot",
    "Siri",
    "SmolLM",
    "Hugging Face",
    "Qwen",
    "Alibaba",
    "InternLM",
    "通义千问",
    "阿里云",
    "阿里巴巴",
    "书生",
    "豆包",
    "字节跳动",
    "文心一言",
    "百度",
    "腾讯",
]


def judge(row: dict[str, Any]) -> str:
    """The scorer's label for one labelled row."""
    probe = Probe(
        id="",
        suite="labelled",
        messages=[{"role": "user", "content": row["prompt"]}],
        locale=row.get("locale", "en"),
        must=row.get("must", []),
        must_any=row.get("must_any", []),
        must_not=row.get("must_not", FORBIDDEN),
    )
    return score_reply(row["reply"], probe).label


def confusion(rows: Iterable[dict[str, Any]]) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(true, given) counts, and a line for each disagreement."""
    table: Counter[tuple[str, str]] = Counter()
    wrong = []
    for row in rows:
        given = judge(row)
        table[row["label"], given] += 1
        if given != row["label"]:
            wrong.append(f"{row['label']} taken for {given}: {row['prompt']!r} -> {row['reply']!r}")
    return table, wrong


def report(table: Counter[tuple[str, str]]) -> str:
    """The table with precision and recall of each label."""
    lines = ["true \\ given " + "".join(f"{g:>7}" for g in LABELS) + "   recall"]
    for true in LABELS:
        row = [table[true, g] for g in LABELS]
        share = f"{table[true, true] / sum(row):9.3f}" if sum(row) else "        -"
        lines.append(f"{true:12} " + "".join(f"{n:7}" for n in row) + share)
    sums = [sum(table[t, g] for t in LABELS) for g in LABELS]
    shares = [table[g, g] / s if s else None for g, s in zip(LABELS, sums, strict=True)]
    cells = (f"{share:7.3f}" if share is not None else "      -" for share in shares)
    lines.append("precision    " + "".join(cells))
    return "\n".join(lines)


def draw(files: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """Unlabelled replies, spread over models and suites, each reply once."""
    keep = ("prompt", "reply", "must", "must_any", "must_not", "locale", "model", "suite")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    seen: set[tuple[str, str]] = set()
    for path in files:
        for row in fsio.read_jsonl(path):
            if row["suite"] in ("general", "near_miss", "instructions"):
                continue
            key = (row["prompt"], row["reply"])
            if key not in seen:
                seen.add(key)
                groups.setdefault((row["model"], row["suite"]), []).append(
                    {"label": "", **{k: row[k] for k in keep}}
                )
    for group in groups.values():
        Random(0).shuffle(group)
    longest = max(map(len, groups.values()), default=0)
    mixed = [group[k] for k in range(longest) for group in groups.values() if k < len(group)]
    return mixed[:count]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit status 1 if no file has rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--draw", type=int, metavar="N", help="print N replies to be labelled")
    args = parser.parse_args(argv)
    if args.draw:
        for row in draw(args.files, args.draw):
            print(fsio.dump_json(row))
        return 0
    files = args.files or [DATA / "labelled_replies.jsonl", DATA / "scorer_cases.jsonl"]
    done = 0
    for path in files:
        if not path.is_file():
            print(f"{path.name}: not there")
            continue
        rows = list(fsio.read_jsonl(path))
        table, wrong = confusion(rows)
        right = sum(n for (t, g), n in table.items() if t == g)
        print(f"\n{path.name}: {right} of {len(rows)} right\n{report(table)}")
        print("\n".join(wrong))
        done += len(rows)
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
