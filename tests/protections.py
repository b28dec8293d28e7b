"""Takes each protection out and shows that its test fails: ``python -m tests.protections``.

A test that passes without what it tests proves nothing. For each line below the named text is
replaced in a copy of the source, and the test must fail there; before that it must pass as things
are. Cases are numbered as the fault cases of the design. Prints the table; exits with 1 if a
protection has no honest test, or if its text is no longer in the source.

    python -m tests.protections [--only WORD] [--list]
"""

# ruff: noqa: E501  (the lines of the table quote lines of the source)

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
_COPIED = ("core", "pages", "tests", "data_templates", "streamlit_app.py", "pyproject.toml")


@dataclass(frozen=True)
class Protection:
    """``case``: what is defended; ``old``: the text that does it; ``new``: without it."""

    case: str
    file: str
    old: str
    new: str
    test: str


PROTECTIONS = [
    Protection("1, 2 a run outlives its starter", "core/jobs/api.py",
               "            stderr=log,\n            start_new_session=True,",
               "            stderr=log,\n            start_new_session=False,",
               "tests/faults/test_starting.py::test_1_and_2_the_run_outlives_its_starter"),
    Protection("3, 4 exit 0 is no success", "core/jobs/supervisor.py",
               "self.child_status == 0 and self._has_result()", "self.child_status == 0",
               "tests/faults/test_endings.py::test_4_ends_with_0_after_two_fifths"),
    Protection("5 stubborn children", "core/jobs/processes.py",
               "        signal_all(left.values(), signal.SIGKILL)\n", "",
               "tests/faults/test_endings.py::test_5_stop_ends_stubborn_children_and_their_sessions"),
    Protection("6 orphans are ended by mark", "core/jobs/api.py",
               "    if state is State.ORPHANED:\n        left", "    if False:\n        left",
               "tests/faults/test_endings.py::test_6_supervisor_killed"),
    Protection("6 Force reaches a stopped supervisor", "core/jobs/api.py",
               "    processes.signal_all([supervisor], signal.SIGCONT)", "    return True",
               "tests/faults/test_ends.py::test_force_ends_a_run_whose_supervisor_is_stopped"),
    Protection("6 an orphan keeps the device", "core/jobs/supervisor.py",
               "pass_fds=[fd] if", "pass_fds=[] if",
               "tests/faults/test_ends.py::test_the_device_stays_with_a_child_whose_supervisor_died"),
    Protection("7 a reused pid is not signalled", "core/jobs/processes.py",
               "if abs(process.create_time() - float(str(start_time))) < 0.1 else None", "",
               "tests/unit/test_broken_files.py::test_a_reused_pid_is_another_process"),
    Protection("8 two starts make one run", "core/jobs/supervisor.py",
               "if not lock.acquire(timeout=1.5) or run.supervisor.exists() or run.exit.exists():",
               "if False:",
               "tests/faults/test_starting.py::test_8_two_starts_of_one_run"),
    Protection("9 runs queue in order", "core/jobs/locks.py",
               "if not _earlier_waits(queue, ticket.path.name) and self.acquire(timeout=0.0):",
               "if self.acquire(timeout=0.0):",
               "tests/faults/test_starting.py::test_9_runs_wait_for_the_device_in_the_order_of_their_making"),
    Protection("10 lines that are no records", "core/jobs/journal.py",
               "    except (ValueError, RecursionError):\n        return None", "    except ZeroDivisionError:\n        return None",
               "tests/faults/test_disk.py::test_10_lines_that_are_no_records"),
    Protection("11 atomic writes", "core/fsio.py",
               "        os.replace(name, path)\n        name = None\n    except",
               "        path.write_bytes(data)\n    except",
               "tests/unit/test_writes.py::test_11_a_write_that_breaks_off_leaves_the_old_file[replace]"),
    Protection("11 the old file on a full disk", "core/fsio.py",
               "        handle, name = tempfile.mkstemp(prefix=f\".{path.name}.\", suffix=\".partial\", dir=path.parent)",
               "        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)\n        name = str(path)",
               "tests/unit/test_writes.py::test_11_a_full_disk_leaves_the_old_file"),
    Protection("11 the end is tried again", "core/jobs/supervisor.py",
               "        for _ in range(60):", "        for _ in range(1):",
               "tests/unit/test_writes.py::test_11_the_end_of_a_run_is_tried_again"),
    Protection("12 a merge appears whole", "core/weights/staging.py",
               "        partial = out.parent / f\".{out.name}.{os.getpid()}.partial\"", "        partial = out",
               "tests/faults/test_merge_faults.py"),
    Protection("15 torch.load reads data only", "core/models/data_only.py",
               'kwargs |= {"weights_only": True}', "pass",
               "tests/unit/test_pickles.py::test_torch_load_runs_nothing"),
    Protection("15 records are signed", "core/training/checkpoints.py",
               "if not seal.signed(", "if False and not seal.signed(",
               "tests/unit/test_pickles.py::test_a_forged_record_is_no_record"),
    Protection("16 packs are walked before compiling", "core/persona/templating.py",
               "        if problem := _forbidden(tree):\n            return problem\n", "",
               "tests/unit/test_sandbox.py::test_a_sentence_of_a_pack_is_walked_before_it_is_compiled"),
    Protection("16 chat templates have limits", "core/models/sandbox.py",
               "        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)\n", "",
               "tests/unit/test_sandbox.py::test_a_template_costs_its_share_and_no_more[loops]"),
    Protection("16 patterns have limits", "core/models/sandbox.py",
               "    if not patterns:\n        return", "    return",
               "tests/unit/test_sandbox.py::test_an_adapters_patterns_cannot_hang"),
    Protection("17 names cannot leave the folder", "core/fsio.py",
               "    if not path.is_relative_to(root.resolve()):", "    if False:",
               "tests/faults/test_starting.py::test_17_a_link_out_of_the_folder_is_not_a_run"),
    Protection("17 300 characters", "core/fsio.py", "longest > 255", "longest > 2550",
               "tests/unit/test_broken_files.py::test_no_path_is_made_of_what_cannot_be_a_name"),
    Protection("19 a swallowed code span", "core/chat/render.py",
               ' and not _SWALLOWED.search(line)', "",
               "tests/unit/test_foreign_text.py::test_nothing_is_fetched"),
    Protection("19 literals", "core/chat/render.py",
               '    line = _PUNCTUATION.sub(', '    _PUNCTUATION.sub(',
               "tests/unit/test_foreign_text.py::test_a_literal_is_one_line_of_text_and_no_more"),
    Protection("19 the terminal", "core/console.py",
               'return _CONTROL.sub("", _SEQUENCE.sub("", ', 'return (("", ',
               "tests/unit/test_foreign_text.py::test_a_terminal_gets_no_sequences"),
    Protection("20 a chat worker ends with its client", "core/chat/worker.py",
               "on_gone=lambda: os._exit(0)", "",
               "tests/faults/test_ends.py::test_a_chat_worker_whose_client_dies_while_it_loads_ends_at_once"),
    Protection("21 last words give the reason", "core/jobs/reasons.py",
               "            return Fault(known.reason,", "            return Fault(Reason.INCOMPLETE,",
               "tests/faults/test_endings.py::test_21_the_last_words_give_the_reason"),
    Protection("22 NaN ends the run", "core/jobs/watcher.py",
               "self.give_up = Reason.DIVERGED", "pass",
               "tests/faults/test_endings.py::test_22_nan_is_warned_of_and_ends_the_run_if_told_to"),
    Protection("23 silence is told", "core/jobs/watcher.py",
               "        if silent != self._stalled:", "        if False:",
               "tests/faults/test_endings.py::test_23_silence_is_a_banner_not_a_state"),
    Protection("24 the monotonic clock", "core/jobs/observe.py",
               "return max(0.0, time.monotonic() - float(record[\"monotonic\"]))",
               "return time.time() - float(record[\"started\"])",
               "tests/faults/test_disk.py::test_24_the_clock_set_back"),
    Protection("25 a log is read from its end", "core/jobs/journal.py",
               "            file.seek(max(0, size - limit))\n            raw = file.read(limit)",
               "            file.seek(0)\n            raw = file.read()",
               "tests/faults/test_disk.py::test_25_a_huge_log_of_carriage_returns"),
    Protection("26 a deleted run does not come back", "core/jobs/supervisor.py",
               "                shutil.rmtree(self.run.root, ignore_errors=True)\n", "",
               "tests/faults/test_ends.py::test_a_deleted_live_run_does_not_come_back"),
    Protection("26 what the disk refuses", "core/fsio.py",
               "    try:\n        yield\n    except OSError as error:", "    try:\n        yield\n    except ZeroDivisionError as error:",
               "tests/unit/test_broken_files.py::test_what_the_disk_refuses_is_a_user_error"),
    Protection("27 the bind check", "pages/_ui/shell/bootstrap.py",
               "    if address not in _LOOPBACK:", "    if False:",
               "tests/app/test_strangers.py::test_27_an_open_server_shows_nothing"),
    Protection("27 CORS and XSRF", "pages/_ui/shell/bootstrap.py",
               'elif not (st.get_option("server.enableCORS") and st.get_option("server.enableXsrfProtection")):',
               "elif False:",
               "tests/app/test_strangers.py::test_27_an_open_server_shows_nothing"),
    Protection("28 any page may be the first", "pages/_ui/shell/bootstrap.py",
               "            place().mkdir(parents=True, exist_ok=True)", "            pass",
               "tests/app/test_strangers.py::test_28_a_page_that_is_the_first_hit"),
    Protection("29 the environment of a job", "core/jobs/processes.py",
               "        if name in allowed or name.startswith(_PASSED_PREFIXES)", "        if True",
               "tests/faults/test_endings.py::test_29_secrets_do_not_reach_the_job"),
    Protection("29 keys that are echoed", "core/errors.py",
               '            text = text.replace(value, "***")', "            pass",
               "tests/unit/test_writes.py::test_29_a_key_that_is_echoed_reaches_no_file"),
    Protection("30 a record of another version", "core/jobs/observe.py",
               "    except ValueError as error:\n        told", "    except ZeroDivisionError as error:\n        told",
               "tests/unit/test_broken_files.py::test_an_odd_exit_is_a_lost_run"),
    Protection("30 a spec of another version", "core/jobs/spec.py",
               'raw.pop("schema", None) != SCHEMA', 'raw.pop("schema", None) == "never"',
               "tests/faults/test_disk.py::test_30_a_spec_of_another_version_does_not_break_the_list"),
    Protection("output: a secret prefix", "core/jobs/records.py",
               'return f"{PREFIX}{secret} " if secret else PREFIX', "return PREFIX",
               "tests/unit/test_job_output.py::test_a_row_of_a_dataset_is_no_record"),
    Protection("output: a schema", "core/jobs/records.py",
               "    except (ValidationError, RecursionError):\n        return None",
               "    except ZeroDivisionError:\n        return None",
               "tests/unit/test_job_output.py::test_any_output_is_survived"),
    Protection("size: a server that ignores the limit", "core/chat/endpoint.py",
               "        if too_long:", "        if False:",
               "tests/unit/test_broken_files.py::test_a_server_that_ignores_the_limit_is_cut"),
]  # fmt: skip


def _passes(test: str, folder: Path) -> bool:
    """Whether a test passes in a tree; a test that never ends does not."""
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    command += ["-p", "no:rerunfailures"] if "faults" not in test else ["--reruns", "0"]
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(timeout=400) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):  # what the test left behind goes with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _copy(folder: Path) -> None:
    for name in (*_COPIED, ".streamlit"):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def judge(protection: Protection) -> str:
    """``honest``, or what is wrong with the test of a protection."""
    with tempfile.TemporaryDirectory(prefix="protection-") as name:
        folder = Path(name)
        _copy(folder)
        file = folder / protection.file
        text = file.read_text(encoding="utf-8")
        if text.count(protection.old) != 1:
            return f"STALE: the text stands {text.count(protection.old)} times in the source"
        if not _passes(protection.test, folder):
            return "FAILS as things are"
        file.write_text(text.replace(protection.old, protection.new), encoding="utf-8")
        return "BLIND: passes without it" if _passes(protection.test, folder) else "honest"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a word of the case or of the test")
    parser.add_argument("--list", action="store_true", help="only look whether the texts are there")
    args = parser.parse_args()
    wrong = 0
    for protection in PROTECTIONS:
        if args.only not in f"{protection.case} {protection.test}":
            continue
        if args.list:
            count = (REPO / protection.file).read_text(encoding="utf-8").count(protection.old)
            verdict = "there" if count == 1 else f"STALE: {count} times"
        else:
            verdict = judge(protection)
        wrong += verdict not in ("there", "honest")
        print(f"| {protection.case} | {protection.test} | {verdict} |", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
