"""The answers of `jasper-mmap show` as text: one pair, question or source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ...console import Column, Meaning, echo, echo_table, verdict
from ...printable import printable
from ...similarity.duplicates import SAME_COSINE
from ...similarity.single.pair import Pair
from ...similarity.single.question import Question
from ...similarity.single.source import Source
from ...store.texts import Texts

Row = Pair | Question | Source

_FLAGS: Final[dict[str, tuple[str, str, Meaning | None]]] = {
    "own_source": ("own source", "the pair's own right source", "bad"),
    "right_source": ("right source", "another right source of the question", "bad"),
    "right_by_content": (
        "right by content",
        f"a cosine of at least {SAME_COSINE} with a right source of the question",
        "bad",
    ),
    "margin_false_negative": (
        "margin",
        "a margin false negative: perhaps right too, since its similarity is above",
        "doubtful",
    ),
    "evaluation_only": (
        "val/test only",
        "right for pairs of val or test, and for none of train",
        None,
    ),
}
"""Flag -> how it is shown, what it means, and how good it is."""
_LONG, _SHORT = 400, 60
"""Characters of a text that are shown by itself, and in a table."""
_LISTED: Final = 10


def print_row(row: Row, texts: Texts, where: str) -> None:
    """Print a row with the texts that are known; `where` names store and generation."""
    if isinstance(row, Pair):
        _print_pair(row, texts, where)
    elif isinstance(row, Question):
        _print_question(row, texts, where)
    else:
        _print_source(row, texts, where)
    if texts.note:
        echo(f"note: {texts.note}")


def _print_pair(pair: Pair, texts: Texts, where: str) -> None:
    echo(f"pair {pair.pair} of {where}")
    facts = [
        f"split {_splits(pair.splits)}",
        f"cluster {pair.cluster}",
        f"relevance {_value(pair.relevance)}",
        f"centroid distance {_value(pair.centroid_distance)}",
        f"keywords {' '.join(map(str, pair.keywords)) or 'none'}",
    ]
    echo(", ".join(facts))
    echo(f"question {pair.question}{_quoted(texts.questions, pair.question)}")
    echo(
        f"right source {pair.source}{_quoted(texts.sources, pair.source)}:"
        f" similarity {_value(pair.similarity)}"
    )
    if len(pair.right_sources) > 1:
        echo(
            f"lowest of the question's {len(pair.right_sources)} right sources:"
            f" {_value(pair.lowest_right)} (source {pair.lowest_right_source})"
        )
    _table(
        ("slot", "tier", "source", "similarity", "flags"),
        [
            (
                str(n.slot),
                str(n.tier),
                str(n.source),
                _value(n.similarity),
                _flagged(n.flags),
            )
            for n in pair.negatives
        ],
        (0, 1, 2, 3),
        texts.sources,
        [n.source for n in pair.negatives],
    )
    shown = {flag for n in pair.negatives for flag in n.flags}
    for flag, (name, meaning, _means) in _FLAGS.items():
        if flag in shown:
            end = ""
            if flag == "margin_false_negative":
                end = f" {_value(pair.limit)}, {pair.margin:.0%} below the lowest right source"
            echo(f"{name}: {meaning}{end}")
    _table(
        ("steering", "norm", "question", "centroid", "right source", "source - question", "rank"),
        [
            (
                d.variant,
                *map(_value, (d.norm, d.question, d.centroid, d.source, d.difference)),
                "-" if d.rank is None else str(d.rank),
            )
            for d in pair.steering
        ],
        range(1, 7),
    )
    echo(
        "steering: cosine with the question, its cluster's centroid, the right source, and right"
        " source - question"
    )
    echo(
        f"rank: of the right source among {len(pair.negatives) + 1} by the cosine with question +"
        " steering"
    )
    _print_notes(pair.zero_vectors, [pair.lowest_right, *(n.similarity for n in pair.negatives)])


def _print_question(question: Question, texts: Texts, where: str) -> None:
    number = question.question
    echo(f"question {number} of {where}{_quoted(texts.questions, number)}")
    if not question.pairs:
        echo("no pair has this question")
    else:
        sources = {pair.source for pair in question.pairs}
        echo(
            f"{_count(len(question.pairs), 'pair')}, {_count(len(sources), 'right source')}; the"
            f" lowest similarity is {_value(question.lowest_right)} (source"
            f" {question.lowest_right_source})"
        )
        _table(
            ("pair", "split", "source", "similarity", "relevance", "cluster", "negative of"),
            [
                (
                    str(pair.pair),
                    _splits(pair.splits),
                    str(pair.source),
                    _value(pair.similarity),
                    _value(pair.relevance),
                    str(pair.cluster),
                    ", ".join(f"{s.pair} (tier {s.tier})" for s in pair.negative_in) or "-",
                )
                for pair in question.pairs
            ],
            (0, 2, 3, 4, 5),
            texts.sources,
            [pair.source for pair in question.pairs],
        )
        echo("negative of: the pairs of this question among whose negatives the source is")
    _print_notes(question.zero_vectors, [pair.similarity for pair in question.pairs])


def _print_source(source: Source, texts: Texts, where: str) -> None:
    number = source.source
    echo(f"source {number} of {where}{_quoted(texts.sources, number)}")
    only = ", of val or test only" if source.evaluation_only else ""
    echo(f"norm {_value(source.norm)}; right for {_count(len(source.right), 'pair')}{only}")
    if source.right:
        listed = source.right[:_LISTED]
        _table(
            ("pair", "split", "question", "similarity"),
            [
                (str(r.pair), _splits(r.splits), str(r.question), _value(r.similarity))
                for r in listed
            ],
            (0, 2, 3),
            texts.questions,
            [r.question for r in listed],
        )
        if (more := len(source.right) - len(listed)) > 0:
            echo(f"and {_count(more, 'more pair')} (--json lists all)")
    slots = ", ".join(f"{n:,} of tier {tier}" for tier, n in source.negative_slots.items() if n)
    echo(
        f"a negative in {_count(sum(source.negative_slots.values()), 'slot')}"
        f"{f' ({slots})' if slots else ''}; the mean of all sources is {source.mean_slots:.1f}"
    )
    if source.nearest_rows:
        _table(
            ("nearest to", "split", "question", "tier", "similarity", "right source", "flags"),
            [
                (
                    f"pair {r.pair}",
                    _splits(r.splits),
                    str(r.question),
                    str(r.tier),
                    _value(r.similarity),
                    _value(r.own_similarity),
                    _flagged(["right_source"] if r.right else []),
                )
                for r in source.nearest_rows
            ],
            (2, 3, 4, 5),
            texts.questions,
            [r.question for r in source.nearest_rows],
        )
    _table(
        ("nearest source", "cosine"),
        [(str(near.source), _value(near.cosine)) for near in source.nearest_sources],
        (0, 1),
        texts.sources,
        [near.source for near in source.nearest_sources],
    )
    zero = (f"source {number}",) if source.norm == 0 else ()
    _print_notes(zero, [r.similarity for r in source.right])


def _table(
    header: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    right: Iterable[int],
    texts: Mapping[int, str] | None = None,
    numbers: Sequence[int] = (),
) -> None:
    """Print a table after an empty line; with a column of texts where any of `numbers` has one,
    each on a line of its own where the terminal is narrow."""
    places = set(right)
    columns = [
        Column(title, right=place in places, wrap=place not in places)
        for place, title in enumerate(header)
    ]
    if texts and any(number in texts for number in numbers):
        columns.append(Column("text", rank=1))
        rows = [
            (*row, _cut(texts[number], _SHORT) if number in texts else "")
            for row, number in zip(rows, numbers, strict=True)
        ]
    echo("")
    echo_table(columns, rows)


def _print_notes(zero_vectors: Sequence[str], similarities: Iterable[float | None]) -> None:
    if zero_vectors:
        one = len(zero_vectors) == 1
        what = "is a zero vector: its" if one else "are zero vectors: their"
        echo(f"note: {', '.join(zero_vectors)} {what} cosine with everything is taken as 0")
    if None in similarities:
        echo("note: an embedding with NaN or infinity has no cosine, shown as -")


def _flagged(flags: Sequence[str]) -> str:
    """The names of flags; a known right source is bad, one by the margin doubtful."""
    text = ", ".join(_FLAGS[flag][0] for flag in flags)
    meanings = [means for flag in flags if (means := _FLAGS[flag][2]) is not None]
    return verdict(text, meanings[0]) if meanings else text


def _splits(splits: Sequence[str]) -> str:
    return ", ".join(splits) or "none"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _quoted(texts: Mapping[int, str], number: int) -> str:
    return f' "{_cut(texts[number], _LONG)}"' if number in texts else ""


def _cut(text: str, length: int) -> str:
    """The beginning of a text, escaped: cut where the escapes end, not within one."""
    escaped = printable(text[: length + 1])
    return escaped if len(escaped) <= length else f"{escaped[: length - 3].rstrip()}..."
