"""Texts of questions and sources, which a store does not hold: read from files beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ContentError, JasperError
from ..files.atomic import exists, read_json, storage_errors
from ..files.regular_files import open_regular

INSPECTION_FILE: Final = "inspection.json"
"""The builder's file with the first texts of each table, if it was asked for one."""
_MOST_BYTES: Final = 16 << 20
"""Limit of a line."""
_COUNTS: Final = {"n_questions": "N_q", "n_sources": "N_s", "n_pairs": "N_p"}
"""Count in the metadata of `inspection.json` -> the size that it must equal."""


@dataclass(frozen=True)
class Texts:
    """Texts by row number, as far as they are known."""

    questions: Mapping[int, str] = field(default_factory=dict)
    sources: Mapping[int, str] = field(default_factory=dict)
    note: str = ""
    """What is to be said about them."""


def read_lines(path: Path, rows: Collection[int], n_rows: int, table: str) -> dict[int, str]:
    """Return the texts of some `rows` from a file whose line i has the text of row i of `table`.

    A line is a JSON string, or a JSON object with the string `text`. The file must have `n_rows`
    lines of UTF-8, of which only those of `rows` are parsed; memory is that of one line. Raises
    `ContentError`, which names the line, or both lengths.
    """
    texts: dict[int, str] = {}
    count = 0
    with storage_errors(path, "read"), open_regular(path) as file:
        while line := file.readline(_MOST_BYTES + 1):
            text = _decoded(line, f"{path}: line {count + 1}")
            if count in rows:
                texts[count] = _parsed(text, f"{path}: line {count + 1} (row {count} of {table})")
            count += 1
    if count != n_rows:
        raise ContentError(
            f"{path}: has {count} lines, but {table} has {n_rows} rows. Give a file with a line for"
            " each row, in the order of the rows."
        )
    return texts


def _decoded(line: bytes, where: str) -> str:
    if len(line) > _MOST_BYTES:
        raise ContentError(
            f"{where}: is longer than {_MOST_BYTES} bytes. Give a file with a line for each row."
        )
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContentError(
            f"{where}: cannot be read as UTF-8 text (byte {error.start + 1}: {error.reason}). Save"
            " the file as UTF-8."
        ) from None


def _parsed(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    text = value.get("text") if isinstance(value, dict) else value
    if isinstance(text, str):
        return text
    raise ContentError(
        f"{where}: must be a JSON string, or a JSON object with a string 'text'; found"
        f" {line.strip()!r:.80}."
    )


def read_inspection(store: Path, sizes: Mapping[str, int]) -> Texts:
    """Return the texts of the builder's `inspection.json` in the folder `store`, if there is one.

    It has the first rows only, and a builder may drop rows after writing it. So it is ignored, with
    a note, unless all counts in its metadata equal `sizes` (letter -> size).
    """
    path = store / INSPECTION_FILE
    if not exists(path):
        return Texts()
    try:
        content = read_json(path)
    except JasperError as error:
        return Texts(note=f"texts are not shown: {error}")
    metadata = content.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    for name, letter in _COUNTS.items():
        if type(known.get(name)) is not int or known[name] != sizes[letter]:
            return Texts(
                note=f"{path} was ignored, since its {name} is {known.get(name)!r:.40} and the"
                f" store has {sizes[letter]}: its numbers may be those of other rows. Give all"
                " texts with --texts."
            )
    questions, sources = _numbered(content.get("questions")), _numbered(content.get("sources"))
    return Texts(
        questions,
        sources,
        f"texts are from {path}, which has those of {len(questions)} of {sizes['N_q']} questions"
        f" and {len(sources)} of {sizes['N_s']} sources.",
    )


def _numbered(entries: Any) -> dict[int, str]:
    """The texts of `[{"id": 0, "text": "..."}, ...]`; entries of other forms are left out."""
    items: Iterable[Any] = entries if isinstance(entries, list) else ()
    return {
        entry["id"]: entry["text"]
        for entry in items
        if isinstance(entry, dict)
        and type(entry.get("id")) is int
        and isinstance(entry.get("text"), str)
    }
