"""Those who read a store while others change it: each serves one split, whole passes at a time."""

import multiprocessing
import pickle
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.rules.names import Split
from tests.serving import loader_of, next_positions

Batches = Iterator[tuple[list[int], dict[str, Tensor]]]
SPLIT: Split = "train"
BATCH = 8
_FORK = multiprocessing.get_context("fork")


class Reader:
    """Reads a dataset by lists of positions."""

    counts_passes = False

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def read(self) -> Batches:
        """Serve every position once."""
        n = len(self.dataset)
        for begin in range(0, n, BATCH):
            positions = list(range(begin, min(begin + BATCH, n)))
            yield positions, self.dataset.__getitems__(positions).columns

    def read_closed(self) -> None:
        """Read after `close`."""
        next(self.read())

    def copied(self) -> bytes:
        """Pickle the dataset."""
        return pickle.dumps(self.dataset)

    def close(self) -> None:
        """Close the dataset."""
        self.dataset.close()

    def end(self) -> None:
        """Leave nothing behind."""
        self.dataset.close()


class OwnLoader(Reader):
    """`create_loader` with two persistent workers."""

    counts_passes = True

    def __init__(self, store: Path, **options: Any) -> None:
        self.loader = loader_of(store, SPLIT, BATCH, 2, drop_last=False, **options)
        super().__init__(self.loader.dataset_obj)

    def read(self) -> Batches:
        """Take a pass."""
        promised = next_positions(self.loader)
        yield from zip(promised, self.loader, strict=True)


class StockLoader(Reader):
    """torch's own DataLoader with a persistent worker."""

    def __init__(self, store: Path, **options: Any) -> None:
        super().__init__(JASPERSteeringDataset(store, SPLIT, **options))
        self.loader: DataLoader[Any] = DataLoader(
            self.dataset,
            BATCH,
            num_workers=1,
            persistent_workers=True,
            multiprocessing_context="fork",
        )

    def read(self) -> Batches:
        """Take a pass."""
        n = len(self.dataset)
        for number, batch in enumerate(self.loader):
            yield list(range(number * BATCH, min(number * BATCH + BATCH, n))), batch

    def read_closed(self) -> None:
        """Read in this process: torch's workers have datasets of their own."""
        self.dataset.__getitems__([0])


class Copy(Reader):
    """A copy by pickle."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(pickle.loads(pickled))


class OtherProcess(Reader):
    """A dataset that another process opened."""

    def __init__(self, store: Path, **options: Any) -> None:
        here, there = _FORK.Pipe()
        self._child = _FORK.Process(target=_serve, args=(there, store, options), daemon=True)
        self._child.start()
        there.close()
        self._pipe = here
        super().__init__(self)
        try:
            self._answer()
        except Exception:
            self.end()
            raise

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._ask(name, *arguments)

    def __len__(self) -> int:
        return int(self._ask("__len__"))

    def _ask(self, *call: Any) -> Any:
        self._pipe.send(call)
        return self._answer()

    def _answer(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def read(self) -> Batches:
        """Serve every position once."""
        n = len(self)
        for begin in range(0, n, BATCH):
            positions = list(range(begin, min(begin + BATCH, n)))
            columns = self._ask("columns", positions)
            yield positions, {name: torch.from_numpy(array) for name, array in columns.items()}

    def copied(self) -> bytes:
        """Pickle the dataset over there."""
        pickled: bytes = self._ask("copied")
        return pickled

    def close(self) -> None:
        """Close the dataset over there."""
        self._ask("close")

    def end(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._child.join(10)
        assert self._child.exitcode == 0
        self._pipe.close()


def _serve(pipe: Connection, store: Path, options: dict[str, Any]) -> None:
    """Do what is asked with a dataset, until nothing is asked."""
    torch.set_num_threads(1)  # the threads of the parent's pool are not there after a fork
    dataset = None
    call: Any = ()
    while call is not None:
        try:
            answer: Any = None
            if not call:
                dataset = JASPERSteeringDataset(store, SPLIT, **options)
            elif call[0] == "columns":
                rows = dataset.__getitems__(call[1])  # type: ignore[union-attr]
                answer = {name: column.numpy() for name, column in rows.columns.items()}
            elif call[0] == "copied":
                answer = pickle.dumps(dataset)
            else:
                answer = getattr(dataset, call[0])(*call[1:])
        except Exception as error:  # noqa: BLE001  # whatever it is, the asker gets it
            answer = error
        pipe.send(answer)
        call = pipe.recv()
