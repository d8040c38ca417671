"""What all commands share: options, output, progress, and how a program ends.

It does not import torch, and imports rich only to print with it, so help and usage errors appear at
once.

May import: the ground.
"""

from .options import (
    PATH,
    FiniteRange,
    debug_option,
    integers,
    json_option,
    store_argument,
    version_option,
)
from .program import Command, Group, answering, run
from .progress import shown_progress
from .tables import Column, echo_table
from .text import Meaning, Verdict, echo, echo_json, echo_warning, verdict

__all__ = [
    "PATH",
    "Column",
    "Command",
    "FiniteRange",
    "Group",
    "Meaning",
    "Verdict",
    "answering",
    "debug_option",
    "echo",
    "echo_json",
    "echo_table",
    "echo_warning",
    "integers",
    "json_option",
    "run",
    "shown_progress",
    "store_argument",
    "verdict",
    "version_option",
]
