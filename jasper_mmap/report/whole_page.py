"""The page: one HTML file that needs nothing else, neither a network nor a script."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ..files import atomic
from ..printable import printable, size
from ..store import target
from ..version import __version__
from . import of_lint, of_rows, of_store
from .numbers.content import Content
from .numbers.shell import command
from .of_rows import cut
from .picture import Picture, Table, count
from .svg import check_libraries

MARKER: Final = "a report of jasper-mmap"
"""In the second line of a page: what has it may be replaced by a newer page."""
_MOST_KEYS: Final = 100
_BEGIN: Final = f"<!doctype html>\n<!-- {MARKER} -->\n"


def check_target(path: Path, store: Path) -> None:
    """Raise a `JasperError` unless a page can be written to `path`, before any work is done.

    A page that this command wrote is replaced; any other file is not.
    """
    check_libraries()
    target.check_target(path, store, "report", _is_page)


def write_page(content: Content, path: Path) -> int:
    """Write the page, complete or not at all, and return its bytes.

    Raises what the disk raises, as `JasperError`s that name `path`.
    """
    data = page(content).encode("utf-8", "backslashreplace")
    with atomic.replacing(path) as file:
        atomic.write_all(file, data)
    return len(data)


def page(content: Content) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__, "page"),
        autoescape=True,  # of every name: the default is off, and `select_autoescape` goes by name
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    store = Path(content.lint.store)
    safe = [
        {**vars(one), "svg": None if one.svg is None else Markup(one.svg)}
        for one in pictures(content)
    ]
    return environment.get_template("report.html.j2").render(
        marker=MARKER,
        version=__version__,
        name=cut(store.name),
        opening=opening(content),
        notes=[*map(printable, notes(content))],
        mend=content.mend,
        tables=store_tables(content),
        pictures=safe,
        made=content.made,
        json_command=command("jasper-mmap", "report", store, "--json"),
    )


def pictures(content: Content) -> list[Picture]:
    """All pictures, in the order of the page."""
    return [
        of_store.splits(content),
        of_lint.similarity(content.lint),
        of_lint.false_negatives(content.lint),
        of_lint.untrained(content.lint),
        of_store.curriculum(content),
        of_lint.steering(content.lint),
        of_store.cluster_sizes(content),
        of_store.cluster_map(content),
        of_store.relevance(content),
        of_store.centroid_distance(content),
        of_store.norms(content),
        of_rows.generations(content),
        of_rows.hubs(content),
        of_rows.worst(content),
    ]


def opening(content: Content) -> str:
    """What the store is, in a sentence."""
    lint, one = content.lint, content.lint.of_generation
    clusters = len(content.clusters.pairs)
    return (
        f"{count(content.pairs)} pairs of {count(lint.of_store.questions.count)} questions and"
        f" {count(lint.of_store.sources.count)} sources in {count(clusters)}"
        f" cluster{'' if clusters == 1 else 's'}, {one.slots // max(one.rows, 1)} hard negatives a"
        f" pair (generation {lint.generation}), {size(content.summary['bytes'])}."
    )


def notes(content: Content) -> list[str]:
    """What must be known before the numbers are read."""
    sampled = []
    if content.lint.sample is not None:
        sampled.append(
            "A sample: what is said of negatives comes from"
            f" {count(content.lint.of_generation.rows)} of {count(content.pairs)} pairs, drawn by"
            f" seed {content.lint.seed}. Counts are those of the sample."
        )
    return [*sampled, *content.summary["notes"], *content.lint.notes]


def store_tables(content: Content) -> tuple[Table, ...]:
    """What the store is, in full."""
    summary, generation = content.summary, content.summary["generation"]
    about = {
        "path": summary["store"],
        "store id": summary["store_id"],
        "format version": str(summary["format_version"]),
        "converted": summary["created"],
        "by": summary["converter"],
        "size": size(summary["bytes"]),
        "generation": str(generation["number"]),
        "published": generation["when"],
        "published by": generation["by"],
        "note": generation["note"],
    }
    tables = [*summary["artifacts"], *({**t, "bytes": None} for t in generation["tables"])]
    return (
        _texts("What it is", ("what", "value"), about),
        Table(
            title="Artifacts",
            header=("artifact", "dtype", "shape", "size"),
            rows=tuple(
                (
                    t["name"],
                    t["dtype"],
                    str(t["shape"]),
                    "" if t["bytes"] is None else size(t["bytes"]),
                )
                for t in tables
            ),
        ),
        _texts("config.json", ("key", "value"), content.config),
    )


def _texts(title: str, header: tuple[str, str], values: dict[str, Any]) -> Table:
    rows = tuple(
        (cut(key), cut(value if isinstance(value, str) else json.dumps(value)))
        for key, value in islice(values.items(), _MOST_KEYS)
    )
    if len(values) > _MOST_KEYS:
        title = f"{title} (the first {_MOST_KEYS} of {count(len(values))} keys)"
    return Table(title=title, header=header, rows=rows, text=(1,))


def _is_page(path: Path) -> bool:
    """Whether this command wrote the file."""
    with path.open("rb") as file:
        return file.read(len(_BEGIN)) == _BEGIN.encode()
