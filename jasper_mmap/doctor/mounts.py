"""The file system that a folder is on."""

from __future__ import annotations

import re
from pathlib import Path

from .facts import Mount


def mount_of(folder: Path, mountinfo: Path) -> Mount | None:
    """Return the mount that `folder` is on; None if `mountinfo` cannot be read."""
    try:
        lines = mountinfo.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    resolved = folder.resolve()
    best = None
    for line in lines:
        before, dash, after = line.partition(" - ")
        fields, (kind, source) = before.split(" "), [*after.split(" "), "", ""][:2]
        if not dash or len(fields) < 5:
            continue
        point = _unescaped(fields[4])
        # The last one of the deepest: a later mount hides an earlier one at the same place.
        if resolved.is_relative_to(point) and (best is None or len(point) >= len(best.point)):
            best = Mount(point, kind, _unescaped(source))
    return best


def _unescaped(text: str) -> str:
    """Return a path as it is: the kernel writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
