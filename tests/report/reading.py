"""A page read back by the standard library alone: its elements, sections and tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

EMPTY = {"meta", "link", "path", "use", "rect"}
"""Elements without an end tag, where the serialiser or HTML leaves it out."""


@dataclass
class Table:
    """A table: its header, and its rows as text."""

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Section:
    """A section by the id of its heading."""

    texts: dict[str, str] = field(default_factory=dict)
    """The text of every element with an id."""
    tables: dict[str, Table] = field(default_factory=dict)
    """By what unfolds them."""
    svgs: list[dict[str, str | None]] = field(default_factory=list)


class Page(HTMLParser):
    """Parses a page; it must be well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.sections: dict[str, Section] = {}
        self.commands: list[str] = []
        self.text = ""
        """All text but that of styles."""
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._section = Section()
        self._table = Table()
        self._parts: list[str] = []
        self._summary = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs)
        self.tags.append((tag, given))
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "section":
            self._section = Section()
            self.sections[str(given["aria-labelledby"]).removesuffix("-title")] = self._section
        elif tag == "table":
            self._table = Table()
            self._section.tables[self._summary] = self._table
        elif tag == "tr":
            self._row: list[str] = []
        elif tag == "svg":
            self._section.svgs.append(given)
        if tag not in EMPTY:
            self._open.append((tag, given))
            self._parts = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("id"):
            self.ids.append(str(dict(attrs)["id"]))

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][0] != "style":
            self.text += data
        self._parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in EMPTY:
            return
        opened, given = self._open.pop()
        assert opened == tag, f"{opened} ends as {tag}"
        text = "".join(self._parts)
        if tag in ("th", "td"):
            self._row.append(text)
        elif tag == "tr" and not self._table.header:
            self._table.header = self._row
        elif tag == "tr":
            self._table.rows.append(self._row)
        elif tag == "summary":
            self._summary = text
        elif tag == "code":
            self.commands.append(text)
        if given.get("id"):
            self._section.texts[str(given["id"])] = text
