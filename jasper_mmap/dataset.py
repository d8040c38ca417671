"""`JASPERSteeringDataset`: joins the parts below; no arithmetic of its own."""

from __future__ import annotations

import logging
import operator
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from .adoption import Adoption
from .batch import Rows, Sample
from .control import NO_VARIANT, Control, Words
from .curriculum import steering_probabilities
from .errors import ClosedError, IndexRangeError, UsageError
from .negatives import FOLDER, file_name
from .placement import Placement, placement_for
from .reading import SplitReader
from .schema import ARTIFACTS, SPLITS, VARIANTS
from .served import Served
from .store import Validation

_log = logging.getLogger("jasper_mmap")


class JASPERSteeringDataset(Dataset[Sample]):
    """Batches of one split of a converted store.

    A map-style dataset: `dataset[position]` is a sample, `dataset.__getitems__(positions)` a whole
    batch; positions number the pairs of the split. Each artifact is an attribute under its own
    name (`question_embs`, ..., `hard_negatives`, `negative_tiers`; `split_indices` holds the
    split's pair numbers, `pair_keyword_ids[i]` the 1-D int64 tensor of pair i) until `close()`.
    Tables are mapped, shared by all processes and never copied; writing to one in place changes
    this process's view only. Pickles to a few kilobytes and opens again where it arrives.

    Args:
        dataset_dir: a folder that `jasper-convert` made; kept as an absolute path.
        split: "train", "val" or "test".
        epoch: sets the curriculum and the draw of steering variants; see `set_epoch`.
        device: "cpu" serves from the mapped files; a CUDA device gets one copy of every table,
            and every tensor of a batch lies there.
        seed: with it, batches are a function of the store, the epoch and the positions alone.
        validate: "auto" trusts what the converter checked as long as sizes and times of the files
            say that nothing changed; "full" recomputes every checksum and check.

    Raises:
        MissingFileError, ConfigError, FormatError, ContentError, StoreChangedError: the store is
            not there, not sound, or being converted.
        DeviceError, DeviceMemoryError: the device is not there or too small.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        split: str,
        epoch: int = 0,
        device: str | torch.device = "cpu",
        *,
        seed: int = 42,
        validate: Validation = "auto",
    ) -> None:
        placement = placement_for(device)
        self._begin(Served(dataset_dir, placement, validate=validate), split, epoch, seed)

    @classmethod
    def _over(cls, served: Served, split: str, epoch: int, seed: int) -> Self:
        self = cls.__new__(cls)
        self._begin(served, split, epoch, seed)
        return self

    def _begin(self, served: Served, split: str, epoch: int, seed: int) -> None:
        if split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        self.split = split
        self.seed = operator.index(seed)
        self._served: Served | None = served
        generation = served.open()
        self._control = Control(Words(_checked_epoch(epoch), NO_VARIANT, generation.number))
        self.adoption = Adoption(served, self._control, generation)
        reader = SplitReader(served, self.adoption, self._control, split, self.seed)
        self._reader: SplitReader | None = reader
        self.epoch_calls = 0
        self._length = reader.n
        _log.info(
            "opened %s split=%s pairs=%d generation=%d device=%s memory=%.1f MB",
            served.path,
            split,
            self._length,
            generation.number,
            served.placement.device,
            self.memory_usage_mb,
        )

    @staticmethod
    def create_combined_splits(
        dataset_dir: str | Path,
        epoch: int = 0,
        device: str | torch.device = "cpu",
        *,
        seed: int = 42,
        validate: Validation = "auto",
        placement: Placement | None = None,
    ) -> dict[str, JASPERSteeringDataset]:
        """The three splits over one set of mappings (on a device: over one copy)."""
        served = Served(dataset_dir, placement or placement_for(device), validate=validate)
        return {s: JASPERSteeringDataset._over(served, s, epoch, seed) for s in SPLITS}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        try:
            position = operator.index(index)
        except TypeError:
            raise UsageError(f"a position is a whole number, not {index!r}") from None
        columns = self._read_checked(np.array([position], dtype=np.int64))
        return Sample((name, column[0]) for name, column in columns.items())

    def __getitems__(self, indices: Sequence[int] | ArrayLike | torch.Tensor) -> Rows:
        positions = _as_positions(indices)
        return Rows(self._read_checked(positions), len(positions))

    def _read_checked(self, positions: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        if len(positions) and (positions.min() < 0 or positions.max() >= self._length):
            wrong = positions[(positions < 0) | (positions >= self._length)][0]
            raise IndexRangeError(
                f"Index {wrong} out of range: split '{self.split}' has {self._length} pairs,"
                " numbered from 0."
            )
        return self.reader.read(positions)

    @property
    def reader(self) -> SplitReader:
        """Reads batches of positions that are known to lie in the split."""
        self._open()
        return cast(SplitReader, self._reader)

    def reload_negatives(self) -> int:
        """Look for a newer generation now and serve it, in every worker too; the one in force.

        Publishes `hard_negatives.pt` and `negative_tiers.pt` beside the store first, if they were
        overwritten since a generation was last made from them. Where the new generation is spoilt
        that is an error, and the old one stays in service. On a read-only store it warns.
        """
        return self.adoption.reload()

    def set_epoch(self, epoch: int) -> None:
        """Move to `epoch` (>= 0) in this process and in every worker of this dataset."""
        self._control.set_epoch(_checked_epoch(epoch))
        if not self.adoption.collective:
            self.adoption.release()
        self.epoch_calls += 1  # tells samplers that their count of passes begins anew

    @property
    def files(self) -> list[Path]:
        """The store's files that are served, the generation's included."""
        served = self._open()
        names = [entry.file for entry in served.store.manifest.artifacts.values()]
        return [served.path / n for n in (*names, f"{FOLDER}/{file_name(self.generation)}")]

    @property
    def store_id(self) -> str:
        """Names the content of the store: equal stores have equal ones."""
        return self._open().store.store_id

    def force_steering(self, variant: str | None) -> None:
        """Give every pair this variant ("zero", "centroid", "keyword", "residual") from now on,
        in every worker too; None goes back to the curriculum's draw."""
        if variant is not None and variant not in VARIANTS:
            raise UsageError(f"variant must be one of {', '.join(VARIANTS)} or None: {variant!r}")
        self._control.set_forced(NO_VARIANT if variant is None else VARIANTS.index(variant))

    @property
    def current_epoch(self) -> int:
        return self._control.read().epoch

    @property
    def steering_probs(self) -> dict[str, float]:
        """Probability of each variant in the current epoch, by the curriculum; a forced variant
        does not change it."""
        return steering_probabilities(self._open().config, self.current_epoch)

    @property
    def generation(self) -> int:
        """The generation of hard negatives that is served."""
        return self._control.read().generation

    @property
    def embedding_dim(self) -> int:
        return self._open().config.embedding_dim

    @property
    def n_neg(self) -> int:
        return self._open().config.n_neg

    @property
    def config(self) -> dict[str, Any]:
        """All of `config.json`, with the keys nobody reads here."""
        return self._open().config.raw

    @property
    def device(self) -> torch.device:
        return self._open().placement.device

    @property
    def memory_usage_mb(self) -> float:
        """Bytes of all tables served, over 2**20; mapped ones are counted in full, although they
        lie in the page cache once for all processes."""
        return (self._open().nbytes + self.adoption.current(self.generation).nbytes) / 2**20

    def __getattr__(self, name: str) -> Any:
        artifact = ARTIFACTS.get(name)
        if artifact is None and name != "split_indices":
            if hasattr(type(self), name) and self.__dict__.get("_served") is None:
                self._open()  # a property that found the dataset closed ends up here
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        served = self._open()
        if artifact is None:
            return served.tables[f"{self.split}_idx"]
        if artifact.generation:
            return self.adoption.current(self.generation).tables[name]
        return served.table(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *ARTIFACTS, "split_indices"]

    def _open(self) -> Served:
        # Through __dict__, for __getattr__ must not be asked while the object is being built.
        served: Served | None = self.__dict__.get("_served")
        if served is None:
            raise ClosedError("the dataset was closed; open it again to read from it.")
        return served

    def close(self) -> None:
        """Let go of the mappings (they end with the last tensor that views them)."""
        self._served = self._reader = None
        self.adoption.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._served is not None:
            _log.info(
                "closed %s split=%s epoch=%d generation=%d memory=%.1f MB",
                self._served.path,
                self.split,
                self.current_epoch,
                self.generation,
                self.memory_usage_mb,
            )
        self.close()


def _checked_epoch(epoch: int) -> int:
    number = operator.index(epoch)
    if number < 0:
        raise UsageError(f"epoch must be 0 or more, not {number}")
    return number


def _as_positions(indices: Sequence[int] | ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    found = np.asarray(indices)
    if found.size == 0:
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UsageError(f"positions are a list of whole numbers, not {indices!r:.100}")
    return found.astype(np.int64)
