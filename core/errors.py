"""Errors that a person reads. Anything else that escapes core/ is a bug."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend. Shown without a traceback; the CLI exits with 2.

    Args:
        what: what went wrong, one sentence, naming the thing at fault.
        why: the reason, if it is not plain from ``what``.
        fix: what to do now.
        where: file, with line or field, e.g. ``assistant.yaml:12 intents.who.reply``.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", *, where: str = "") -> None:
        super().__init__(what, why, fix, where)
        self.what = what
        self.why = why
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UserErrors(UserError):
    """Several problems found in one pass, so that they can be mended in one pass."""

    def __init__(self, problems: Sequence[UserError], what: str = "") -> None:
        if not problems:
            raise ValueError("UserErrors needs at least one problem")
        count = len(problems)
        super().__init__(what or f"{count} problem{'s' if count > 1 else ''} found")
        self.problems = list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join([self.what, *(f"- {problem}" for problem in self.problems)])
