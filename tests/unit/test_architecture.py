"""The laws of the house: which package may import which, no circles, and sizes one can read.

docs/architecture.md gives the reasons. Imports are read from the syntax tree, those inside
functions too: an import that is put off is still an arrow.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

REPO = Path(__file__).resolve().parents[2]

#: From the lowest to the highest: a package imports only what stands before it.
ORDER = (
    "errors", "fsio", "trees", "paths", "conversation", "console", "records", "seal", "language",
    "text", "persona", "probes", "models", "inference", "data",
    "jobs", "training", "weights", "evaluation", "chat", "pipeline", "commands",
)  # fmt: skip

MODULE_LINES = 400
MEDIAN_LINES = 200
PARAMETERS = 7
FUNCTION_LINES_P95 = 35

#: What takes seconds to import and hundreds of megabytes: jobs and the chat worker have processes
#: of their own for it, a page never waits for it.
HEAVY = {"torch", "transformers", "peft", "datasets", "mmengine", "xtuner", "bitsandbytes"}

#: What belongs to the one engine, or must have a reason to be called elsewhere -> who may call it.
ENGINE = {
    "generate": {"core.chat.worker", "core.chat.live"},  # requests to the chat worker, no model's
    "multinomial": set(),  # core/inference/sampling.py draws with noise of its own
    "log_softmax": {
        "core.inference.scoring",
        "core.weights.prove",  # of logits that scoring gave
        "core.training.anchored",  # a loss that is trained on
    },
    "cross_entropy": {"core.training.compat"},  # the training loss, for XTuner's own step
    "AutoModelForCausalLM.from_pretrained": {
        "core.inference.whole",
        "core.models.prepared",  # to write a GGUF file as a folder, not to run it
    },
    "PeftModel.from_pretrained": {"core.inference.adapters"},
    "self.original.from_pretrained": {"core.weights.xtuner_tools"},  # XTuner's own merge
}

Arrow = tuple[str, str]


def modules(*packages: str) -> dict[str, Path]:
    """Dotted name -> file, of every module of the packages."""
    found = {}
    for package in packages:
        for path in sorted((REPO / package).rglob("*.py")):
            name = ".".join(path.relative_to(REPO).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def arrows(found: dict[str, Path]) -> Iterator[Arrow]:
    """(importer, imported) of every import of one of these modules by another."""
    for name, path in found.items():
        for node in ast.walk(parsed(path)):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            for target in targets:
                while target and target not in found:
                    target = target.rpartition(".")[0]
                if target and target != name:
                    yield name, target


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def at_start(path: Path) -> list[str]:
    """What a module imports when it is imported: not in functions, not for a type checker."""
    found: list[str] = []
    waiting: list[ast.AST] = [parsed(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


def way_to(heavy: set[str], start: str, found: dict[str, Path]) -> list[str]:
    """Modules from ``start`` to one that imports something heavy, or []."""
    ways, seen = [[start]], {start}
    for way in ways:
        for target in at_start(found[way[-1]]):
            if target.partition(".")[0] in heavy:
                return [*way, target]
            while target and target not in found:
                target = target.rpartition(".")[0]
            if target and target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def _package(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def back_arrows(found: dict[str, Path]) -> list[Arrow]:
    """Imports from a lower package of core to a higher one."""
    return [
        (source, target)
        for source, target in arrows(found)
        if _package(source) in ORDER
        and _package(target) in ORDER
        and ORDER.index(_package(target)) > ORDER.index(_package(source))
    ]


def circles(edges: set[Arrow]) -> list[set[str]]:
    """Groups of modules that import each other, directly or around corners (Tarjan, 1972)."""
    below: dict[str, list[str]] = {}
    for source, target in edges:
        below.setdefault(source, []).append(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    result: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for following in below.get(node, []):
            if following not in index:
                visit(following)
                low[node] = min(low[node], low[following])
            elif following in stack:
                low[node] = min(low[node], index[following])
        if low[node] == index[node]:
            group = set()
            while node not in group:
                group.add(stack.pop())
            if len(group) > 1:
                result.append(group)

    for node in list(below):
        if node not in index:
            visit(node)
    return result


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_import_runs_back_up() -> None:
    assert back_arrows(modules("core")) == []


def test_no_import_circle() -> None:
    assert circles(set(arrows(modules("core", "pages")))) == []


def test_there_is_one_engine() -> None:
    found: dict[str, set[str]] = {name: set() for name in ENGINE}
    for module, path in modules("core").items():
        for node in ast.walk(parsed(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            last = called.rpartition(".")[2]
            for name in {called, last} & ENGINE.keys():
                found[name].add(module)
            tokens_or_shape = called.startswith(("AutoTokenizer.", "AutoConfig."))
            known = called in ENGINE or last != "from_pretrained" or tokens_or_shape
            assert known, f"{module} loads weights by {called}"
    assert found == ENGINE


def test_a_name_means_one_thing() -> None:
    """Two modules of core define no public class of one name; but each job has its ``Spec``."""
    places: dict[str, list[str]] = {}
    for module, path in modules("core").items():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert set(twice) - {"Spec"} == set(), twice


def test_no_page_and_no_command_imports_torch_before_it_is_used() -> None:
    found = modules("core", "pages")
    starts = [name for name in found if name.startswith(("pages.", "core.commands."))]
    assert [way for name in starts if (way := way_to(HEAVY, name, found))] == []


def test_core_knows_nothing_of_the_pages() -> None:
    for name, path in modules("core").items():
        text = path.read_text(encoding="utf-8")
        assert "import streamlit" not in text and "from pages" not in text, name


def test_every_package_has_its_place_in_the_order() -> None:
    there = {_package(name) for name in modules("core")} - {"", "__main__"}
    assert there == set(ORDER)


def test_modules_can_be_read_in_one_sitting() -> None:
    lines = {
        name: path.read_text(encoding="utf-8").count("\n") for name, path in modules("core").items()
    }
    assert {n: c for n, c in lines.items() if c > MODULE_LINES} == {}
    assert statistics.median(c for c in lines.values() if c) <= MEDIAN_LINES


def test_functions_are_short_and_take_few_things() -> None:
    lengths, crowded = [], []
    for name, path in modules("core").items():
        for function in _functions(path):
            lengths.append((function.end_lineno or 0) - function.lineno + 1)
            given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            if len([a for a in given if a.arg not in ("self", "cls")]) > PARAMETERS:
                crowded.append(f"{name}.{function.name}")
    assert crowded == []
    assert sorted(lengths)[int(0.95 * len(lengths))] <= FUNCTION_LINES_P95


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("from core.data import lint", True),
        ("def late():\n    import core.commands.main", True),
        ("from core.text import claims", False),
    ],
)
def test_the_test_sees_a_back_arrow(tmp_path: Path, text: str, wrong: bool) -> None:
    extra = tmp_path / "extra.py"
    extra.write_text(text)
    found = {**modules("core"), "core.models.extra": extra}
    new = [arrow for arrow in back_arrows(found) if arrow[0] == "core.models.extra"]
    assert bool(new) is wrong


def test_the_test_sees_a_circle() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [{"a", "b", "c"}]
