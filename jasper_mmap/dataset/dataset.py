"""`JASPERSteeringDataset`: combines the parts of this room; it computes nothing itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from ..errors import AccessError
from ..files.atomic import storage_errors
from ..negatives.overwritten_pt import publish_overwritten
from ..rules import arguments
from ..rules.config import default_curriculum
from ..rules.curriculum import steering_probabilities
from ..rules.names import SEED, SPLITS, VARIANTS, Split, Validation, Variant
from ..rules.schema import Batch
from ..store.pointer import FOLDER, file_name
from .adoption import Adoption
from .artifacts import Artifacts
from .control import NO_VARIANT, Control, SplitWords
from .device.placed_store import PlacedStore
from .device.placement import Placement, placement_for
from .samples import Rows, Sample
from .split_reader import SplitReader

_log = logging.getLogger("jasper_mmap")


class JASPERSteeringDataset(Artifacts, Dataset[Batch]):
    """Batches of one split of a converted store.

    A map-style dataset: `dataset[position]` is a sample, `dataset[positions]` (a list, array or
    tensor) a batch; positions number the pairs of the split from 0. Each artifact is an attribute
    under its own name (`question_embs`, ..., `hard_negatives`, `negative_tiers`; `split_indices`
    holds the split's pair numbers, `pair_keyword_ids[i]` the 1-D int64 tensor of pair i) until
    `close()`.
    Tables are mapped, shared by all processes and never copied; writing to one in place changes
    this process's view only. A dataset pickles to a few kilobytes; the copy opens the store again.

    Args:
        dataset_dir: a folder that `jasper-convert` made; kept as an absolute path.
        split: "train", "val" or "test".
        epoch: sets the curriculum and the draw of steering variants; see `set_epoch`.
        device: "cpu" (or None) serves from the mapped files; a CUDA device gets one copy of every
            table, and every tensor of a batch is on it.
        seed: of the order and the draws; batches depend on nothing else that is random.
        validate: "auto" trusts the converter's checks while sizes and times of the files are
            unchanged; "full" recomputes every checksum and check.

    Raises:
        MissingFileError, ConfigError, FormatError, ContentError, StoreChangedError: the store is
            missing, not sound, or being converted.
        DeviceError, DeviceMemoryError: the device does not exist or has too little memory.
        UnknownSplitError, UsageError: an argument is invalid.
    """

    dataset_dir: Path
    """The store's folder."""
    split: Split
    seed: int

    def __init__(
        self,
        dataset_dir: str | Path,
        split: Split,
        epoch: int = 0,
        device: str | torch.device | None = "cpu",
        *,
        seed: int = SEED,
        validate: Validation = "auto",
    ) -> None:
        split = arguments.split_name(split)
        served = PlacedStore(dataset_dir, placement_for(device), validate=validate)
        (adoption, words), *_ = _served_together(served, 1)
        self._begin(adoption, words, split, epoch, seed)

    def _begin(
        self, adoption: Adoption, words: SplitWords, split: Split, epoch: int, seed: int
    ) -> None:
        self.dataset_dir = adoption.path
        self.split = split
        self.seed = arguments.seed(seed)
        self.collective = False
        """Whether it is one of several ranks', which switch together (see `loader/ranks`)."""
        self.loaded: object = None  # a state, until the ranks agree on it
        self.epoch_calls = 0
        self._words = words
        self._words.set_epoch(arguments.integer("epoch", epoch))
        self._words.set_forced(NO_VARIANT)
        served = adoption.served
        self._reader = SplitReader(served, adoption, self._words, split, self.seed)
        self.read_counts = self._reader.read_counts
        self._store_id = served.store.store_id
        self._about = (
            f"pairs={self._reader.n}, D={served.config.embedding_dim}, N={served.config.n_neg},"
            f" device={served.placement.device}"
        )
        _log.info(
            "opened %s split=%s pairs=%d generation=%d device=%s memory=%.1f MB",
            self.dataset_dir,
            split,
            len(self),
            self.generation,
            self.device,
            self.memory_usage_mb,
        )

    @staticmethod
    def create_combined_splits(
        dataset_dir: str | Path,
        epoch: int = 0,
        device: str | torch.device | None = "cpu",
        *,
        seed: int = SEED,
        validate: Validation = "auto",
        placement: Placement | None = None,
    ) -> dict[Split, JASPERSteeringDataset]:
        """Open the three splits over one set of mappings (on a device: over one copy).

        They share one generation: if one of them adopts it, all three serve it. Each has its own
        epoch, seed, forced steering and `close()`.
        """
        served = PlacedStore(dataset_dir, placement or placement_for(device), validate=validate)
        splits = {s: JASPERSteeringDataset.__new__(JASPERSteeringDataset) for s in SPLITS}
        shares = _served_together(served, len(splits))
        for (split, dataset), (adoption, words) in zip(splits.items(), shares, strict=True):
            dataset._begin(adoption, words, split, epoch, seed)
        return splits

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return (
            f"{type(self).__name__}({str(self.dataset_dir)!r}, {self.split!r}, {self._about},"
            f" epoch={self.current_epoch}, generation={self.generation}{state})"
        )

    def __len__(self) -> int:
        return self._reader.n

    def __getitem__(self, index: SupportsIndex | Sequence[int] | ArrayLike | torch.Tensor) -> Batch:
        if arguments.are_positions(index):
            return cast(Batch, self.__getitems__(cast(ArrayLike, index)).columns)
        return Sample.of(self.reader.read_single(self._checked(arguments.position(index))), 0)

    def __getitems__(self, indices: Sequence[int] | ArrayLike | torch.Tensor) -> Rows:
        positions = self._checked(indices)
        return Rows(self.reader.read(positions, reuse=True), len(positions))

    def _checked(self, indices: Any) -> NDArray[np.int64]:
        return arguments.positions_in(indices, len(self), self.split)

    @property
    def reader(self) -> SplitReader:
        """The reader of batches, for positions that are known to be in range."""
        self._open()
        return self._reader

    @property
    def adoption(self) -> Adoption:
        """The served generation; shared by the splits of `create_combined_splits`."""
        return self._reader.adoption

    def reload_negatives(
        self, source_dir: str | Path | None = None, *, allow_equal: bool = False
    ) -> int:
        """Look for a newer generation now and serve it, in every worker too; return its number.

        First publishes `hard_negatives.pt` and `negative_tiers.pt`, beside the store or in
        `source_dir`, if they were overwritten since a generation was last made from them. If only
        one was, waits for the other (about 5 s). Refuses equal tables unless `allow_equal`; warns
        on a read-only store. A damaged generation is an error and not served.
        """
        self.adoption.must_own()
        try:
            with storage_errors(self.dataset_dir):
                publish_overwritten(
                    self.dataset_dir, source_dir=source_dir, allow_equal=allow_equal
                )
        except AccessError as error:
            _log.warning("serving the published negatives; cannot publish new ones here: %s", error)
        return self.adoption.reload()

    def set_epoch(self, epoch: int) -> None:
        """Move to `epoch` (>= 0) in this process and in every worker of this dataset.

        This never communicates; `jasper_mmap.set_epoch` makes the ranks of torch.distributed agree
        on a generation.
        """
        epoch = arguments.integer("epoch", epoch)
        self.read_counts.end_epoch(self.split, self.current_epoch)
        self._words.set_epoch(epoch)
        if not self.closed:
            self.adoption.begin_epoch(self.split, epoch, collective=self.collective)
        self.epoch_calls += 1  # samplers restart their count of passes

    @property
    def files(self) -> list[Path]:
        """The served files of the store, including the generation's."""
        served = self._open()
        names = [entry.file for entry in served.store.manifest.artifacts.values()]
        return [served.path / n for n in (*names, f"{FOLDER}/{file_name(self.generation)}")]

    @property
    def store_id(self) -> str:
        """The id of the store's content: equal stores have equal ids."""
        return self._store_id

    def force_steering(self, variant: Variant | None) -> None:
        """Steer every pair by this variant ("zero", "centroid", "keyword", "residual") from now
        on, in every worker too; None restores the curriculum's draw."""
        name = None if variant is None else arguments.variant_name(variant)
        self._words.set_forced(NO_VARIANT if name is None else VARIANTS.index(name))

    @property
    def current_epoch(self) -> int:
        """The epoch of this process and its workers."""
        return self._words.read().epoch

    @property
    def steering_probs(self) -> dict[Variant, float]:
        """Variant -> its probability in the current epoch, by the curriculum; a forced variant does
        not change it."""
        return steering_probabilities(self._open().config, self.current_epoch)

    @property
    def generation(self) -> int:
        """The number of the served generation of hard negatives."""
        return self._words.read().generation

    @property
    def identity(self) -> tuple[int, str]:
        """Number and SHA-256 of the served generation, also after `close()`."""
        return self._reader.identity

    @property
    def embedding_dim(self) -> int:
        """D, the length of an embedding."""
        return self._open().config.embedding_dim

    @property
    def n_neg(self) -> int:
        """N, the number of negatives of a pair."""
        return self._open().config.n_neg

    @property
    def config(self) -> dict[str, Any]:
        """All of `config.json`, including unknown keys."""
        return self._open().config.raw

    @property
    def device(self) -> torch.device:
        """The device of the tables and of every tensor of a batch."""
        return self._open().placement.device

    @property
    def memory_usage_mb(self) -> float:
        """Bytes of all served tables / 2**20; mapped ones, which processes share, count in full."""
        return (self._open().nbytes + self.adoption.current(self.generation).nbytes) / 2**20

    def _open(self) -> PlacedStore:
        return self._reader.served

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._reader.closed

    def close(self) -> None:
        """Release the mappings, which end with the last tensor or dataset that uses them."""
        self._reader.close()

    def __getstate__(self) -> dict[str, Any]:
        self._open()  # a closed dataset raises here, not where it is unpickled
        return self.__dict__

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            _log.info("closed %r memory=%.1f MB", self, self.memory_usage_mb)
        self.close()


def _served_together(served: PlacedStore, splits: int) -> list[tuple[Adoption, SplitWords]]:
    """Open the tables; return the shared generation and the control words of each split."""
    generation = served.open()
    if (note := default_curriculum(served.config)) is not None:
        _log.info("%s: %s", served.path, note)
    control = Control(splits)
    adoption = Adoption(served, control, generation)
    return [(adoption, control.split(number)) for number in range(splits)]
