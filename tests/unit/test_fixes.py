"""What a message tells a person to do gets past that message.

Every ``UserError`` of the program whose ``fix`` names a thing that this program can do (a command,
an option, a setting, a choice from a list) is found in the source and stands here: followed by a
test of this module, by a test elsewhere, or with the reason why no test can follow it. A new
message that is none of the three fails the first test.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import fsio, paths
from core.chat.batch import MAX_PROMPTS, parse_prompts
from core.commands import main as command_line
from core.commands.main import main
from core.commands.pairs import parse_pairs
from core.conversation import Conversation
from core.data import formats, generate_job, simulate_job, store
from core.data.build import DatasetSpec
from core.data.importer import import_file
from core.data.simulator import SimulateSpec
from core.errors import UserError, UserErrors
from core.evaluation.plan import plan
from core.inference.settings import GenerationSettings, preset
from core.jobs import kinds
from core.models import chat_templates
from core.models.device import describe
from core.persona import packs
from core.persona.persona import load_persona, parse_persona
from core.probes import suites
from core.training import preflight, spec_fields
from core.training.spec import TrainSpec

ROOT = Path(__file__).parents[2]
ASSISTANT = paths.TEMPLATES / "assistant.yaml"
ROW = Conversation(
    "a", [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Luna."}]
)
#: Words by which a fix names something that this program does.
OURS = re.compile(
    r"python -m core|--[a-z]|\bresume\b|engine|Dataset page|\bbuild\b|\bconvert\b|PERSONA_"
    r"|train (?:again|with)|choose (?:float32|no DeepSpeed)|\bset (?:it|nodes)|one of|did you mean"
    r"|free_name|slug\(|stop it|start it|list them|merge again|duplicate|leave .* out|write NAME"
    r"|use \{allowed|at most|\{limits|own packs|\bimport\b|start anew|new run|another name"
    r"|choose another (?:name|folder|file name|--output)"
)

#: Part of a fix, as it stands in the source -> the test that follows it.
ELSEWHERE = {
    "give one of its files": "test_wild_inputs::test_a_folder_says_which_of_its_files",
    "build without its replies": "test_data_rehearsal::"
    "test_a_base_that_talks_nonsense_is_given_up_early",
    "convert with engine 'xtuner'": "test_weights_advice::"
    "test_a_config_that_computes_its_values_is_converted_by_engine_xtuner",
    "leave this spelling out of the aliases": "test_data_persona::"
    "test_names_that_no_reply_can_be_scored_by_are_refused_at_once",
    "add --resume to go on with that one": "test_tune::"
    "test_an_interrupted_training_goes_on_from_its_checkpoint",
}
#: Part of a fix -> why no test can follow it.
NOT_FOLLOWED = {
    "pip install": "it changes the environment that the tests run in",
    "free disk space": "the disk of whoever runs the tests (tests/faults fills one of its own)",
    "set it before the app is started": "an environment variable of another process",
    "load the models again": "a person's moment in the chat: the worker is busy, then it is not",
    "or wait": "a person's moment in the chat: the reply is over, then it is not",
    "resume from": "which checkpoint is whole is known only where one is broken: "
    "test_training_checkpoints and tests/faults go on from the earlier one",
    "look at the end of the log": "as above",
    "use an earlier checkpoint": "as above",
    "choose one of the run's list": "as above",
    "resume it in the workspace": "the key that signed it is on another machine",
    "start a new run": "anything can be started anew",
    "train again": "the checkpoint's record is lost, a new training writes one",
    "start anew in another --output": "anything can be started anew",
    "set it back to": "test_training_preflight names the changed field; the old value is the spec",
    "build the dataset": "a dataset that is damaged or of another language is made again",
    "build it on the Dataset page": "as above",
    "strip the turns": "by hand, in the table of the Dataset page",
    "the adapter again": "the weights are lost; converting writes them",
    "convert the checkpoint again": "as above",
    "allow longer replies": "depends on what the base says",
    "put one of them into the reply": "by hand, in the pack",
    "edit chat_template": "by hand; what a template must say is for the model's maker",
    "what this machine has": "depends on the machine",
    "train with a checkpoint interval": "minutes of training; test_jobs_cli trains with one",
    "chat or instruct version": "another model; core model --chat-template has its own tests",
    "trust": "a person's decision about somebody's code",
    "use the command line": "the page cannot ask; the next message is that of the command",
    "python -m core stop": "a run that does not end: tests/faults/test_ends.py",
    "fp32 (--fp32)": "needs weights beyond the range of float16: test_weights_convert",
    "score it with `python -m core score": "the page's own list is empty; the command parses",
    "use engine 'fast'": "needs a config that runs code: test_weights_convert",
    "use engine 'stream'": "needs what engine xtuner cannot write: test_weights_merge",
    "start it first": "a run that was never started has no log to wait for",
    "stop it first": "a live run; tests/faults deletes it after stopping",
    "or remove this one": "folders: the other name is free or it is not",
    "restore train.jsonl, or import": "by hand; the importer's own tests are the step",
    "restore the file, or import": "as above",
    "choose the base in Compare": "the page's own choice; the command is parsed below",
    "start the app in it: PERSONA_HOME": "starts another server",
    "give the folder that holds it, e.g. one that": "another folder; the command is parsed below",
    "'choose another folder'": "as above",
    "choose the base that the adapter was trained on": "another folder: test_wild_adapters",
    "choose another folder, or delete this one": "as above",
    "give --base and --merged or --adapter": "needs two models: test_eval_scorecard gives them",
    "one of {', '.join(DTYPES)}": "the parser and the page offer no other",
    "one of {', '.join(_READ_BACK)}": "the parser and the page offer no other",
}
FOLLOWED: dict[str, Callable[[Path], None]] = {}


def follows(*fixes: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function as what follows these fixes."""

    def register(step: Callable[[Path], None]) -> Callable[[Path], None]:
        FOLLOWED.update(dict.fromkeys(fixes, step))
        return step

    return register


def advice(call: Callable[[], Any]) -> str:
    """The fix that a call's error names."""
    with pytest.raises(UserError) as caught:
        call()
    error = caught.value
    return error.problems[0].fix if isinstance(error, UserErrors) else error.fix


def ours() -> dict[str, str]:
    """Source of each fix that names something of ours -> the file that it stands in."""
    found = {}
    for file in [*(ROOT / "core").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]:
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UserError":
                fixes = [ast.unparse(k.value) for k in call.keywords if k.arg == "fix"]
                found |= {fix: file.name for fix in fixes if OURS.search(fix)}
    return found


def test_every_fix_that_names_something_of_ours_is_accounted_for() -> None:
    known = [*FOLLOWED, *CHOICES, *ELSEWHERE, *NOT_FOLLOWED]
    missing = {fix: file for fix, file in ours().items() if not any(k in fix for k in known)}
    assert not missing, "follow these fixes in a test: " + "\n".join(map(str, missing.items()))
    text = "\n".join(ours())
    assert not [k for k in known if k not in text], "no message says this any more"
    for place in ELSEWHERE.values():
        module, _, name = place.partition("::")
        source = (Path(__file__).parent / f"{module}.py").read_text("utf-8")
        assert f"def {name}(" in source, place


def test_every_command_that_a_text_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    sources = [p.read_text("utf-8") for d in ("core", "pages") for p in (ROOT / d).rglob("*.py")]
    named = {m for s in sources for m in re.findall(r"python -m core ([a-z]+(?: [a-z]+)?)\b", s)}
    helps = {}
    for words in sorted(named):
        for argv in (words.split(), words.split()[:1]):
            with pytest.raises(SystemExit) as ended:
                command_line.build_parser().parse_args([*argv, "--help"])
            helps[words] = capsys.readouterr().out
            if ended.value.code == 0:
                break
        assert ended.value.code == 0, f"python -m core {words} does not exist"
    options = {
        m for s in sources for m in re.findall(r"python -m core ([a-z]+) \S* ?(--[a-z-]+)", s)
    }
    for words, option in options - {(w, "--help") for w in named}:
        assert option in helps.get(words, option), f"python -m core {words} has no {option}"


# --- choices that a message lists ------------------------------------------------------------

#: Part of the fix -> a call with one value, which a list names where it is wrong.
CHOICES: dict[str, Callable[[str], Any]] = {
    "join(FORMATS)}": formats.get_format,
    "join(PLANS)}": plan,
    "join(PRESETS)}": preset,
    "join(packs) or '(none)'}": packs.find,
    "join(KINDS)}": kinds.kind_of,
    "join(TEMPLATES)}": chat_templates.source,
    "use one of: {', '.join(have)}": lambda name: suites.load_suite(name.split(".")[0], "en"),
    "use {allowed}": lambda value: GenerationSettings(
        temperature=float(re.findall(r"[\d.]+", value)[0]) if value != "wrong" else 99.0
    ).check(),
}


@pytest.mark.parametrize("fix", CHOICES)
def test_a_choice_that_a_message_lists(fix: str) -> None:
    call = CHOICES[fix]
    said = advice(lambda: call("wrong"))
    listed = re.sub(r"^.*?\bone of:? ", "", said) if "one of" in said else said
    call(listed.split(",")[0].strip(" '"))


# --- one by one ------------------------------------------------------------------------------


@follows("use another name, e.g. {free_name(name)!r}", "add or import rows first")
def _a_taken_name(_: Path) -> None:
    assert advice(lambda: store.save("luna", [])) == "add or import rows first"
    store.save("luna", [ROW])
    said = advice(lambda: store.save("luna", [ROW]))
    store.save(re.findall(r"'(.+)'", said)[0], [ROW])


@follows("use one of {', '.join(names)}", "try {slug(name)!r}")
def _a_dataset_that_is_not_there(_: Path) -> None:
    assert advice(lambda: store.dataset("luna")) == "build one first"
    store.save("luna", [ROW])
    store.dataset(advice(lambda: store.dataset("lune")).removeprefix("use one of "))
    fsio.check_name(re.findall(r"'(.+)'", advice(lambda: fsio.check_name("My Luna!")))[0])


@follows("use {store.free_name(spec.name)!r}", "use {store.free_name(args.name)}",
         "'choose another name'")  # fmt: skip
def _names_of_jobs(_: Path) -> None:
    store.save("luna", [ROW])
    spec = simulate_job.Spec(spec=SimulateSpec(locale="en"), name="luna")
    free = re.findall(r"'(.+)'", advice(lambda: simulate_job.check(spec)))[0]
    simulate_job.check(spec.changed(name=free))
    built = generate_job.Spec(spec=DatasetSpec(persona_path=str(ASSISTANT)), name="luna")
    assert advice(lambda: generate_job.check(built)) == "choose another name"
    generate_job.check(built.changed(name="luna-2"))
    assert main(["dataset", "simulate", "luna"]) == 2
    packs.duplicate("assistant", "mine")
    assert advice(lambda: packs.duplicate("assistant", "mine")) == "choose another name"
    packs.duplicate("assistant", "mine-2")


@follows("duplicate it and edit the copy", "only own packs can be deleted")
def _shipped_packs(_: Path) -> None:
    text = ASSISTANT.read_text("utf-8")
    assert advice(lambda: packs.write("assistant", text)).startswith("duplicate it")
    packs.duplicate("assistant", "mine")
    packs.write("mine", text)
    assert advice(lambda: packs.delete("assistant")) == "only own packs can be deleted"
    packs.delete("mine")


@follows("split the file, or use `python -m core dataset import`")
def _a_file_that_is_too_large(tmp_path: Path) -> None:
    data = b'{"question": "q", "answer": "r"}\n' * 2
    said = advice(lambda: import_file(io.BytesIO(data), max_bytes=40))
    assert "dataset import" in said
    (tmp_path / "x.jsonl").write_bytes(data)
    assert main(["dataset", "import", str(tmp_path / "x.jsonl")]) == 0


@follows("mend the rows, or leave --strict out", "choose another file name")
def _strict(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"question": "q", "answer": "r"}\n{}\n')
    assert main(["dataset", "import", str(file), "--strict"]) == 2
    assert main(["dataset", "import", str(file)]) == 0
    assert main(["dataset", "export", "x", str(file)]) == 2
    assert main(["dataset", "export", "x", str(tmp_path / "y.jsonl")]) == 0


@follows("write NAME=VALUE")
def _pairs(_: Path) -> None:
    assert "NAME=VALUE" in advice(lambda: parse_pairs(["name"], "--set"))
    parse_pairs(["name=Luna"], "--set")
    said = advice(lambda: spec_fields.parse_assignment("lr"))
    assert spec_fields.parse_assignment(said.split("e.g. ")[1]) == ("lr", 5e-4)


@follows("list them: python -m core runs", "start one: python -m core train ...",
         "build one: python -m core dataset build --help")  # fmt: skip
def _runs(_: Path) -> None:
    assert main(["watch", "nothing"]) == 2
    assert main(["runs"]) == 0


@follows("did you mean {near[0]!r}?", "choose one of {', '.join(map(str, choices))}",
         "choose a value {limits}")  # fmt: skip
def _records(_: Path) -> None:
    known = {"persona_path": "p"}
    said = advice(lambda: DatasetSpec.from_dict({**known, "max_row": 5}))
    DatasetSpec.from_dict({**known, re.findall(r"'(.+)'", said)[0]: 5})
    said = advice(lambda: DatasetSpec.from_dict({**known, "multi_turn": 9}))
    limit = float(re.findall(r"[\d.]+", said)[-1])
    DatasetSpec.from_dict({**known, "multi_turn": limit})
    said = advice(lambda: TrainSpec.from_dict({"dataset": "d", "dtype": "float8"}))
    chosen = re.sub(r"^choose one of ", "", said).split(",")[0]
    TrainSpec.from_dict({"dataset": "d", "dtype": chosen})


@follows("set it to {default_warmup(self.steps)}", "set nodes to 1", "choose no DeepSpeed",
         "choose float32")  # fmt: skip
def _training_settings(_: Path) -> None:
    spec = TrainSpec(dataset="d", steps=3, warmup_steps=3)
    warmup = int(advice(spec.check).removeprefix("set it to "))
    spec.changed(warmup_steps=warmup).check()
    device = describe()
    if device.kind != "cpu":
        return
    wrong = spec.changed(nodes=2, deepspeed="zero2", dtype="float16", warmup_steps=warmup)
    said = {p.where: p.fix for p in preflight._device_problems(wrong, device)}
    assert {"nodes", "deepspeed", "dtype"} <= said.keys()
    right = wrong.changed(nodes=1, deepspeed=None, dtype="float32")
    assert not preflight._device_problems(right, device)


@follows("did you mean {', '.join(near)}?")
def _stock_configs(_: Path) -> None:
    from core.training.config import stock_source

    assert advice(lambda: stock_source("zzz")).endswith("python -m core configs")
    assert main(["configs"]) == 0


@follows("name it: --output FOLDER", "leave --resume out and give a new --output",
         "give the same arguments, or start anew")  # fmt: skip
def _tune(tmp_path: Path) -> None:
    """The checks before anything is made; what follows a good start is test_tune's."""
    from core.pipeline.stages import TuneSpec
    from core.pipeline.tune import Ledger, prepare

    spec = TuneSpec(persona=str(ASSISTANT), model="bundled")
    assert main(["tune", str(ASSISTANT), "--resume"]) == 2
    assert "leave --resume out" in advice(lambda: prepare(spec, tmp_path / "out", resume=True))
    (tmp_path / "made").mkdir()
    Ledger(asked=spec).write(tmp_path / "made")
    other = spec.changed(seed=5)
    said = advice(lambda: prepare(other, tmp_path / "made", resume=True))
    assert said.startswith("give the same arguments")
    prepare(spec, tmp_path / "made", resume=True)


@follows("or convert a checkpoint: python -m core convert --help")
def _convert(_: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", "--help"])
    assert ended.value.code == 0


@follows("at most {MAX_PROMPTS:,} in one batch", "at most {MAX_COLUMNS}",
         "give --prompt or --prompts")  # fmt: skip
def _limits(_: Path) -> None:
    said = advice(lambda: parse_prompts(b"q\n" * (MAX_PROMPTS + 1), "p"))
    count = int(re.findall(r"[\d,]+", said)[0].replace(",", ""))
    assert len(parse_prompts(b"q\n" * count, "p")) == count
    assert main(["compare"]) == 2


@follows("fill it in the file, or pass --set {name}=...", "use one of {', '.join(pack.slots)}",
         "use one of {names}", "keep one of them")  # fmt: skip
def _packs_by_hand(_: Path) -> None:
    text = ASSISTANT.read_text("utf-8")
    said = advice(lambda: load_persona(ASSISTANT, {"name": " "}))
    slot = re.findall(r"--set (\w+)=", said)[0]
    load_persona(ASSISTANT, {slot: "Mira"})
    wrong = text.replace("must: [name]", "must: [nam]", 1)
    said = advice(lambda: parse_persona(wrong))
    assert "name" in said.removeprefix("use one of ").split(", ")


@follows("choose one of {', '.join(openings.locales())}")
def _locales(_: Path) -> None:
    said = advice(lambda: SimulateSpec(locale="xx"))
    SimulateSpec(locale=said.removeprefix("choose one of ").split(", ")[0])


@pytest.mark.parametrize("step", dict.fromkeys(FOLLOWED.values()), ids=lambda s: s.__name__)
def test_following_a_fix_gets_past_its_message(
    step: Callable[[Path], None],
    tmp_path: Path,
    bundled_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (models / bundled_model.name).symlink_to(bundled_model)  # or preparing it takes seconds
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / "home"))
    step(tmp_path)
