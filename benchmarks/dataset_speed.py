"""Speed of the dataset studio: ``python benchmarks/dataset_speed.py [--pack FILE]``.

Prints, for this machine: 2,000 multi-turn rows from the graph, 100,000 rows written to a file with
the growth of the process's memory, and lint + report of 5,000 rows. No model weights are loaded;
the report needs the tokenizer of the bundled model.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from core import fsio  # noqa: E402
from core.conversation import Conversation  # noqa: E402
from core.data.generation import held_out, identity_rows  # noqa: E402
from core.data.report import report_rows  # noqa: E402
from core.inference.load import load_tokenizer  # noqa: E402
from core.models import bundled  # noqa: E402
from core.persona.persona import Persona, load_persona  # noqa: E402


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_mb() -> float:
    """Peak resident memory of this process so far (ru_maxrss is in kB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def write(persona: Persona, count: int, multi_turn: float, seed: int = 0) -> int:
    """Stream rows to a file that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        rows = identity_rows(
            persona, locales=persona.locales, seed=seed, limit=count, multi_turn=multi_turn
        )
        return fsio.write_jsonl(Path(folder) / "rows.jsonl", (r.to_row() for r in rows))


def main() -> None:
    """Run the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, default=REPO / "data_templates" / "assistant.yaml")
    persona = load_persona(parser.parse_args().pack)

    seconds, rows = timed(lambda: write(persona, 2_000, 1.0))
    print(f"{rows:,} multi-turn rows: {seconds:.2f} s (limit 5)")

    write(persona, 10_000, 0.3)
    before = peak_mb()
    seconds, rows = timed(lambda: write(persona, 100_000, 0.3))
    print(
        f"{rows:,} rows: {seconds:.1f} s (limit 90); peak memory {before:.0f} MB at 10,000 rows, "
        f"{peak_mb():.0f} MB at {rows:,}"
    )

    tokenizer = load_tokenizer(bundled.ensure())
    sample: list[Conversation] = list(
        identity_rows(persona, locales=persona.locales, seed=1, limit=5_000)
    )
    probes = held_out(persona, locales=persona.locales, seed=1)
    seconds, report = timed(lambda: report_rows(sample, tokenizer, persona=persona, probes=probes))
    print(
        f"lint + report of {report.rows:,} rows: {seconds:.1f} s (limit 10); "
        f"{len(report.findings)} findings"
    )


if __name__ == "__main__":
    main()
