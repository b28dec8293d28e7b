"""Cases 11 and 26 for every page and command: a workspace that is read-only, or on a full disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.chat import transcripts
from core.chat.columns import Column
from core.conversation import Conversation
from core.data import store
from core.jobs import api
from tests.fakes.ordinary_user import DISKS, run_on

PAGES = ["0_Start", "1_Dataset", "2_Train", "3_Merge", "4_Compare"]
disks = pytest.mark.parametrize("disk", DISKS)


@pytest.fixture
def filled(workspace: Path) -> Path:
    """A dataset, a run and a conversation."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    store.save("kai", [Conversation("r1", talk, "identity")])  # type: ignore[arg-type]
    api.create("train", {"model": "bundled", "dataset": "kai"}, name="kai")
    transcripts.create([Column("a", "base", "Base", "bundled")])
    return workspace


def state(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


#: Each writes: what it is, and how a person asks for it. What takes something away comes last.
WRITES = {
    "make a dataset": "store.save('new', list(store.rows('kai')))",
    "edit a draft": "Draft('kai').write([], removed=['r1'])",
    "start a run": "api.create('train', {'model': 'bundled'}, name='new')",
    "stop a run": "api.stop(run)",
    "note on a run": "history.write_note(run, 'x')",
    "begin a conversation": "transcripts.create([Column('a', 'base', 'Base', 'bundled')])",
    "write in a conversation": "transcripts.set_draft(chat, Draft_('x'))",
    "delete a conversation": "transcripts.delete(chat.id)",
    "remember the form": "drafts.save_form({'persona': 'x'})",
    "copy a pack": "packs.duplicate('assistant', 'mine')",
    "delete a dataset": "store.delete('kai')",
    "delete a run": "api.delete(run)",
}
SCRIPT = f"""
import json, traceback
from core import paths
from core.chat import transcripts
from core.chat.columns import Column
from core.chat.dialogue import Draft as Draft_
from core.data import drafts, store
from core.data.drafts import Draft
from core.errors import UserError
from core.jobs import api
from core.paths import RunPaths
from core.persona import packs
from core.training import history
run = RunPaths(api.list_runs()[0].root)
chat = transcripts.read(next(paths.chats_dir().glob("*.jsonl")).stem)
ends = {{}}
for name, code in json.loads({json.dumps(json.dumps(WRITES))}).items():
    try:
        eval(code)
        ends[name] = "done"
    except UserError:
        ends[name] = "told"
    except Exception:
        ends[name] = traceback.format_exc()
print("ENDS", json.dumps(ends))
"""
#: What needs no room is done on a full disk.
NEEDS_NO_ROOM = {"delete a dataset", "delete a run", "delete a conversation", "note on a run"}


@disks
def test_every_write_is_told(disk: str, filled: Path) -> None:
    before = state(filled)
    done = run_on(disk, "-c", SCRIPT, home=filled)
    line = next((x for x in done.stdout.splitlines() if x.startswith("ENDS")), done.stderr)
    ends = json.loads(line.removeprefix("ENDS"))
    wanted = {n: "done" if disk == "full" and n in NEEDS_NO_ROOM else "told" for n in WRITES}
    assert ends == wanted
    if disk == "read-only":
        assert state(filled) == before


DRAW = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file("streamlit_app.py", default_timeout=200).run()
for page in sys.argv[1:]:
    if page != "0_Start":
        app.switch_page(f"pages/{page}.py").run()
    faults = [e.message for e in app.exception]
    print("PAGE", page, faults or "drawn", [e.value for e in app.error])
"""


@disks
def test_every_page_draws(disk: str, filled: Path) -> None:
    done = run_on(disk, "-c", DRAW, *PAGES, home=filled)
    lines = [x for x in done.stdout.splitlines() if x.startswith("PAGE")]
    assert [x.split()[1:3] for x in lines] == [[p, "drawn"] for p in PAGES], done.stderr[-3000:]
