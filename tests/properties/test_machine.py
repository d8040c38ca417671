"""Any order of operations on one store: every reader serves what a small model says, or raises the
named error."""

import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import Tensor

from converters import convert
from jasper_mmap import publish_negatives, rollback_negatives
from jasper_mmap.errors import ClosedError, MissingFileError, StoreChangedError, UsageError
from jasper_mmap.rules.names import Variant
from jasper_mmap.store.manifest import MANIFEST_FILE
from tests.converting import in_child
from tests.injecting import Fault, injected
from tests.oracle import VARIANTS, Oracle, assert_batches_equal
from tests.properties.model import Disk, Orders, Served, opened
from tests.properties.readers import SPLIT, Copy, OtherProcess, OwnLoader, Reader, StockLoader
from tests.publishing import Tables, current_pointer, generations_left, numbered, saved
from tests.serving import SPLITS, variants_in_epoch
from tools.demo.folder import make_builder_folder

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
KINDS: dict[str, Callable[..., Reader]] = {
    "own loader": OwnLoader,
    "stock loader": StockLoader,
    "process": OtherProcess,
}
SOURCES = {"first": (0, 0), "its negatives changed": (0, 1), "second": (1, 2)}
"""A builder's folder -> its tables and the content of its negatives."""
CONTENTS = range(3, 9)
KILLS = st.tuples(st.just(""), st.integers(0, 400)) | st.tuples(
    st.sampled_from(("replace", "unlink", "fsync")), st.integers(0, 40)
)
"""Before which call a process is killed: the k-th of any, or of those that change a folder. Some
are more than there are, so that not all are killed."""
readers = st.sampled_from([*KINDS, "copy"])


class World:
    """The builder's folders, the store of the first, and what a batch of any of them holds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = {name: root / name for name in SOURCES}
        for name, (tables, _) in SOURCES.items():
            make_builder_folder(
                self.folders[name], seed=tables, n_pairs=40, dim=6, n_neg=3, n_clusters=4
            )
        for split in SPLITS:  # else the variants would differ
            name = f"{split}_idx.pt"
            shutil.copyfile(self.folders["first"] / name, self.folders["second"] / name)
        self.oracles = [Oracle(self.folders[name]) for name in ("first", "second")]
        for name, (_, content) in SOURCES.items():
            for path in saved(self.negatives(content), self.folders[name]):
                # Files of one clock tick would have one stamp.
                os.utime(path, (content, content))
        self.ids = {}
        for name in ("second", "first"):
            shutil.rmtree(root / "store", ignore_errors=True)
            self.ids[convert(self.folders[name], root / "store").store_id] = SOURCES[name][0]
        self.orders = Orders()

    def negatives(self, content: int) -> Tables:
        """Return the negatives and tiers of a number, valid for either tables."""
        return numbered(self.oracles[0], content)

    @cache  # noqa: B019  # there is one world
    def rows(self, tables: int, content: int, variant: int) -> dict[str, Tensor]:
        """Return the whole split, steered by one variant."""
        oracle = self.oracles[tables]
        negatives = self.negatives(content)
        oracle.hard_negatives, oracle.negative_tiers = (table.tolist() for table in negatives)
        n = len(oracle.splits[SPLIT])
        return oracle.batch(SPLIT, range(n), [variant] * n)

    @cache  # noqa: B019  # there is one world
    def variants(self, epoch: int) -> list[int]:
        """Return the variant of each position; a function of what both folders have alike."""
        return variants_in_epoch(self.root / "store", SPLIT, epoch)

    def batch(self, served: Served, positions: list[int]) -> dict[str, Tensor]:
        """Return what the batch of some positions must hold."""
        forced = None if served.forced is None else VARIANTS.index(served.forced)
        drawn = self.variants(served.epoch)
        rows = []
        for position in positions:
            variant = drawn[position] if forced is None else forced
            columns = self.rows(served.tables, served.content, variant)
            rows.append({name: column[position] for name, column in columns.items()})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


world: World


@pytest.fixture(scope="module", autouse=True)
def one_world() -> Iterator[None]:
    """Make the folders once; let the package log nothing, for pytest keeps every record."""
    global world
    logger = logging.getLogger("jasper_mmap")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="jasper_machine_", dir=IN_MEMORY) as root:
        world = World(Path(root))
        yield
    logger.setLevel(before)


class Killer(Fault):
    """Kills the process at its k-th call of the operating system, of that name if there is one."""

    def __init__(self, at: tuple[str, int]) -> None:
        super().__init__()
        self._name, self._left = at

    def __call__(self, name: str, first: Any, *_: Any) -> None:
        """Count a call."""
        if self._name in ("", name):
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1


class Machine(RuleBasedStateMachine):
    """One store, those who read it, and the model of both."""

    def __init__(self) -> None:
        super().__init__()
        self._held = ExitStack()
        root = tempfile.TemporaryDirectory(prefix="jasper_machine_", dir=IN_MEMORY)
        self.store = Path(
            shutil.copytree(world.root / "store", self._held.enter_context(root) + "/store")
        )
        self.disk = Disk(0, 0, [1], {1: 0}, made=0)
        self.readers: dict[str, tuple[Reader, Served]] = {}

    def teardown(self) -> None:
        """End every reader."""
        for reader, _ in self.readers.values():
            reader.end()
        self._held.close()

    # What changes the store.

    @property
    def complete(self) -> bool:
        """Whether no conversion was interrupted."""
        return self.disk.tables is not None

    @rule(content=st.sampled_from(CONTENTS), keep=st.integers(1, 3), republish=st.booleans())
    def publish(self, content: int, keep: int, republish: bool) -> None:
        """Publish negatives; those that are current already only where asked."""
        if not self.complete:
            with pytest.raises(StoreChangedError):
                self._publish(content, keep)
            return
        known = self.disk.content[self.disk.current] if self.disk.pointed == self.disk.tables else 0
        number = self._publish(content, keep, republish=republish)
        if known == content and not republish:
            assert number == self.disk.current
        else:
            self.disk.publish(number, content, keep)

    def _publish(self, content: int, keep: int, *, republish: bool = True) -> int:
        tables = world.negatives(content)
        return publish_negatives(self.store, *tables, keep=keep, grace_s=0, republish=republish)

    @rule(back=st.integers(1, 4) | st.none(), keep=st.integers(1, 3))
    def rollback(self, back: int | None, keep: int) -> None:
        """Go back by some generations of the history, or to the one before."""
        history = self.disk.history
        to = history[-2:][0] if back is None else history[-1 - back :][0]
        expected: type[Exception] | None = None
        if not self.complete:
            expected = StoreChangedError
        elif to == self.disk.current:
            expected = MissingFileError if back is None else UsageError
        elif to not in self.disk.content:
            expected = MissingFileError
        options: dict[str, Any] = {"keep": keep, "grace_s": 0}
        generation = None if back is None else to
        if expected is not None:
            with pytest.raises(expected):
                rollback_negatives(self.store, generation, **options)
        else:
            number = rollback_negatives(self.store, generation, **options)
            self.disk.publish(number, self.disk.content[to], keep)

    @rule(source=st.sampled_from([*SOURCES]))
    def convert_again(self, source: str) -> None:
        """Convert the same folder or another one into the store; completes what was interrupted."""
        report = convert(world.folders[source], self.store)
        self.disk.convert(*SOURCES[source], report.generation)

    # What is killed meanwhile.

    @rule(content=st.sampled_from(CONTENTS), keep=st.integers(1, 3), at=KILLS)
    @precondition(lambda self: self.complete)
    def kill_publisher(self, content: int, keep: int, at: tuple[str, int]) -> None:
        """The old generation stays current, or the new one is."""

        def act() -> None:
            with injected(Killer(at)):
                self._publish(content, keep)

        status = in_child(act)
        number = current_pointer(self.store)["generation"]
        before = dict(self.disk.content)
        if number != self.disk.current:
            self.disk.publish(number, content, keep)
        left = set(generations_left(self.store))
        assert left >= self.disk.content.keys(), "one that must stay was removed"
        if status:  # old ones may have been left
            self.disk.content |= {n: before[n] for n in left & before.keys()}
        event(f"publisher: {'killed' if status else 'done'}, published: {number not in before}")

    @rule(source=st.sampled_from([*SOURCES]), at=KILLS)
    def kill_converter(self, source: str, at: tuple[str, int]) -> None:
        """The old store is there, the new one, or none that anybody opens."""

        def act() -> None:
            with injected(Killer(at)):
                convert(world.folders[source], self.store)

        status = in_child(act)
        pointer = current_pointer(self.store)
        if pointer["generation"] != self.disk.current:
            self.disk.convert(*SOURCES[source], pointer["generation"])
        made = [entry["generation"] for entry in pointer["history"] if entry["source"]][-1]
        if made == self.disk.current:  # its values were there, and are those of the files now
            self.disk.made = self.disk.content[made]
        self.disk.pointed = world.ids[pointer["store_id"]]
        tables = None
        with suppress(FileNotFoundError):
            tables = world.ids[json.loads((self.store / MANIFEST_FILE).read_text())["store_id"]]
        if status == 0:
            assert tables == SOURCES[source][0]
        assert tables in (None, self.disk.tables, SOURCES[source][0])
        event(f"converter: {'killed' if status else 'done'}, store there: {tables is not None}")
        self.disk.tables = tables

    # Readers.

    @rule(kind=st.sampled_from([*KINDS]), full=st.booleans())
    def open_again(self, kind: str, full: bool) -> None:
        """Close a reader and open the store as it is now."""
        if kind in self.readers:
            self.readers.pop(kind)[0].end()
        options = {"validate": "full"} if full else {}
        if not self.complete:
            with pytest.raises(StoreChangedError, match="running or was interrupted"):
                KINDS[kind](self.store, **options)
        else:
            self.readers[kind] = KINDS[kind](self.store, **options), opened(self.disk)

    @rule(of=st.sampled_from([*KINDS]))
    def copy(self, of: str) -> None:
        """Copy a reader by pickle; the copy opens the store and the generation itself."""
        if of not in self.readers:
            return
        reader, served = self.readers[of]
        copied, served = Copy(reader.copied()), replace(served, passes=0)
        if "copy" in self.readers:
            self.readers.pop("copy")[0].end()
        if self.disk.tables == served.tables and served.generation in self.disk.content:
            self.readers["copy"] = copied, served
            return
        with pytest.raises((StoreChangedError, MissingFileError)):
            next(copied.read())
        copied.end()

    @rule(
        kinds=st.sampled_from([*KINDS, "copy"]).map(lambda kind: [kind]) | st.just([*KINDS, "copy"])
    )
    def reload(self, kinds: list[str]) -> None:
        """Look for a newer generation, in one reader or in all."""
        for kind in self.readers.keys() & kinds:
            reader, served = self.readers[kind]
            if served.outdated(self.disk):
                with pytest.raises(StoreChangedError):
                    reader.dataset.reload_negatives()
                continue
            served = served.adopting(self.disk)
            assert reader.dataset.reload_negatives() == served.generation
            self.readers[kind] = reader, served

    @rule(kind=readers, epoch=st.integers(0, 4))
    def set_epoch(self, kind: str, epoch: int) -> None:
        """Move a reader to an epoch."""
        if kind in self.readers:
            reader, served = self.readers[kind]
            reader.dataset.set_epoch(epoch)
            self.readers[kind] = reader, replace(served, epoch=epoch, passes=0)

    @rule(kind=readers, variant=st.sampled_from([*VARIANTS, None]))
    def force(self, kind: str, variant: Variant | None) -> None:
        """Force the steering of a reader."""
        if kind in self.readers:
            reader, served = self.readers[kind]
            reader.dataset.force_steering(variant)
            self.readers[kind] = reader, replace(served, forced=variant)

    @rule(kind=readers)
    def close(self, kind: str) -> None:
        """Close a reader: it says so from then on."""
        if kind in self.readers:
            reader, _ = self.readers.pop(kind)
            reader.close()
            with pytest.raises(ClosedError):
                reader.read_closed()
            reader.end()

    @initialize(kinds=st.sets(st.sampled_from([*KINDS]), min_size=1))
    def begin(self, kinds: set[str]) -> None:
        """Open some readers."""
        for kind in sorted(kinds):
            self.open_again(kind, full=False)

    @invariant()
    def serve(self) -> None:
        """Every reader serves exactly what the model says."""
        for kind, (reader, served) in self.readers.items():
            order: list[int] = []
            for positions, batch in reader.read():
                want = world.batch(served, positions)
                assert_batches_equal(batch, want, where=f"{kind} {served}")
                order += positions
            if reader.counts_passes:
                n = len(world.oracles[0].splits[SPLIT])
                world.orders.hold(served.epoch, served.passes, order, n)
            self.readers[kind] = reader, replace(served, passes=served.passes + 1)


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=max(1, settings().max_examples // 12), stateful_step_count=14
)
