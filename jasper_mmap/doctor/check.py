"""The answer of a check."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

State = Literal["ok", "warn", "broken"]


class Check(NamedTuple):
    """What one check says. Broken: training cannot run, or would be wrong."""

    id: str
    state: State
    seen: str
    """What was seen, in words."""
    remedy: str = ""
    """What to do; empty if there is nothing to do."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"id": self.id, "state": self.state, "found": self.seen, "remedy": self.remedy}


class Answer(NamedTuple):
    """A check's answer before it has an id."""

    state: State
    seen: str
    remedy: str = ""


def ok(seen: str) -> Answer:
    """Nothing is to be done."""
    return Answer("ok", seen)


def warn(seen: str, remedy: str) -> Answer:
    """Training runs, but slower, or something beside it does not work."""
    return Answer("warn", seen, remedy)


def broken(seen: str, remedy: str) -> Answer:
    """Training cannot run, or would be wrong."""
    return Answer("broken", seen, remedy)
