"""Other libraries as contenders of `python -m tools.bench`, each in its fastest practical form.

All are optional: one that is not installed is reported as skipped. Install all four with
`pip install -e '.[contenders]' torch==X`; without the installed version X, pip may replace torch by
a CUDA build.
Hugging Face datasets, LitData and MosaicML Streaming store samples, as records (`records`);
tensordict maps the tables themselves.
"""

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jasper_mmap.bench.measure import consuming, endless
from jasper_mmap.bench.turns import Running
from tools.bench.contenders import (
    Contender,
    VectorisedDataset,
    index_select,
    plain_tables,
    share_by_name,
    stock_loader,
    vectorised,
)
from tools.bench.inputs import Inputs
from tools.bench.records import RecordLayout, Records

CHUNK_BYTES = 64 << 20
COLUMN = "record"
DATA = "data"
LAYOUT_FILE = "layout.json"


def _load(module: str) -> Any:
    """Import an optional library; typed `Any`, since types are checked without it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if module == "streaming":
        _let_torchvision_load()
    return importlib.import_module(module)


_kept: list[Any] = []


def _let_torchvision_load() -> None:
    """Make `import torchvision` work even if it was built for another torch.

    streaming imports it for its vision datasets. pip installs its CUDA build, whose import fails
    beside a CPU build of torch for lack of two operators, which are not used here.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _kept.append(library)


def _records(folder: Path, store: Path, pairs: int) -> Records:
    """Return the records to write; save their layout in `folder`."""
    records = Records(store, pairs)
    (folder / LAYOUT_FILE).write_text(json.dumps(asdict(records.layout)))
    return records


def _layout(folder: Path) -> RecordLayout:
    return RecordLayout(**json.loads((folder / LAYOUT_FILE).read_text()))


def _unpacking(loader: Any, layout: RecordLayout, workers: int) -> Running:
    """A contender whose loader yields whole batches of bytes `[B,nbytes]`."""
    batches: Iterator[Any] = endless(loader)
    return consuming(map(layout.unpacked, batches), workers)


def prepare_datasets(folder: Path, store: Path, pairs: int) -> None:
    """One column of binary records of equal length."""
    datasets, pa = _load("datasets"), importlib.import_module("pyarrow")
    records = _records(folder, store, pairs)
    column = pa.array(records, pa.large_binary())
    datasets.Dataset(pa.table({COLUMN: column})).save_to_disk(folder / DATA)


class _ArrowDataset(Dataset[Tensor]):
    """Arrow's rows, many at a time, without a Python object for each row."""

    def __init__(self, rows: Any, layout: RecordLayout) -> None:
        self._rows = rows
        self._layout = layout

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        joined = self._rows[positions].column(COLUMN).combine_chunks()
        chunk = joined.chunk(0) if hasattr(joined, "chunk") else joined
        # Fresh memory, whose records follow each other from the first one's offset on.
        raw = torch.frombuffer(chunk.buffers()[2], dtype=torch.uint8)
        return raw[: len(positions) * self._layout.nbytes].view(len(positions), -1)


def open_datasets(folder: Path, workers: int, batch_size: int) -> Running:
    """Rows gathered in Arrow's own format, without conversion to numpy or torch."""
    layout = _layout(folder)
    rows = _load("datasets").load_from_disk(folder / DATA).with_format("arrow")
    batches = vectorised(_ArrowDataset(rows, layout), workers, batch_size)
    return consuming(map(layout.unpacked, batches), workers)


def prepare_tensordict(folder: Path, store: Path, _pairs: int) -> None:
    """A memory-mapped TensorDict of all tables."""
    _load("tensordict").TensorDict(dict(plain_tables(store)), batch_size=[]).memmap_(folder / DATA)


def open_tensordict(folder: Path, workers: int, batch_size: int) -> Running:
    """Its mapped tensors read by `index_select`, which is faster than its `td[rows]`."""
    tables = dict(_load("tensordict").TensorDict.load_memmap(folder / DATA).items())
    dataset = VectorisedDataset(partial(index_select, tables), tables["split_indices"].clone())
    return consuming(vectorised(dataset, workers, batch_size), workers)


def _block(records: Records, start: int) -> Any:
    yield from records.block(start)


def prepare_litdata(folder: Path, store: Path, pairs: int) -> None:
    """Records as bytes in chunks of 64 MB."""
    records = _records(folder, store, pairs)
    _load("litdata").optimize(
        fn=partial(_block, records),
        inputs=records.starts(),
        output_dir=str(folder / DATA),
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,
        verbose=False,
    )


def open_litdata(folder: Path, workers: int, batch_size: int) -> Running:
    """Its own loader; its default of decoding a batch at once is several times slower here."""
    litdata, layout = _load("litdata"), _layout(folder)
    dataset = litdata.StreamingDataset(
        str(folder / DATA), shuffle=True, drop_last=True, batch_decode=False
    )
    share_by_name()
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
        collate_fn=layout.joined,
    )
    return _unpacking(loader, layout, workers)


def prepare_streaming(folder: Path, store: Path, pairs: int) -> None:
    """Records as bytes in shards of 64 MB."""
    writer = _load("streaming").MDSWriter(
        out=str(folder / DATA), columns={COLUMN: "bytes"}, size_limit=CHUNK_BYTES
    )
    with writer:
        for record in _records(folder, store, pairs):
            writer.write({COLUMN: record})


def _joined_column(layout: RecordLayout, samples: list[dict[str, bytes]]) -> Tensor:
    return layout.joined([sample[COLUMN] for sample in samples])


def open_streaming(folder: Path, workers: int, batch_size: int) -> Running:
    """Its dataset in torch's DataLoader, as its documentation shows."""
    streaming, layout = _load("streaming"), _layout(folder)
    share_by_name()
    dataset = streaming.StreamingDataset(
        local=str(folder / DATA), shuffle=True, batch_size=batch_size
    )
    loader = stock_loader(
        dataset,
        workers,
        batch_size=batch_size,
        drop_last=True,
        collate_fn=partial(_joined_column, layout),
    )
    return _unpacking(loader, layout, workers)


def _folder(name: str, inputs: Inputs) -> Path:
    return inputs.work / name


LIBRARIES = (
    Contender(
        name="datasets",
        what="Hugging Face datasets, Arrow rows",
        open=open_datasets,
        folder=partial(_folder, "datasets"),
        prepare=prepare_datasets,
        load=partial(_load, "datasets"),
        materialises=True,
    ),
    Contender(
        name="tensordict",
        what="tensordict memmap, index_select",
        open=open_tensordict,
        folder=partial(_folder, "tensordict"),
        prepare=prepare_tensordict,
        load=partial(_load, "tensordict"),
    ),
    Contender(
        name="litdata",
        what="LitData, records",
        open=open_litdata,
        folder=partial(_folder, "litdata"),
        prepare=prepare_litdata,
        load=partial(_load, "litdata"),
        materialises=True,
    ),
    Contender(
        name="streaming",
        what="MosaicML Streaming, records",
        open=open_streaming,
        folder=partial(_folder, "streaming"),
        prepare=prepare_streaming,
        load=partial(_load, "streaming"),
        materialises=True,
    ),
)
