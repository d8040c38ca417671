"""Loaders that a user could write without other libraries, as contenders of the benchmark.

Each makes the nine columns of a batch from the train split, shuffled. `prepare` writes its files,
`open` starts it. Shape letters: `B` batch, `D` embedding_dim, `N` n_neg, `N_p` pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.bench.measure import SPLIT, consuming, endless, open_ours
from jasper_mmap.bench.turns import Running
from jasper_mmap.rules.schema import ARTIFACTS, STEERING, Batch
from tools.bench.inputs import Inputs

Rows = NDArray[np.int64]
Read = Callable[[str, Tensor], Tensor]
"""Reads the rows of a named table by a 1-D int64 tensor."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to load batches; all functions are module-level, so that they can be pickled."""

    name: str
    what: str
    open: Callable[[Path, int, int], Running]
    """Opens it, given its folder, the number of workers and the batch size."""
    folder: Callable[[Inputs], Path]
    prepare: Callable[[Path, Path, int], object] | None = None
    """Writes its folder, given the folder, the store and how many pairs to materialise."""
    load: Callable[[], object] | None = None
    """Imports what it needs; not counted as opening."""
    materialises: bool = False
    """It stores each pair with its negatives' embeddings, and only a part of the pairs."""


def share_by_name() -> None:
    """Pass tensors between processes as named files, the faster of torch's two ways."""
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]


def stock_loader(dataset: Any, workers: int, **options: Any) -> DataLoader[Any]:
    """torch's DataLoader with persistent workers."""
    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)


def open_stock(store: Path, workers: int, batch_size: int) -> Running:
    """torch's DataLoader with its default collate over our dataset."""
    dataset = JASPERSteeringDataset(store, SPLIT)
    loader = stock_loader(dataset, workers, batch_size=batch_size, shuffle=True, drop_last=True)
    return consuming(endless(loader, dataset.set_epoch), workers)


class PerSampleDataset(Dataset[dict[str, Tensor]]):
    """A typical dataset of users: it loads all files and makes one pair at a time."""

    def __init__(self, folder: Path, split: str, seed: int = 42) -> None:
        for name in ARTIFACTS:
            setattr(self, name, torch.load(folder / f"{name}.pt", weights_only=True))
        self.tables: dict[str, Tensor] = vars(self)
        self.split_indices = self.tables[f"{split}_idx"]
        self.steering = [self.tables[name] for name in STEERING if name]
        self.probabilities = torch.full((len(STEERING),), 1 / len(STEERING))
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.split_indices)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        tables = self.tables
        pair = int(self.split_indices[position])
        question, source = tables["pair_index"][pair].tolist()
        variant = int(torch.multinomial(self.probabilities, 1, generator=self.generator))
        target = tables["source_embs"][source]
        steering = self.steering[variant - 1][pair] if variant else torch.zeros_like(target)
        return {
            "question_emb": tables["question_embs"][question],
            "target_source_emb": target,
            "steering": steering,
            "negative_embs": tables["source_embs"][tables["hard_negatives"][pair]],
            "cluster_id": tables["pair_cluster_id"][pair],
            "relevance": tables["pair_relevance"][pair],
            "centroid_distance": tables["centroid_distances"][pair],
            "steering_variant": torch.tensor(variant),
            "negative_tiers": tables["negative_tiers"][pair],
        }


def open_per_sample(folder: Path, workers: int, batch_size: int) -> Running:
    """The per-sample dataset in torch's DataLoader with its default collate."""
    dataset = PerSampleDataset(folder, SPLIT)
    loader = stock_loader(dataset, workers, batch_size=batch_size, shuffle=True, drop_last=True)
    return consuming(endless(loader), workers)


class VectorisedDataset(Dataset[Batch]):
    """Whole batches, each table read by rows with `read`; a position is a list of positions."""

    def __init__(self, read: Read, split_indices: Tensor) -> None:
        self._read = read
        self._split_indices = split_indices

    def __len__(self) -> int:
        return len(self._split_indices)

    def __getitem__(self, positions: Sequence[int]) -> Batch:
        read = self._read
        pairs = self._split_indices[torch.tensor(positions)]
        questions, sources = read("pair_index", pairs).unbind(1)
        negatives = read("hard_negatives", pairs)
        embeddings = read("source_embs", negatives.view(-1))
        variants = torch.randint(len(STEERING), (len(pairs),))
        steering = torch.zeros(len(pairs), embeddings.shape[1])
        for variant, name in enumerate(STEERING):
            if name:
                places = (variants == variant).nonzero()[:, 0]
                steering[places] = read(name, pairs[places])
        return {
            "question_emb": read("question_embs", questions),
            "target_source_emb": read("source_embs", sources),
            "steering": steering,
            "negative_embs": embeddings.view(*negatives.shape, -1),
            "cluster_id": read("pair_cluster_id", pairs),
            "relevance": read("pair_relevance", pairs),
            "centroid_distance": read("centroid_distances", pairs),
            "steering_variant": variants,
            "negative_tiers": read("negative_tiers", pairs),
        }


def vectorised(dataset: Any, workers: int, batch_size: int, **options: Any) -> Iterator[Any]:
    """Whole batches of `dataset[positions]`, shuffled, without a collate step."""
    share_by_name()
    sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=True)
    return endless(stock_loader(dataset, workers, batch_size=None, sampler=sampler, **options))


def plain_tables(store: Path) -> Iterator[tuple[str, Tensor]]:
    """The tables of a store but the ragged one, as float32 and int64, and the train split."""
    with JASPERSteeringDataset(store, SPLIT) as dataset:
        for artifact in ARTIFACTS.values():
            if artifact.kind != "ragged" and artifact.split is None:
                wide = np.float32 if artifact.kind == "float" else np.int64
                table = getattr(dataset, artifact.name)
                yield artifact.name, _as(table, wide)
        yield "split_indices", _as(dataset.split_indices, np.int64)


def _as(table: Tensor, dtype: type[np.generic]) -> Tensor:
    if table.dtype.is_floating_point:
        return table.float()
    return torch.from_numpy(table.numpy().astype(dtype))


def prepare_npy(folder: Path, store: Path, _pairs: int) -> None:
    """Write one `.npy` file for each table."""
    for name, table in plain_tables(store):
        np.save(folder / f"{name}.npy", table.numpy())


def _take(tables: dict[str, NDArray[Any]], name: str, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.take(tables[name], rows.numpy(), axis=0))


def index_select(tables: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    """Read rows by `torch.index_select`."""
    return torch.index_select(tables[name], 0, rows)


def _opened_npy(folder: Path) -> dict[str, NDArray[Any]]:
    # As plain arrays: each operation on a numpy.memmap costs a few microseconds more.
    return {p.stem: np.asarray(np.load(p, mmap_mode="c")) for p in sorted(folder.glob("*.npy"))}


def open_numpy(folder: Path, workers: int, batch_size: int) -> Running:
    """numpy's memory-mapped arrays, read by `np.take`."""
    tables = _opened_npy(folder)
    split = torch.from_numpy(tables["split_indices"])
    dataset = VectorisedDataset(partial(_take, tables), split)
    return consuming(vectorised(dataset, workers, batch_size), workers)


def open_numpy_torch(folder: Path, workers: int, batch_size: int) -> Running:
    """The same files as tensors, read by `torch.index_select`, which uses all cores."""
    tables = {name: torch.from_numpy(array) for name, array in _opened_npy(folder).items()}
    dataset = VectorisedDataset(partial(index_select, tables), tables["split_indices"])
    return consuming(vectorised(dataset, workers, batch_size), workers)


def _store(inputs: Inputs) -> Path:
    return inputs.store


def _pt(inputs: Inputs) -> Path:
    return inputs.pt


def _npy(inputs: Inputs) -> Path:
    return inputs.work / "npy"


CONTENDERS = (
    Contender(name="ours", what="create_loader", open=open_ours, folder=_store),
    Contender(
        name="stock", what="torch DataLoader over our dataset", open=open_stock, folder=_store
    ),
    Contender(
        name="per-sample",
        what=".pt files loaded, one __getitem__ a sample",
        open=open_per_sample,
        folder=_pt,
    ),
    Contender(
        name="numpy",
        what="numpy memmap, np.take",
        open=open_numpy,
        folder=_npy,
        prepare=prepare_npy,
    ),
    Contender(
        name="numpy-torch",
        what="numpy memmap, torch.index_select",
        open=open_numpy_torch,
        folder=_npy,
        prepare=prepare_npy,
    ),
)
