"""The command `jasper-mmap show`: what it prints of a pair, a question and a source."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import publish_negatives
from jasper_mmap.store.folder import Store
from jasper_mmap.store.texts import INSPECTION_FILE
from tests.commands.conftest import Command
from tests.converting import contents
from tests.publishing import Tables

NASTY = "<script>$(rm)\n\x1b[31mred\u202e\ud800" + "long " * 200


def texts_of(store: Path, folder: Path, text: str = "text of") -> tuple[Path, Path]:
    """Write texts for all questions and sources."""
    sizes = Store(store).manifest.sizes
    paths = folder / "questions.jsonl", folder / "sources.jsonl"
    for path, letter in zip(paths, ("N_q", "N_s"), strict=True):
        lines = (json.dumps({"text": f"{text} {letter} {n}"}) for n in range(sizes[letter]))
        path.write_text("\n".join(lines))
    return paths


def test_pair_of_the_real_folder(jasper: Command, real_store: Path) -> None:
    """What explains its loss: its own right source is far, two others stand among the negatives."""
    ended = jasper("show", real_store, "--pair", 1577)
    assert (ended.status, ended.err) == (0, "")
    out = ended.out
    assert "right source 543: similarity 0.138\n" in out
    assert "lowest of the question's 4 right sources: 0.124 (source 4111)\n" in out
    assert re.search(r"^ +7 +3 +1597 +0\.776 +right source *$", out, re.MULTILINE)
    assert re.search(r"^ +8 +3 +3267 +0\.769 +right source *$", out, re.MULTILINE)
    assert re.search(r"^ +9 +3 +3612 +0\.560 +margin, val/test only *$", out, re.MULTILINE)
    assert re.search(r"^residual +1\.110 +0\.796 +-0\.460 +-0\.395 +-0\.907 +11 *$", out, re.M)
    assert "above 0.117, 5% below the lowest right source\n" in out


def test_question_and_source_of_the_real_folder(jasper: Command, real_store: Path) -> None:
    """The right sources of the question, and whose negatives they are; a source of test only."""
    out = jasper("show", real_store, "--question", 1291).out
    assert "4 pairs, 4 right sources; the lowest similarity is 0.124 (source 4111)\n" in out
    assert re.search(
        r"^1702 +train +1597 +0\.776 .* 1577 \(tier 3\), 4731 \(tier 3\) *$", out, re.M
    )
    assert re.search(r"^1577 +train +543 +0\.138 .* - *$", out, re.MULTILINE)
    out = jasper("show", real_store, "--source", 3).out
    assert "right for 1 pair, of val or test only\n" in out
    assert (
        "a negative in 13 slots (9 of tier 3, 4 of tier 4); the mean of all sources is 13.8" in out
    )
    assert re.search(r"^pair 1654 +train +1345 +3 +0\.519 +0\.596 *$", out, re.MULTILINE)


@pytest.mark.parametrize("kind", ["pair", "question", "source"])
def test_answers_for_programs_are_json(
    jasper: Command, demo_store: Path, tmp_path: Path, kind: str
) -> None:
    """With full precision, the flags by name, and the texts of what is mentioned."""
    texts = texts_of(demo_store, tmp_path)
    ended = jasper("show", demo_store, f"--{kind}", 7, "--json", "--texts", *texts)
    answer = json.loads(ended.out)
    assert (ended.status, answer[kind], answer["generation"]) == (0, 7, 1)
    assert answer["store"] == str(demo_store)
    if kind == "pair":
        sources = {n["source"] for n in answer["negatives"]} | {*answer["right_sources"]}
        known = answer["texts"]["sources"]
        assert known == {str(s): f"text of N_s {s}" for s in sources}
        question = answer["question"]
        assert answer["texts"]["questions"] == {str(question): f"text of N_q {question}"}
    assert answer["notes"] == []


@pytest.mark.parametrize("kind", ["pair", "question", "source"])
@pytest.mark.parametrize("text", ["text of", NASTY], ids=["plain", "nasty"])
def test_everything_is_readable_in_80_columns(
    jasper: Command, demo_store: Path, tmp_path: Path, kind: str, text: str
) -> None:
    """Nothing is cut but long texts, and nothing in a text reaches the terminal unescaped."""
    texts = texts_of(demo_store, tmp_path, text)
    out = jasper("show", demo_store, f"--{kind}", 7, "--texts", *texts, columns=80).out
    lines = out.splitlines()
    tables = [line for line in lines if re.match(r" *\S+   *\S", line)]
    assert max(map(len, tables)) <= 80
    assert "…" not in out
    assert out.replace("\n", "").isprintable()
    if text == NASTY:
        assert r"<script>$(rm)\n\x1b[31mred\u202e\ud800" in out
    if kind == "pair":
        for n in json.loads(jasper("show", demo_store, "--pair", 7, "--json").out)["negatives"]:
            line = rf"^ *{n['slot']} +{n['tier']} +{n['source']} +{n['similarity']:.3f}"
            assert re.search(line, out, re.MULTILINE)


def test_builders_own_texts_are_used_or_said_to_be_ignored(jasper: Command, store: Path) -> None:
    """Only where its counts are the store's."""
    sizes = Store(store).manifest.sizes
    shown = json.loads(jasper("show", store, "--pair", 0, "--json").out)
    counts = {"n_pairs": sizes["N_p"], "n_questions": sizes["N_q"], "n_sources": sizes["N_s"]}
    content: dict[str, Any] = {
        "metadata": counts,
        "questions": [{"id": shown["question"], "text": "what\tis it?"}],
        "sources": [{"id": shown["source"], "text": "it is that"}],
    }
    (store / INSPECTION_FILE).write_text(json.dumps(content))
    out = jasper("show", store, "--pair", 0).out
    assert rf'question {shown["question"]} "what\tis it?"' in out
    assert '"it is that": similarity' in out
    counts["n_sources"] += 1
    (store / INSPECTION_FILE).write_text(json.dumps(content))
    out = jasper("show", store, "--pair", 0).out
    assert "it is that" not in out
    assert f"was ignored, since its n_sources is {sizes['N_s'] + 1}" in out


def test_older_generation_is_shown_if_it_is_there(
    jasper: Command, store: Path, new: Tables
) -> None:
    """Else it is said which ones are there. Nothing is written."""
    first = json.loads(jasper("show", store, "--pair", 3, "--json").out)
    for note in ("again", "and again"):
        publish_negatives(store, *new, note=note, republish=True)
    before = contents(store)
    assert json.loads(jasper("show", store, "--pair", 3, "--json", "--generation", 1).out) == first
    now = json.loads(jasper("show", store, "--pair", 3, "--json").out)
    assert (now["generation"], now["negatives"][0]["source"]) == (3, int(new[0][3, 0]))
    assert contents(store) == before
    (store / "negatives" / "000001.safetensors").unlink()
    ended = jasper("show", store, "--pair", 3, "--generation", 1)
    assert (ended.status, ended.out) == (1, "")
    assert "generation 1 was removed or never existed; available: 2, 3." in ended.err


@pytest.mark.parametrize("row", [-1, 500, 10**20])
def test_rows_out_of_range_fail_with_one_line(jasper: Command, demo_store: Path, row: int) -> None:
    """At both ends."""
    ended = jasper("show", demo_store, "--pair", row)
    message = f"Error: pair {row} out of range: there are 500 pairs, numbered 0 to 499.\n"
    assert ended == (1, "", message)


@pytest.mark.parametrize("options", [(), ("--pair", 1, "--source", 2), ("--pair", "x")])
def test_one_row_is_to_be_named(jasper: Command, demo_store: Path, options: tuple[Any]) -> None:
    """Neither none nor two."""
    assert jasper("show", demo_store, *options).status == 2


def test_texts_of_another_length_fail_with_both_lengths(
    jasper: Command, demo_store: Path, tmp_path: Path
) -> None:
    """And name the file."""
    questions, sources = texts_of(demo_store, tmp_path)
    ended = jasper("show", demo_store, "--pair", 0, "--texts", sources, questions)
    sizes = Store(demo_store).manifest.sizes
    assert ended.status == 1
    assert f"{sources}: has {sizes['N_s']} lines" in ended.err
    assert f"question_embs has {sizes['N_q']} rows" in ended.err
