"""What a store and those who read it must be after any operations, as a few numbers.

Tables and negatives are named by numbers too: `tables` 0 or 1 of two builder's folders, `content`
the number that `tests.publishing.numbered` gives to negatives.
"""

from dataclasses import dataclass, field, replace

from jasper_mmap.rules.names import Variant


@dataclass
class Disk:
    """The store; `tables` is None while a conversion of it is not complete."""

    tables: int | None
    pointed: int
    """The tables that the pointer of the current generation names."""
    history: list[int]
    """Every generation that was ever current; the last one is."""
    content: dict[int, int]
    """Generation -> content, of those whose file is there."""
    made: int
    """Content of the generation last made from a builder's files."""

    @property
    def current(self) -> int:
        return self.history[-1]

    def publish(self, number: int, content: int, keep: int | None) -> None:
        """Make a generation current and remove all but the last `keep`."""
        assert number > self.current, "a number was used again"
        self.history.append(number)
        self.content[number] = content
        if keep is not None:
            self.content = {n: self.content[n] for n in sorted(self.content)[-keep:]}

    def convert(self, tables: int, content: int, number: int) -> None:
        """Take in a builder's folder; its negatives only if they differ from the last ones, and
        from the current ones."""
        if number != self.current:
            self.publish(number, content, None)
        if self.content[number] == content:
            self.made = content
        assert self.made == content, "the builder's negatives were not taken in"
        self.tables = self.pointed = tables


@dataclass(frozen=True)
class Served:
    """What one reader must serve."""

    tables: int
    generation: int
    content: int
    epoch: int = 0
    forced: Variant | None = None
    passes: int = 0
    """Passes since the epoch began."""

    def adopting(self, disk: Disk) -> "Served":
        """After looking for a newer generation of the same tables."""
        if disk.current <= self.generation:
            return self
        return replace(self, generation=disk.current, content=disk.content[disk.current])

    def outdated(self, disk: Disk) -> bool:
        """Whether the newest generation belongs to other tables."""
        return disk.current > self.generation and disk.pointed != self.tables


def opened(disk: Disk) -> Served:
    """What a reader that opens the store now must serve."""
    assert disk.tables is not None
    return Served(disk.tables, disk.current, disk.content[disk.current])


@dataclass
class Orders:
    """The order of each pass, which no example may change."""

    known: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def hold(self, epoch: int, number: int, order: list[int], n: int) -> None:
        """Require that a pass is a permutation, and the one that others saw."""
        assert sorted(order) == list(range(n))
        assert self.known.setdefault((epoch, number), order) == order
