"""What a `.pt` file serves is what was saved: torch's own reading is the other way to know it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.errors import ContentError, ContentTypeError, FormatError, UnsafeFileError
from jasper_mmap.files import safetensors
from jasper_mmap.files.pt.reader import read_pt
from jasper_mmap.files.safetensors import chunks
from tests.converting import SMALL, load, same_bits, stored
from tools.demo.folder import make_builder_folder, remine_negatives

Records = dict[str, bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def repacked(path: Path, change: Callable[[Records], object], compress: int = 0) -> None:
    """Write an archive anew, with right checksums, after `change` of its records by short name."""
    with zipfile.ZipFile(path) as archive:
        records = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)


def flip(path: Path, record: str) -> None:
    """Flip one bit of a record where it lies, and nothing else."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(f"/{record}"))
        at = data.index(archive.read(name))
    data[at + 1] ^= 1
    path.write_bytes(data)


def negated(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return floats with torch's lazy negative bit."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(2, *shape, generator=generator)
    table = torch.complex(parts[0], parts[1]).conj().imag
    assert table.is_neg()
    return table


# The sign


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("rows", [slice(None), slice(3, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lazily_negated_table_is_converted_with_its_sign(
    zipped: bool, rows: slice, dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    """Of both formats, contiguous or not: the values that torch reads, in every float table."""
    names = ("question_embs", "source_embs", "centroid_embs", "steering_residual")
    (folder / "centroid_distances.pt").unlink()
    for seed, name in enumerate(names):
        table = negated(*load(folder, name).shape, seed=seed)
        if dtype != torch.float32:
            table = torch._neg_view(table.resolve_neg().to(dtype))
        table = torch.cat([table, table]) if name == "question_embs" else table
        torch.save(
            table[rows] if name == "question_embs" else table,
            folder / f"{name}.pt",
            _use_new_zipfile_serialization=zipped,
        )
    if rows != slice(None):
        pairs = load(folder, "pair_index")
        torch.save(torch.stack([pairs[:, 0] % 6, pairs[:, 1]], 1), folder / "pair_index.pt")
    convert(folder, tmp_path / "store")
    for name in names:
        found = stored(tmp_path / "store" / f"{name}.safetensors")[name]
        assert same_bits(found, load(folder, name).resolve_neg()), name
    question = load(folder, "question_embs").double()[load(folder, "pair_index")[:, 0]]
    centroid = load(folder, "centroid_embs").double()[load(folder, "pair_cluster_id")]
    wanted = 1 - torch.nn.functional.cosine_similarity(question, centroid)
    found = stored(tmp_path / "store" / "centroid_distances.safetensors")["centroid_distances"]
    torch.testing.assert_close(found, wanted.float())


def test_lazily_negated_table_is_checked_and_narrowed_with_its_sign(
    folder: Path, tmp_path: Path
) -> None:
    """Bounds see the values that are served; the narrower dtype keeps the sign."""
    torch.save(torch._neg_view(-load(folder, "pair_relevance")), folder / "pair_relevance.pt")
    table = negated(*load(folder, "steering_residual").shape)
    torch.save(table, folder / "steering_residual.pt")
    convert(folder, tmp_path / "store", embeddings_dtype="float16")
    found = stored(tmp_path / "store" / "steering_residual.safetensors")["steering_residual"]
    assert same_bits(found, table.resolve_neg().half())
    torch.save(torch._neg_view(load(folder, "pair_relevance")), folder / "pair_relevance.pt")
    with pytest.raises(ContentError, match="pair_relevance holds -"):
        convert(folder, tmp_path / "store")


def test_lazily_negated_table_is_resolved_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge one is not copied whole: it stays a view of the mapped file."""
    table = negated(1000, 8)
    torch.save(table, tmp_path / "t.pt")
    found = read_pt(tmp_path / "t.pt")
    assert str(tmp_path / "t.pt") in Path("/proc/self/maps").read_text()
    assert found.is_neg()
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 320)
    pieces = list(chunks(found))
    assert len(pieces) == 100
    assert not any(piece.is_neg() for piece in pieces)
    assert torch.equal(torch.cat(pieces), table.resolve_neg())


def test_negated_numbers_are_read_as_numbers(folder: Path, tmp_path: Path) -> None:
    """Whole ones too, through conversion and publishing; a type that has no sign is refused."""
    pairs = load(folder, "pair_index")
    torch.save(torch._neg_view(-pairs), folder / "pair_index.pt")
    store = tmp_path / "store"
    convert(folder, store)
    assert torch.equal(stored(store / "pair_index.safetensors")["pair_index"], pairs)
    negatives, tiers = remine_negatives(folder, seed=5)
    paths = tmp_path / "n.pt", tmp_path / "t.pt"
    for path, table in zip(paths, (negatives, tiers), strict=True):
        torch.save(torch._neg_view(-table), path)
    assert publish_negatives(store, *paths) == 2
    with JASPERSteeringDataset(store, "train") as dataset:
        assert torch.equal(dataset.hard_negatives, negatives)
        assert torch.equal(dataset.negative_tiers, tiers)
    torch.save(torch._neg_view(torch.zeros(3, dtype=torch.uint16)), tmp_path / "u.pt")
    with pytest.raises(ContentTypeError, match="uint16 with a negative sign"):
        read_pt(tmp_path / "u.pt")


# The bytes


@pytest.mark.parametrize("claim", [1, 2, 4, 127, 2**31 - 1])
@pytest.mark.parametrize("both", [False, True])
def test_storage_of_another_size_than_the_pickle_says_is_refused(
    claim: int, both: bool, tmp_path: Path
) -> None:
    """Longer or shorter, as torch does; also where the tensor claims just what is there."""
    path = tmp_path / "t.pt"
    torch.save(torch.ones(3), path)

    def lie(records: Records) -> None:
        told = pickle.dumps(claim, 2)[2:-1]
        data = records["data.pkl"].replace(b"K\x03tq", told + b"tq")
        records["data.pkl"] = data.replace(b"K\x03\x85", told + b"\x85") if both else data

    repacked(path, lie)
    with pytest.raises(FormatError, match=r"t\.pt.*(claims|reaches)"):
        read_pt(path)


@pytest.mark.parametrize("claim", [2, 4])
def test_legacy_storage_of_another_size_than_the_pickle_says_is_refused(
    claim: int, tmp_path: Path
) -> None:
    """The pre-zip format tells the size twice; one list of storages names all that are used."""
    path = tmp_path / "t.pt"
    torch.save(torch.ones(3), path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    assert good.count(b"K\x03N") == 1
    path.write_bytes(good.replace(b"K\x03N", bytes([75, claim]) + b"N"))
    with pytest.raises(FormatError, match=r"another length than its pickle states|extends beyond"):
        read_pt(path)
    keys = good.index(b"]q\x00X")
    path.write_bytes(good[:keys] + b"].")
    with pytest.raises(FormatError, match="claims 12 bytes of data, the file has 0"):
        read_pt(path)


@pytest.mark.parametrize("record", ["data/0", "data.pkl", "byteorder"])
def test_record_whose_checksum_differs_is_refused(record: str, tmp_path: Path) -> None:
    """A flipped bit anywhere in what is read; without recorded checksums there is no telling."""
    path = tmp_path / "t.pt"
    torch.save(torch.arange(1000.0).reshape(100, 10), path)
    flip(path, record)
    with pytest.raises(FormatError, match="CRC-32"):
        read_pt(path)


def test_file_without_checksums_is_read(tmp_path: Path, folder: Path) -> None:
    """Torch can be told to write none, and then writes 0."""
    table = torch.arange(1000.0)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(table, tmp_path / "t.pt")
        torch.save(load(folder, "pair_index"), folder / "pair_index.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_pt(tmp_path / "t.pt"), table)
    convert(folder, tmp_path / "store")


@pytest.mark.parametrize("order", ["whole", "view", "transposed"])
def test_damaged_table_is_not_converted(
    order: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the storage the table is and however it lies there, over many pieces."""
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 100)
    table = load(folder, "steering_residual")
    if order == "view":
        table = torch.cat([table[:2], table, table[:2]])[2:-2]
    elif order == "transposed":
        table = table.t().contiguous().t()
    torch.save(table, folder / "steering_residual.pt")
    convert(folder, tmp_path / "sound")
    assert same_bits(
        stored(tmp_path / "sound" / "steering_residual.safetensors")["steering_residual"],
        load(folder, "steering_residual"),
    )
    flip(folder / "steering_residual.pt", "data/0")
    with pytest.raises(FormatError, match=r"steering_residual\.pt.*CRC-32"):
        convert(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_damage_is_told_before_what_it_did_to_the_values(folder: Path, tmp_path: Path) -> None:
    """A number out of range in a damaged file is the damage's, not the builder's."""
    for name in ("pair_index", "hard_negatives"):
        path = folder / f"{name}.pt"
        good = path.read_bytes()
        flip(path, "data/0")  # its second byte: 256 more
        with pytest.raises(FormatError, match=rf"{name}\.pt.*CRC-32"):
            convert(folder, tmp_path / "store")
        path.write_bytes(good)
    convert(folder, tmp_path / "store")
    flip(folder / "hard_negatives.pt", "data/0")
    with pytest.raises(FormatError, match="CRC-32"):
        publish_negatives(
            tmp_path / "store", folder / "hard_negatives.pt", folder / "negative_tiers.pt"
        )


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16, torch.uint8],
)
def test_big_endian_file_is_read_right(dtype: torch.dtype, tmp_path: Path) -> None:
    """As torch reads it, views too; an unknown byte order is refused."""
    path = tmp_path / "t.pt"
    table = torch.arange(60).reshape(10, 6).to(dtype)[2:7, 1:4]
    torch.save(table, path)

    def swap(records: Records) -> None:
        numbers = np.frombuffer(records["data/0"], f"u{dtype.itemsize}")
        records["data/0"] = numbers.byteswap().tobytes()
        records["byteorder"] = b"big"

    repacked(path, swap)
    assert same_bits(read_pt(path), torch.load(path, weights_only=True))
    assert same_bits(read_pt(path), table)
    repacked(path, lambda records: records.update(byteorder=b"middle"))
    with pytest.raises(FormatError, match="byte order"):
        read_pt(path)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Torch writes none; a small one may stand for more than memory holds."""
    torch.save([[1] * 10_000], tmp_path / "t.pt")
    repacked(tmp_path / "t.pt", lambda _: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed"):
        read_pt(tmp_path / "t.pt")


# Where a tensor comes from


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


UNFILLED: dict[str, Any] = {
    "FloatTensor": Call(torch.FloatTensor, 5, 8),
    "LongTensor": Call(torch.LongTensor, 5, 8),
    "Tensor": Call(torch.Tensor, 5, 8),
    "Parameter": Call(torch.nn.Parameter),
    "UntypedStorage": Call(torch.UntypedStorage, 160),
    "TypedStorage": Call(torch.storage.TypedStorage, 40),
    "v2 of TypedStorage": Call(
        torch._utils._rebuild_tensor_v2,
        Call(torch.storage.TypedStorage, 40),
        0,
        (5, 8),
        (8, 1),
        False,
        OrderedDict(),
    ),
    "v3 of UntypedStorage": Call(
        torch._utils._rebuild_tensor_v3,
        Call(torch.UntypedStorage, 160),
        0,
        (5, 8),
        (8, 1),
        False,
        OrderedDict(),
        torch.float32,
    ),
    "meta": Call(
        torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (5, 8), (8, 1), False
    ),
    "type": Call(
        torch._tensor._rebuild_from_type_v2, torch.FloatTensor, torch.Tensor, (5, 8), None
    ),
    "bytearray": Call(bytearray, 160),
}


@pytest.mark.parametrize("name", UNFILLED)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensor_without_saved_bytes_is_refused(name: str, zipped: bool, tmp_path: Path) -> None:
    """Whatever allocates memory that nobody filled, although torch's safe reader runs it."""
    path = tmp_path / "t.pt"
    torch.save([[1], [2]], path, _use_new_zipfile_serialization=zipped)
    evil = pickle.dumps(UNFILLED[name], 2)
    if zipped:
        repacked(path, lambda records: records.update({"data.pkl": evil}))
    else:
        plain = pickle.dumps([[1], [2]], 2)
        assert plain in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(plain, evil))
    with pytest.raises((UnsafeFileError, ContentTypeError, FormatError), match=r"t\.pt"):
        read_pt(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_unfilled_tensor_is_called_unsafe(zipped: bool, tmp_path: Path) -> None:
    """The error names what the pickle needs."""
    path = tmp_path / "t.pt"
    torch.save([[1], [2]], path)
    evil = pickle.dumps(UNFILLED["FloatTensor"], 2)
    repacked(path, lambda records: records.update({"data.pkl": evil}))
    with pytest.raises(UnsafeFileError, match=r"needs 'torch\.FloatTensor'"):
        read_pt(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_builders_save_is_read(zipped: bool, tmp_path: Path) -> None:
    """Parameters, tensors with attributes, buffers of a shared storage, and plain containers."""
    path = tmp_path / "t.pt"
    table = torch.arange(12.0).reshape(3, 4)
    marked = table.clone()
    marked.origin = "x"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(table)
    noted = torch.nn.Parameter(table)
    noted.note = 1  # type: ignore[attr-defined]
    for value in (table, marked, parameter, noted, table.expand(2, 3, 4), table[:1, ::2]):
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        found = read_pt(path)
        assert type(found) is torch.Tensor
        assert same_bits(found, value.detach())
        assert same_bits(found, torch.load(path, weights_only=True).detach())
    ordered = OrderedDict(a=1, b=[(2, 3.5), None, True, -(2**40), "ü"])
    ordered.extra = 1  # type: ignore[attr-defined]
    torch.save(ordered, path, _use_new_zipfile_serialization=zipped)
    assert read_pt(path) == dict(ordered)
    rows = [[1, 2, 3]] * 300 + [list(range(2000)), []]
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    assert read_pt(path) == rows


def test_one_element_with_a_stride_is_converted_and_published(folder: Path, tmp_path: Path) -> None:
    """It counts as contiguous whatever its stride is."""
    value = load(folder, "val_idx")
    torch.save(torch.stack([value, value], 1)[:1, 1][::2], folder / "val_idx.pt")
    assert load(folder, "val_idx").stride() != (1,)
    store = tmp_path / "store"
    convert(folder, store)
    assert stored(store / "val_idx.safetensors")["val_idx"].tolist() == value[:1].tolist()
    one = make_builder_folder(tmp_path / "one", **{**SMALL, "n_neg": 1})
    convert(one, tmp_path / "narrow")
    tables = [torch.stack([t, t], 2)[:, :, 0] for t in remine_negatives(one, seed=3)]
    assert publish_negatives(tmp_path / "narrow", *tables) == 2


def test_empty_keyword_table_is_converted(folder: Path, tmp_path: Path) -> None:
    """A builder may have found no keywords at all."""
    torch.save(torch.zeros(0, SMALL["dim"]), folder / "keyword_embs.pt")
    torch.save([[] for _ in range(SMALL["n_pairs"])], folder / "pair_keyword_ids.pt")
    for dtype in (None, "float16"):
        store = tmp_path / f"store {dtype}"
        convert(folder, store, embeddings_dtype=dtype)
        with JASPERSteeringDataset(store, "train") as dataset:
            assert dataset.keyword_embs.shape == (0, SMALL["dim"])
            assert len(dataset.pair_keyword_ids[0]) == 0
            assert dataset[0]["steering"].shape == (SMALL["dim"],)
