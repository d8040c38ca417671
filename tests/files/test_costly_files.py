"""What a file can cost is bounded by its size and by the store: small, sparse and padded files."""

import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives
from jasper_mmap.errors import (
    ContentError,
    ContentTypeError,
    FormatError,
    JasperError,
    StorageError,
)
from jasper_mmap.files.atomic import read_json, write_json
from jasper_mmap.files.pt.reader import read_pt
from jasper_mmap.files.safetensors import map_tensors
from jasper_mmap.store.pointer import read_pointer
from tests.converting import FORK, SMALL, load
from tools.demo.folder import make_builder_folder

MEMORY = 512 << 20
"""What a refusal may take beyond what the process has already."""
SECONDS = 20
Pickled = bytes
LARGE = 1 << 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def refused(work: Callable[[], object], seconds: int = SECONDS) -> tuple[type[JasperError], str]:
    """Run `work` in a process with little memory and time; the error of ours that it ends with."""
    receiving, sending = FORK.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        # Sparse files are mapped without being read, so that addresses are no measure of them.
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds, int(used) + seconds))
        try:
            work()
        except JasperError as error:
            sending.send((type(error), str(error)))
        except BaseException as error:  # noqa: BLE001 - told below
            sending.send((type(error), repr(error)[:200]))

    child = FORK.Process(target=run)
    child.start()
    sending.close()
    try:
        kind, message = receiving.recv()
    except EOFError:
        pytest.fail("it took all the time or memory it was allowed")
    finally:
        child.join()
    assert issubclass(kind, JasperError), message
    return kind, message


def archive(path: Path, data: Pickled, **records: bytes) -> Path:
    """Write an archive around a pickle made by hand."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        for name, record in records.items():
            file.writestr(f"archive/{name}", record)
    return path


# Lists of keywords


@pytest.mark.parametrize("times", [60, 500, 5000])
def test_rows_that_share_one_long_list_are_refused_unexpanded(times: int, folder: Path) -> None:
    """Whether they are as many as the pairs or not."""
    rows = [[0, 1, 2, 3] * 100_000] * times
    archive(folder / "pair_keyword_ids.pt", pickle.dumps(rows, 2))
    kind, message = refused(lambda: convert(folder, folder / "store"))
    assert issubclass(kind, ContentError)
    assert f"{times} rows hold {400_000 * times} ids" in message
    assert "is 1294336. Correct the lists" in message


def test_rows_that_share_lists_are_read_as_torch_reads_them(folder: Path, tmp_path: Path) -> None:
    """A builder may give the pairs of one question the same list of many keywords."""
    n = SMALL["n_pairs"]
    shared = [i % 8 for i in range(10_000)]
    torch.save([shared] * n, folder / "pair_keyword_ids.pt")
    convert(folder, tmp_path / "store")
    file = (tmp_path / "store/pair_keyword_ids.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", file)
    begin, end = json.loads(file[8 : 8 + length])["values"]["data_offsets"]
    values = torch.frombuffer(
        bytearray(file[8 + length + begin : 8 + length + end]), dtype=torch.int64
    )
    assert values.tolist() == shared * n


def test_error_about_a_nested_row_does_not_write_it_out(folder: Path) -> None:
    """Twenty-eight levels of four times the same list."""
    nested: list[Any] = [1]
    for _ in range(28):
        nested = [nested] * 4
    rows = [[nested], *[[]] * (SMALL["n_pairs"] - 1)]
    archive(folder / "pair_keyword_ids.pt", pickle.dumps(rows, 2))
    kind, message = refused(lambda: convert(folder, folder / "store"))
    assert kind is ContentTypeError
    assert "row 0, element 0 is a list, not an int" in message


def test_huge_keyword_is_named_in_short(folder: Path) -> None:
    """Of two thousand bits; the line of the error stays one."""
    rows = [[10**600], *[[]] * (SMALL["n_pairs"] - 1)]
    torch.save(rows, folder / "pair_keyword_ids.pt")
    _, message = refused(lambda: convert(folder, folder / "store"))
    assert "row 0, element 0 is 1000" in message
    assert len(message) < 400


# Pickles and archives


def _sparse_pickle(path: Path) -> None:
    """An archive whose pickle is a terabyte of nothing: its list of records lies behind that."""
    with path.open("wb") as file:
        header = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0, 0, 16, 0)
        file.write(header + b"archive/data.pkl")
        file.seek(LARGE)
        size = LARGE - len(header) - 16
        extra = struct.pack("<HHQQ", 1, 16, size, size)
        whole = 2**32 - 1
        fixed = struct.pack(
            "<4s4B4H3I5H2I",
            b"PK\1\2",
            45,
            3,
            45,
            0,
            0,
            0,
            0,
            0,
            0,
            whole,
            whole,
            16,
            len(extra),
            0,
            0,
            0,
            0,
            0,
        )
        listed = fixed + b"archive/data.pkl" + extra
        file.write(listed)
        at = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(listed), LARGE))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, at, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(listed), whole, 0))


def _sparse_list(path: Path) -> None:
    """An archive whose list of records claims nearly four gigabytes."""
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        file.seek((4 << 30) - 2)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, (4 << 30) - 8, 4, 0))


def _many_records(path: Path) -> None:
    """An archive of thirty thousand records."""
    with zipfile.ZipFile(path, "w") as file:
        for number in range(30_000):
            file.writestr(f"archive/{number}", b"")


def _sparse_legacy(path: Path) -> None:
    """The old format's first pickle, and a terabyte of nothing."""
    torch.save(torch.ones(3), path, _use_new_zipfile_serialization=False)
    os.truncate(path, 64)
    os.truncate(path, LARGE)


def _long_shape(path: Path) -> None:
    """Half a million dimensions, named again and again for tensors that nobody asked for."""
    shape = b"(" + b"K\1" * 200_000 + b"tr\0\0\1\0"
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\1tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0j\0\0\1\0j\0\0\1\0tR"
    archive(path, b"\x80\2(" + shape + tensor * 5_000 + b"t.")


def _colliding_keys(path: Path) -> None:
    """Numbers that all hash to the same."""
    numbers = (n * (2**61 - 1) for n in range(1, 80_000))
    items = b"".join(b"\x8a\x0a" + n.to_bytes(10, "little") + b"N" for n in numbers)
    archive(path, b"\x80\2}(" + items + b"u.")


COSTLY = {
    "sparse pickle": (_sparse_pickle, "bytes; at most 1048576 are allowed"),
    "sparse list of records": (_sparse_list, "zip directory has more than 1048576 bytes"),
    "many records": (_many_records, "zip directory has more than 1048576 bytes"),
    "sparse legacy": (_sparse_legacy, "At most 1048576 bytes of pickles are allowed"),
    "long shape": (_long_shape, "more than 64 dimensions"),
    "colliding keys": (_colliding_keys, "more than 1000 keys"),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_file_that_costs_much_is_refused_for_little(kind: str, tmp_path: Path) -> None:
    """The limit is named."""
    make, words = COSTLY[kind]
    make(tmp_path / "t.pt")
    found, message = refused(lambda: read_pt(tmp_path / "t.pt"))
    assert issubclass(found, FormatError)
    assert "t.pt" in message
    assert words in message


@pytest.mark.parametrize("name", ["question_embs", "pair_index", "pair_keyword_ids"])
@pytest.mark.parametrize("kind", COSTLY)
def test_costly_file_among_the_builders_is_refused(kind: str, name: str, folder: Path) -> None:
    """Wherever it stands; more may be read of the lists of keywords."""
    COSTLY[kind][0](folder / f"{name}.pt")
    _, message = refused(lambda: convert(folder, folder / "store"))
    assert f"{name}.pt" in message
    assert not (folder / "store").exists()


def test_legacy_table_is_mapped(tmp_path: Path) -> None:
    """A gigabyte costs no memory, and writing to it leaves the file alone."""
    path = tmp_path / "t.pt"
    torch.save(torch.arange(1000), path, _use_new_zipfile_serialization=False)
    before = path.read_bytes()
    table = read_pt(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert torch.equal(table, load(tmp_path, "t"))
    table.zero_()
    assert path.read_bytes() == before


# Negatives handed in


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    """Return a small store."""
    convert(folder, tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_sparse_file_is_refused_before_it_is_copied(
    suffix: str, store: Path, folder: Path, tmp_path: Path
) -> None:
    """Two terabytes would fill the disk of the store; the message says what the table needs."""
    path = tmp_path / f"hard_negatives{suffix}"
    path.write_bytes((folder / "hard_negatives.pt").read_bytes())
    os.truncate(path, 2 * LARGE)
    tiers = folder / "negative_tiers.pt"
    kind, message = refused(lambda: publish_negatives(store, path, tiers))
    assert kind is ContentError
    assert (
        f"{path}: has {2 * LARGE} bytes, but hard_negatives [60, 4] needs at most 1920" in message
    )
    assert read_pointer(store).generation == 1


def test_part_of_a_larger_table_is_published(store: Path, folder: Path, tmp_path: Path) -> None:
    """What was saved may be the first columns of many, which are all in the file."""
    negatives = load(folder, "hard_negatives")
    wide = torch.cat([negatives.roll(1, 0), *[negatives] * 15], 1)
    torch.save(wide[:, :4], tmp_path / "hard_negatives.pt")
    assert (tmp_path / "hard_negatives.pt").stat().st_size > wide.nbytes
    number = publish_negatives(store, tmp_path / "hard_negatives.pt", folder / "negative_tiers.pt")
    assert number == 2
    with JASPERSteeringDataset(store, "train") as dataset:
        assert torch.equal(dataset.hard_negatives.long(), negatives.roll(1, 0).long())


# JSON and headers

TEXTS = {
    "large": (b'{"a": [' + b"[]," * (12 << 20) + b"[]]}", "has more than 16777216 bytes"),
    "deep": (b'{"a": ' + b"[" * 10_000_000, "nested too deeply"),
    "digits": (b'{"a": 1' + b"0" * 10_000_000 + b"}", "10000001 digits, at most"),
}
CONTROL = ("config.json", "manifest.json", "negatives/CURRENT.json")


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", CONTROL)
def test_costly_json_of_a_store_is_refused(kind: str, name: str, store: Path) -> None:
    """In words of ours."""
    text, words = TEXTS[kind]
    (store / name).write_bytes(text)
    _, message = refused(lambda: JASPERSteeringDataset(store, "train"))
    assert str(store / name) in message
    assert words in message
    assert "sys." not in message


@pytest.mark.parametrize("kind", TEXTS)
def test_costly_config_of_a_builder_is_refused(kind: str, folder: Path) -> None:
    """Once, though the folder is looked at for further problems."""
    text, words = TEXTS[kind]
    (folder / "config.json").write_bytes(text)
    _, message = refused(lambda: convert(folder, folder / "store"))
    assert message.count(words) == 1


def test_sparse_json_is_refused(tmp_path: Path) -> None:
    """A terabyte of nothing is not read."""
    (tmp_path / "x.json").touch()
    os.truncate(tmp_path / "x.json", LARGE)
    _, message = refused(lambda: read_json(tmp_path / "x.json"))
    assert "more than 16777216 bytes" in message


def test_config_of_many_unknown_keys_is_told_what_is_missing(folder: Path) -> None:
    """Comparing each of them with what is missing would take minutes."""
    keys = {f"embedding{n}": 0 for n in range(600_000)}
    (folder / "config.json").write_text(json.dumps(keys))
    _, message = refused(lambda: convert(folder, folder / "store"), seconds=15)
    assert "'n_neg' is missing" in message


def test_json_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    """What was there stays."""
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(StorageError, match="exceed the limit of 16777216"):
        write_json(tmp_path / "x.json", {"a": "x" * (16 << 20)})
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_history_of_long_notes_is_shortened_and_read(store: Path, folder: Path) -> None:
    """The oldest entries go; publishing goes on."""
    tables = [load(folder, name) for name in ("hard_negatives", "negative_tiers")]
    for number in range(2, 9):
        note = str(number) * (1 << 20)
        assert publish_negatives(store, *tables, note=note, republish=True) == number
    pointer = read_pointer(store)
    assert pointer.generation == 8
    assert [entry["generation"] for entry in pointer.history] == [1, 6, 7, 8]


def test_large_header_is_refused(tmp_path: Path) -> None:
    """Of seven hundred thousand tensors without an element; the library takes it."""
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{n}":{entry}' for n in range(700_000)) + "}"
    header += " " * (-len(header) % 8)
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    _, message = refused(lambda: map_tensors(path))
    assert "at most 1048576 are allowed" in message


@pytest.mark.parametrize("name", CONTROL)
def test_huge_number_anywhere_in_a_control_file_is_an_error_of_ours(
    name: str, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its numbers in turn, beyond 64 bits and beyond every float."""
    caplog.set_level("ERROR")
    text = (store / name).read_text()
    found = 0
    for match in re.finditer(r"(?<=[ \[])-?\d+(?=[,\s\]}])", text):
        for huge in (10**30, -(10**30), 10**900):
            (store / name).write_text(text[: match.start()] + str(huge) + text[match.end() :])
            found += 1
            try:
                JASPERSteeringDataset(store, "train", validate="full").close()
            except JasperError:
                continue
    assert found >= 6
