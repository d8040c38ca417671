"""Texts of questions and sources: what files may hold, and when the builder's own is trusted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.errors import ContentError, MissingFileError, UnsafeFileError
from jasper_mmap.store import texts as texts_module
from jasper_mmap.store.texts import INSPECTION_FILE, Texts, read_inspection, read_lines

SIZES = {"N_q": 3, "N_s": 5, "N_p": 4}
ODD = ["plain", "<script>alert(1)</script>", "$HOME `x`", "a\nb\r\x1b[31m", "\u202e\ud800", "ß漢"]


def written(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    """Write lines."""
    path.write_bytes(end.join([*lines, b""]))
    return path


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_i_is_row_i(tmp_path: Path, end: bytes) -> None:
    """Strings and objects mixed; a byte order mark and the end of lines make no difference."""
    lines = [json.dumps(text if n % 2 else {"id": 7, "text": text}) for n, text in enumerate(ODD)]
    encoded = [line.encode() for line in lines]
    encoded[5] = '{"text": "ß漢"}'.encode()  # not as an escape
    encoded[0] = b"\xef\xbb\xbf" + encoded[0]
    path = written(tmp_path / "texts.jsonl", *encoded, end=end)
    assert read_lines(path, range(6), 6, "source_embs") == dict(enumerate(ODD))
    assert read_lines(path, {4, 99}, 6, "source_embs") == {4: ODD[4]}
    path.write_bytes(path.read_bytes().removesuffix(end))  # the last line may end the file
    assert read_lines(path, {5}, 6, "source_embs") == {5: ODD[5]}


@pytest.mark.parametrize(("lines", "said"), [(2, "has 2 lines"), (4, "has 4 lines"), (0, "has 0")])
def test_another_number_of_lines_is_refused(tmp_path: Path, lines: int, said: str) -> None:
    """With both lengths; an empty line at the end is one too many."""
    path = written(tmp_path / "t", *[b'"a"'] * min(lines, 3), *[b""] * (lines - 3))
    with pytest.raises(ContentError, match=f"{said}.* but question_embs has 3 rows"):
        read_lines(path, {0}, 3, "question_embs")


def test_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """Wherever it is, also where its text is not asked for; UTF-16 is noticed at once."""
    path = written(tmp_path / "t", b'"a"', b'"b"', '"ü"'.encode("latin-1"))
    with pytest.raises(ContentError, match=r"t: line 3: cannot be read as UTF-8 .*byte 2"):
        read_lines(path, {0}, 3, "question_embs")
    path.write_text('"a"\n"b"\n"c"\n', encoding="utf-16")
    with pytest.raises(ContentError, match="line 1: cannot be read as UTF-8"):
        read_lines(path, {0}, 3, "question_embs")


@pytest.mark.parametrize(
    "line", [b"plain", b"7", b'{"txt": "a"}', b'{"text": 7}', b"null", b"", b"[" * 100_000]
)
def test_line_without_a_text_is_named(tmp_path: Path, line: bytes) -> None:
    """By its number and its row, and only if it is asked for."""
    path = written(tmp_path / "t", b'"a"', line, b'"c"')
    with pytest.raises(ContentError, match=r"line 2 \(row 1 of source_embs\): must be a JSON str"):
        read_lines(path, {1}, 3, "source_embs")
    assert read_lines(path, {2}, 3, "source_embs") == {2: "c"}


def test_cost_of_a_line_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without line breaks is not read as a whole."""
    monkeypatch.setattr(texts_module, "_MOST_BYTES", 10)
    path = written(tmp_path / "t", b'"12345678"', b'"123456789"')
    with pytest.raises(ContentError, match="line 1: is longer than 10 bytes"):
        read_lines(path, {0}, 2, "source_embs")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A FIFO would block; a missing file is named."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnsafeFileError, match="FIFO"):
        read_lines(tmp_path / "fifo", {0}, 1, "source_embs")
    with pytest.raises(MissingFileError, match=r"missing\.jsonl"):
        read_lines(tmp_path / "missing.jsonl", {0}, 1, "source_embs")


def inspection(**changes: Any) -> dict[str, Any]:
    """Return what a builder writes."""
    return {
        "metadata": {"created_at": "2026", "n_pairs": 4, "n_questions": 3, "n_sources": 5}
        | changes,
        "questions": [{"id": 0, "text": "q0"}, {"id": 2, "text": "q2"}],
        "sources": [{"id": 4, "text": "s4"}, {"id": True, "text": "x"}, {"id": 1}, 7, "y"],
        "pair_samples": [],
    }


def test_texts_of_the_builder_are_used_where_its_counts_fit(tmp_path: Path) -> None:
    """By their ids; what is not an id with a text is left out. Without the file nothing is said."""
    assert read_inspection(tmp_path, SIZES) == Texts()
    (tmp_path / INSPECTION_FILE).write_text(json.dumps(inspection()))
    texts = read_inspection(tmp_path, SIZES)
    assert (texts.questions, texts.sources) == ({0: "q0", 2: "q2"}, {4: "s4"})
    assert "2 of 3 questions and 1 of 5 sources" in texts.note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (inspection(n_questions=4), "n_questions is 4 and the store has 3"),
        (inspection(n_sources=9), "n_sources is 9 and the store has 5"),
        (inspection(n_pairs=5), "n_pairs is 5 and the store has 4"),
        (inspection(n_pairs=None), "n_pairs is None"),
        (inspection(n_pairs="4"), "n_pairs is '4'"),
        ({"questions": [{"id": 0, "text": "q0"}]}, "n_questions is None"),
        ({"metadata": 3}, "n_questions is None"),
        ([], "must hold a JSON object"),
    ],
)
def test_texts_of_other_rows_are_ignored(tmp_path: Path, content: Any, said: str) -> None:
    """Rows may have been dropped after the file was written; it is said why it is ignored."""
    (tmp_path / INSPECTION_FILE).write_text(json.dumps(content))
    texts = read_inspection(tmp_path, SIZES)
    assert (texts.questions, texts.sources) == ({}, {})
    assert said in texts.note


def test_damaged_file_of_the_builder_is_no_obstacle(tmp_path: Path) -> None:
    """Nor is a folder or a FIFO of its name; nothing blocks."""
    path = tmp_path / INSPECTION_FILE
    path.write_text("{")
    assert "not valid JSON" in read_inspection(tmp_path, SIZES).note
    path.unlink()
    os.mkfifo(path)
    assert "FIFO" in read_inspection(tmp_path, SIZES).note
