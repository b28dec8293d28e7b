"""``python -m core dataset ...``: the Dataset page from a terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import fsio
from core.commands.located import located
from core.commands.pairs import parse_pairs
from core.conversation import read_conversations
from core.data.formats import export_rows
from core.data.ultrachat.backends import KEY_VARIABLE, URL_VARIABLE
from core.errors import UserError
from core.paths import DatasetPaths
from core.records import JobSpec

if TYPE_CHECKING:
    from core.data.build import DatasetSpec


def register(commands: Any) -> None:
    """Add ``dataset`` and its subcommands."""
    parser = commands.add_parser("dataset", help="build, look at, import and export datasets")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _register_build(actions)
    _register_simulate(actions)
    _register_files(actions)
    listing = actions.add_parser("list", help="the datasets of this workspace, newest first")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=_list)
    lint = actions.add_parser("lint", help="what is wrong with a dataset or a persona pack")
    lint.add_argument("what", help="dataset name or folder, or a pack (.yaml or its name)")
    lint.set_defaults(run=_lint)
    report = actions.add_parser("report", help="counts, lengths, diversity, budget")
    _dataset_argument(report)
    report.add_argument("--model", type=located, default="bundled", help="whose tokenizer counts")
    report.add_argument("--max-length", type=int, default=512)
    report.add_argument("--rows-per-step", type=int, default=16, help="batch x accumulation")
    report.add_argument("--steps", type=int, help="optimizer steps of the planned run")
    report.add_argument("--json", action="store_true", help="the whole report as JSON")
    report.set_defaults(run=_report)
    delete = actions.add_parser("delete", help="remove a dataset for good")
    delete.add_argument("name")
    delete.set_defaults(run=_delete)


def _dataset_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="name or folder")


def _register_build(actions: Any) -> None:
    build = actions.add_parser("build", help="a dataset from a persona pack and a model")
    build.add_argument("pack", help="a pack (.yaml or its name)")
    build.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SLOT=VALUE",
        dest="slots",
        help="fill a slot, e.g. name=Mira or name.zh=米拉; may be repeated",
    )
    build.add_argument("--name", help="name of the new dataset")
    build.add_argument("--out", type=Path, help="a folder instead of a name")
    build.add_argument("--model", type=located, default="bundled", help="bundled, folder or hub id")
    build.add_argument("--locales", help="comma-separated; those of pack and model if not given")
    build.add_argument("--seed", type=int)
    build.add_argument("--rehearsal-ratio", type=float, help="general rows an identity row")
    build.add_argument("--near-miss-ratio", type=float, help="near-miss rows an identity row")
    build.add_argument("--multi-turn", type=float, help="share of identity rows, 0 to 1")
    build.add_argument("--max-rows", type=int, help="identity rows")
    build.add_argument(
        "--system-share",
        type=float,
        metavar="SHARE",
        help="share of the rows that start with the persona's system turn, 0 to 1 (default: 0.25 "
        "where the base's chat template names a vendor, else 0)",
    )
    build.set_defaults(run=_build)


def _register_simulate(actions: Any) -> None:
    sim = actions.add_parser("simulate", help="dialogues between two models (UltraChat)")
    sim.add_argument("name", help="name of the new dataset")
    sim.add_argument("--dialogues", type=int)
    sim.add_argument(
        "--add-to", default="", metavar="DATASET", help="take over its rows, persona and probes"
    )
    sim.add_argument("--base", type=located, default="bundled", help="the model to be trained")
    sim.add_argument("--assistant-model", type=located, help="folder, hub id or endpoint:NAME")
    sim.add_argument("--user-model", type=located, help="the same model if not given")
    sim.add_argument("--locale")
    sim.add_argument("--seed", type=int)
    sim.add_argument("--kinds", help="comma-separated: question, creation, material")
    sim.add_argument("--identity", type=float, help="share of later rounds about the persona")
    sim.add_argument("--reply-tokens", type=int)
    sim.add_argument("--user-tokens", type=int)
    sim.add_argument("--user-prompt", choices=("auto", "swapped", "transcript"))
    sim.add_argument("--user-temperature", type=float)
    sim.add_argument("--max-calls", type=int, help="stop after so many model calls")
    sim.set_defaults(run=_simulate)


def _register_files(actions: Any) -> None:
    export = actions.add_parser("export", help="write a dataset in another format")
    _dataset_argument(export)
    export.add_argument("out", type=Path, help="file to write (JSON Lines)")
    _format_argument(export, "messages")
    export.set_defaults(run=_export)
    load = actions.add_parser("import", help="read a file of conversations")
    load.add_argument("file", type=Path)
    load.add_argument("--name", help="name of the new dataset; the file's name if not given")
    load.add_argument("--add-to", metavar="DATASET", help="new version of it with these rows too")
    load.add_argument("--strict", action="store_true", help="save nothing if a row is bad")
    load.add_argument("--dry-run", action="store_true", help="only show what would be saved")
    load.add_argument(
        "--columns",
        metavar="question=COL,answer=COL[,system=COL]",
        help="which column or key holds which text (told from the names if not given)",
    )
    load.add_argument("--fill", type=_pack, metavar="PERSONA", help="fill placeholders with it")
    load.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SLOT=VALUE",
        dest="slots",
        help="fill placeholders such as {{name}}, or a slot of --fill; may be repeated",
    )
    _format_argument(load, None)
    load.set_defaults(run=_import)


def _format_argument(parser: argparse.ArgumentParser, default: str | None) -> None:
    known = "messages, xtuner, sharegpt, alpaca, ultrachat"
    parser.add_argument(
        "--format",
        default=default,
        help=f"{known}" + ("" if default else " (told from the rows if not given)"),
    )


def _locate(text: str) -> DatasetPaths:
    """A dataset by name, or by folder."""
    from core.data import store

    folder = Path(text)
    if folder.is_dir() and (folder / "dataset.json").is_file():
        return DatasetPaths(folder.resolve())
    return store.dataset(text)


def _pack(text: str) -> Path:
    from core.persona import packs

    return Path(text).resolve() if text.endswith((".yaml", ".yml")) else packs.find(text)


def _complete(spec: JobSpec, name: str, pass_env: tuple[str, ...] = ()) -> int:
    from core.commands.follow import complete

    print(fsio.dump_json(complete(spec, name, pass_env=pass_env), indent=2))
    return 0


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the spec's own defaults stand for the others."""
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}


def _build(args: argparse.Namespace) -> int:
    from core.data import store
    from core.data.build import DatasetSpec
    from core.data.generate_job import Spec
    from core.persona.persona import load_persona

    overrides = parse_pairs(args.slots, "--set")
    pack = _pack(args.pack)
    persona = load_persona(pack, overrides)
    spec = {
        "persona_path": str(pack),
        "overrides": overrides,
        "model": args.model,
        **({"locales": args.locales.split(",")} if args.locales else {}),
        **_given(
            args,
            *("seed", "rehearsal_ratio", "near_miss_ratio", "multi_turn", "max_rows"),
            "system_share",
        ),
    }
    out = str(args.out.resolve()) if args.out else None
    name = "" if out else args.name or store.suggested_name(persona)
    asked = Spec(spec=DatasetSpec.from_dict(spec), name=name, out=out)
    _say_who_the_base_is(args.model, asked.spec)
    return _complete(asked, f"dataset {name or args.out}")


def _say_who_the_base_is(model: str, spec: DatasetSpec) -> None:
    """An identity that the base's template gives it is told before anything is built."""
    from core.data.build import introduced
    from core.models import catalog

    if said := introduced(catalog.resolve(model), spec):
        print(said, file=sys.stderr)


def _simulate(args: argparse.Namespace) -> int:
    from core.data import store
    from core.data.simulate_job import Spec
    from core.data.simulator import SimulateSpec, estimate

    if store.exists(args.name):
        raise UserError(f"the name {args.name!r} is taken", fix=f"use {store.free_name(args.name)}")
    values = _given(
        args,
        "dialogues",
        "assistant_model",
        "user_model",
        "locale",
        "seed",
        "identity",
        "reply_tokens",
        "user_tokens",
        "user_prompt",
        "user_temperature",
        "max_calls",
    )
    if "assistant_model" in values:
        values.setdefault("user_model", values["assistant_model"])
    if args.kinds:
        values["kinds"] = args.kinds.split(",")
    spec = SimulateSpec.from_dict(values)
    cost = estimate(spec)
    print(
        f"{cost.calls:,} model calls if every turn passes, at most {cost.max_calls:,} calls and "
        f"{cost.max_tokens:,} tokens",
        file=sys.stderr,
    )
    asked = Spec(spec=spec, name=args.name, dataset=args.add_to, base=args.base)
    return _complete(asked, f"dialogues {args.name}", (URL_VARIABLE, KEY_VARIABLE))


def _list(args: argparse.Namespace) -> int:
    from core.data import store

    found = store.list_datasets()
    for s in found:
        if args.json:
            print(fsio.dump_json(asdict(s)))
        elif s.problem:
            print(f"{s.name}  unusable: {s.problem}")
        else:
            kinds = ", ".join(f"{n:,} {k}" for k, n in s.kinds.items())
            parent = f"  from {s.parent}" if s.parent else ""
            print(f"{s.name}  {s.rows:,} rows ({kinds})  {fsio.human_bytes(s.bytes)}{parent}")
    if not found and not args.json:
        print("no datasets; build one with: python -m core dataset build assistant")
    return 0


def _lint(args: argparse.Namespace) -> int:
    from core.data.pack_lint import lint_pack
    from core.data.row_lint import lint_rows
    from core.persona import packs
    from core.persona.persona import load_persona
    from core.probes.suites import probes_in

    if args.what.endswith((".yaml", ".yml")) or args.what in packs.all_packs():
        findings = lint_pack(load_persona(_pack(args.what)))
    else:
        at = _locate(args.what)
        persona = load_persona(at.persona) if at.persona.is_file() else None
        rows = read_conversations(at.train)
        findings = [
            *(lint_pack(persona) if persona else []),
            *lint_rows(rows, persona, probes=probes_in(at.probes)),
        ]
    for f in findings:
        times = f" ({f.count} times)" if f.count > 1 else ""
        print(f"{f.level}: {f.where}: {f.message}{times}; {f.fix}")
    errors = sum(f.level == "error" for f in findings)
    print(f"{len(findings)} findings, {errors} errors")
    return 1 if errors else 0


def _report(args: argparse.Namespace) -> int:
    from core.data.report import report_dataset
    from core.models.catalog import resolve
    from core.training import budget

    at = _locate(args.dataset)
    report = report_dataset(
        at,
        resolve(args.model).path,
        max_length=args.max_length,
    )
    plan = budget.for_dataset(report, rows_per_step=args.rows_per_step, steps=args.steps)
    if args.json:
        print(fsio.dump_json({**asdict(report), "budget": asdict(plan)}, indent=2))
        return 0
    lengths = report.lengths
    print(f"rows      {report.rows:,} ({_counts(report.kinds)}); rounds {_counts(report.rounds)}")
    for locale, kinds in report.locales.items() if len(report.locales) > 1 else ():
        print(f"{locale:<9} {_counts(kinds)}")
    print(
        f"tokens    median {lengths.p50}, 95 % {lengths.p95}, longest {lengths.longest}; "
        f"{lengths.over_limit} over {lengths.limit}"
    )
    if report.general_to_identity:
        by_rows, by_loss = report.general_to_identity
        print(f"mix       general : identity {by_rows:.1f} by rows, {by_loss:.1f} by loss tokens")
    for advice in plan.advice:
        print(f"{advice.level:<9} {advice.text}: {advice.why}")
    for finding in report.findings:
        print(f"{finding.level:<9} {finding.message} ({finding.count}); {finding.fix}")
    return 1 if report.errors else 0


def _counts(values: dict[Any, int]) -> str:
    return ", ".join(f"{k}: {n:,}" for k, n in values.items())


def _export(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise UserError(f"{args.out} exists", fix="choose another file name")
    rows = read_conversations(_locate(args.dataset).train)
    done = export_rows(rows, args.format, args.out)
    print(f"{done.rows:,} rows, {fsio.human_bytes(done.bytes)}, in {done.path}")
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _import(args: argparse.Namespace) -> int:
    from core.data import store
    from core.data.drafts import DatasetDraft
    from core.data.importer import UniqueIds, import_file

    columns = parse_pairs(args.columns.split(",") if args.columns else [], "--columns")
    report = import_file(
        args.file, fmt=args.format, columns=columns, fill=_filling(args), max_bytes=None
    )
    for problem in report.problems:
        print(f"{args.file}: {problem}", file=sys.stderr)
    for line in report.lines():
        print(line, file=sys.stderr)
    if report.bad and args.strict:
        raise UserError(
            "nothing was saved",
            why="--strict was given and there are bad rows",
            fix="mend the rows, or leave --strict out",
        )
    if args.dry_run:
        for row in report.rows[:5]:
            print("\n".join(f"{m['role']}: {m['content']}" for m in row.messages), end="\n\n")
        return 0
    name = args.name or store.free_name(args.add_to or fsio.slug(args.file.stem, "import"))
    if args.add_to:
        draft = DatasetDraft(args.add_to)
        rows = [*draft.rows(), *map(UniqueIds(draft.ids()), report.rows)]
        store.save(name, rows, parent=args.add_to, note=f"with {args.file.name}")
    else:
        store.save(name, report.rows, note=f"imported from {args.file.name}")
    print(f"{len(report.rows):,} rows saved in dataset {name}")
    return 0


def _filling(args: argparse.Namespace) -> Any:
    """What placeholders are filled with: a persona, or single values."""
    from core.data import placeholders
    from core.persona.persona import load_persona

    values = parse_pairs(args.slots, "--set")
    if args.fill:
        return placeholders.of_persona(load_persona(args.fill, values))
    return placeholders.of_values(values) if values else None


def _delete(args: argparse.Namespace) -> int:
    from core.data import store

    store.delete(args.name)
    print(f"dataset {args.name} deleted")
    return 0
