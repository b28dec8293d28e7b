"""What we write we read back, over all of Unicode: line separators, controls, odd scripts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import fsio
from core.chat import transcripts, votes
from core.chat.batch import parse_prompts
from core.chat.columns import Column
from core.chat.dialogue import Reply, Turn
from core.conversation import Conversation, Message, Probe
from core.data import drafts, store
from core.data.drafts import DatasetDraft
from core.errors import UserError
from core.inference.settings import GenerationSettings
from core.jobs.journal import Journal, read_journal
from core.paths import TEMPLATES
from core.persona import packs
from core.persona.persona import Persona, load_persona, parse_persona
from core.persona.schema import Pack
from core.probes.suites import read_probes
from tests.unit.test_data_persona import PACK

pytestmark = pytest.mark.fast

CASES = Path(__file__).parents[1] / "data" / "cases"
#: The separators that `str.splitlines` cuts at are as likely as all of the rest.
CHARACTERS = st.one_of(
    st.sampled_from("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\x00\ufeff\uffff"),
    st.characters(exclude_categories=["Cs"]),
)
# Lists, because `st.text` melts the two alphabets into one, where separators hardly ever come.
TEXT = st.lists(CHARACTERS, min_size=1, max_size=20).map("".join).filter(str.strip)
FIELD = st.lists(CHARACTERS, max_size=8).map("".join)
fast = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        messages += [
            {"role": "user", "content": draw(TEXT)},
            {"role": "assistant", "content": draw(TEXT)},
        ]
    return Conversation(
        draw(TEXT), messages, "own", draw(FIELD), draw(FIELD), draw(FIELD), cut=draw(st.booleans())
    )


ROWS = st.lists(conversations(), min_size=1, max_size=4, unique_by=lambda row: row.id)


@fast
@given(rows=ROWS, note=FIELD)
def test_rows_and_manifest(rows: list[Conversation], note: str) -> None:
    name = store.free_name("rows")
    store.save(name, rows, note=note, extra={"text": note})
    assert list(store.rows(name)) == rows
    index = store.index(store.dataset(name).train)
    assert list(index.read(range(len(rows)))) == rows
    assert [store.manifest(name)[key] for key in ("note", "text")] == [note, note]
    summary = next(s for s in store.list_datasets() if s.name == name)
    assert (summary.problem, summary.note) == ("", note)
    store.delete(name)


@fast
@given(rows=ROWS, label=FIELD)
def test_edits_of_rows(rows: list[Conversation], label: str) -> None:
    name = store.free_name("edits")
    store.save(name, rows[:1])
    DatasetDraft(name).write(rows[1:], label=label)
    assert list(DatasetDraft(name).rows()) == rows
    assert [edit.label for edit in DatasetDraft(name).done] == ([label] if rows[1:] else [])
    store.delete(name)


@fast
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_probes(texts: list[str], tmp_path: Path) -> None:
    probes = [
        Probe(t, t, [{"role": "user", "content": t}], t, t, t, [[t]], [t], [t]) for t in texts
    ]
    fsio.write_jsonl(tmp_path / "probes.jsonl", map(asdict, probes))
    assert read_probes(tmp_path / "probes.jsonl") == probes


@fast
@given(prompts=st.lists(TEXT, min_size=1, max_size=4))
def test_prompts(prompts: list[str]) -> None:
    lines = [fsio.dump_json({"prompt": p}) for p in prompts]
    bare = [json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts]
    for written in (lines, bare):
        assert parse_prompts("\n".join(written).encode(), "p.jsonl") == prompts


@fast
@given(prompt=TEXT, reply=FIELD, system=FIELD)
def test_transcripts_and_votes(prompt: str, reply: str, system: str) -> None:
    columns = [Column("a", "base", reply), Column("b", "prompted", "B", system=system)]
    chat = transcripts.create(columns, system)
    turn = Turn(
        prompt, GenerationSettings(), {"a": Reply(reply, "stop"), "b": Reply(prompt, "stop")}
    )
    transcripts.add_turn(chat, turn)
    transcripts.set_vote(chat, 0, "a")
    assert transcripts.read(chat.id) == chat
    assert chat.id in [listed.id for listed in transcripts.list_chats()]
    assert votes.ballots(transcripts.read(chat.id)) == votes.ballots(chat)
    transcripts.delete(chat.id)


@fast
@given(value=TEXT)
def test_a_persona(value: str) -> None:
    pack = yaml.safe_load(PACK)
    pack["slots"]["name"]["text"]["en"] = pack["slots"]["author"]["text"]["en"] = f"Ab{value}"
    persona = Persona(Pack.model_validate(pack))
    again = parse_persona(persona.dump())
    assert again.pack == persona.pack
    assert again.slot("author", "en") == f"Ab{value}"


@fast
@given(text=TEXT)
def test_an_own_pack_of_the_editor(text: str) -> None:
    path = packs.find("mine") if "mine" in packs.all_packs() else packs.duplicate("tutor", "mine")
    written = yaml.safe_dump(text, allow_unicode=False, default_style='"').strip()
    packs.write("mine", PACK.replace("forbid_self: [ChatGPT,", f"forbid_self: [{written},"))
    assert load_persona(path).pack.forbid_self[0] == text


@fast
@given(values=st.dictionaries(FIELD, FIELD, max_size=4))
def test_the_persona_form(values: dict[str, str]) -> None:
    drafts.save_form(values)
    assert drafts.load_form() == values


@fast
@given(records=st.lists(st.dictionaries(FIELD, FIELD, max_size=3), max_size=4))
def test_journals(records: list[dict[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    for record in records:
        journal.append(record)
    read = list(read_journal(path))
    assert [{k: v for k, v in r.items() if k != "seq"} for r in read] == [
        {k: v for k, v in r.items() if k != "seq"} for r in records
    ]


def test_the_cases() -> None:
    prompts = (CASES / "line-separator-prompts.jsonl").read_bytes()
    assert parse_prompts(prompts, "p") == [
        "Tell me about the lighthouse.\u2028Who runs it?",
        "What is 2+2?",
        "Who are you?",
        "Who are you?",
    ]
    plain = "Who runs it?\u2028Tell me.\nAnd\x85now?".encode()
    assert parse_prompts(plain, "p") == ["Who runs it?\u2028Tell me.", "And\x85now?"]


def test_a_maker_with_a_line_separator(tmp_path: Path) -> None:
    from core.data.generation import held_out

    persona = load_persona(
        TEMPLATES / "assistant.yaml", {"name": "Mira", "author": "Riverside\u2028Lab"}
    )
    probes = held_out(persona, locales=["en"], seed=0)
    fsio.write_jsonl(tmp_path / "probes.jsonl", map(asdict, probes))
    assert read_probes(tmp_path / "probes.jsonl") == probes
    assert any("Riverside\u2028Lab" in group for p in probes for group in p.must)


def test_what_is_written_stays_one_line_for_every_reader(tmp_path: Path) -> None:
    text = "a\x85b\u2028c\u2029d"
    fsio.write_jsonl(tmp_path / "x.jsonl", [text, text])
    written = (tmp_path / "x.jsonl").read_text("utf-8")
    assert len(written.splitlines()) == 2
    assert fsio.dump_json("\ud800") == '"\\ud800"'


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"x\.jsonl:2") as error:
        list(fsio.read_jsonl(path))
    assert error.value.fix


def test_thirty_thousand_equal_rows() -> None:
    from core.data.importer import UniqueIds

    row = Conversation("r", [{"role": "user", "content": "q"}])
    unique = UniqueIds(["r-2"])
    ids = [unique(row).id for _ in range(30_000)]
    assert ids[:3] == ["r", "r-3", "r-4"]
    assert len(set(ids)) == 30_000
    # An id that was given to another row is not given twice.
    assert unique(replace(row, id="r-4")).id == "r-4-2"


def test_half_a_surrogate_pair_in_a_file_can_be_shown(tmp_path: Path) -> None:
    """A page cannot send it: one such name in a spec.json took the Compare page down."""
    path = tmp_path / "x.json"
    path.write_text('{"name": "a\\ud800b \\ud83d\\ude00", "\\udfff": ["\\uDC00"]}')
    read = fsio.read_json(path)
    assert read == {"name": "a\ufffdb 😀", "\ufffd": ["\ufffd"]}
    str(read).encode("utf-8")
