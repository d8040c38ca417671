"""A conversion that fails names the fault and leaves the disk as it was."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import convert
from jasper_mmap.errors import (
    ConfigError,
    ContentError,
    ContentTypeError,
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    UnsafeFileError,
)
from jasper_mmap.negatives import builder_pair
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import STAGING
from tests.converting import SMALL, contents, edit
from tools.demo.folder import make_builder_folder


@pytest.fixture(autouse=True)
def _quick_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait long for the second of the builder's two files."""
    monkeypatch.setattr(builder_pair, "ALONE_S", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def saved(name: str, to: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Break a folder by saving another value as one of its artifacts."""
    return lambda folder: edit(folder, name, to)


def put(name: str, row: int, value: float) -> Callable[[Path], None]:
    """Break a folder by one value, in the first column of a row."""

    def to(table: torch.Tensor) -> torch.Tensor:
        table.view(len(table), -1)[row, 0] = value
        return table

    return saved(name, to)


def remove(file: str) -> Callable[[Path], None]:
    """Break a folder by removing a file."""
    return lambda folder: (folder / file).unlink()


def write(file: str, content: bytes) -> Callable[[Path], None]:
    """Break a folder by other bytes in a file."""

    def apply(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return apply


def cut(file: str) -> Callable[[Path], None]:
    """Break a folder by cutting a file in half."""
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def config(**changes: Any) -> Callable[[Path], None]:
    """Break a folder by changing keys of its config; None removes one."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        value = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return apply


class Payload:
    """A pickle that wants to run code."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch /tmp/jasper-was-run",))


BAD: dict[str, tuple[Callable[[Path], Any], type[JasperError], str]] = {
    "folder": (shutil.rmtree, MissingFileError, "Dataset directory not found"),
    "config": (remove("config.json"), MissingFileError, "Config file not found"),
    "config key": (config(n_neg=None), ConfigError, "'n_neg' is missing"),
    "config twice": (
        write("config.json", b'{"n_neg": 1, "n_neg": 2}'),
        ConfigError,
        "duplicate key",
    ),
    "artifact": (remove("source_embs.pt"), MissingFileError, "source_embs.pt not found"),
    "split": (remove("val_idx.pt"), MissingFileError, "Split file not found"),
    "garbage": (write("pair_index.pt", b"garbage" * 99), FormatError, "pair_index.pt: damaged"),
    "empty file": (write("pair_index.pt", b""), FormatError, "pair_index.pt: damaged"),
    "truncated": (cut("steering_residual.pt"), FormatError, "steering_residual.pt: damaged"),
    "code": (saved("pair_keyword_ids", lambda _: Payload()), UnsafeFileError, "refused"),
    "rank": (saved("pair_relevance", lambda t: t[:, None]), ContentError, "2 dimensions"),
    "width": (saved("keyword_embs", lambda t: t[:, :5]), ContentError, "5 columns"),
    "length": (saved("pair_cluster_id", lambda t: t[:50]), ContentError, "50 rows"),
    "negatives' width": (saved("hard_negatives", lambda t: t[:, :3]), ContentError, "'n_neg'"),
    "list length": (saved("pair_keyword_ids", lambda r: r[:-1]), ContentError, "59 rows"),
    "dtype": (saved("pair_index", lambda t: t.float()), ContentTypeError, "must hold integers"),
    "no tensor": (saved("pair_index", lambda t: t.tolist()), ContentTypeError, "not a tensor"),
    "no list": (saved("pair_keyword_ids", lambda _: torch.ones(60)), ContentTypeError, "Tensor"),
    "no inner list": (
        saved("pair_keyword_ids", lambda r: [*r[:-1], 3]),
        ContentTypeError,
        "row 59",
    ),
    "no int": (
        saved("pair_keyword_ids", lambda r: [*r[:-1], [0, 1.5]]),
        ContentTypeError,
        "row 59, element 1 is 1.5",
    ),
    "huge int": (
        saved("pair_keyword_ids", lambda r: [*r[:-1], [2**70]]),
        ContentError,
        "row 59, element 0 is 1180591620717411303424, beyond int64",
    ),
    "keyword": (
        saved("pair_keyword_ids", lambda r: [*r[:-1], [0, 99]]),
        IndexRangeError,
        "references keyword 99 in row 59, element 1, but keyword_embs has",
    ),
    "question": (put("pair_index", 3, 999), IndexRangeError, "pair_index references question 999"),
    "question -1": (put("pair_index", 3, -1), IndexRangeError, "references question -1 in row 3"),
    "cluster": (put("pair_cluster_id", 3, 3), IndexRangeError, "pair_cluster_id references"),
    "cluster -1": (put("pair_cluster_id", 3, -1), IndexRangeError, "in row 3"),
    "negative": (
        put("hard_negatives", 3, 999),
        IndexRangeError,
        "hard_negatives references source",
    ),
    "negative -1": (put("hard_negatives", 3, -1), IndexRangeError, "source -1 in row 3, column 0"),
    "train": (put("train_idx", 3, 60), IndexRangeError, "Split indices reference pair 60 in row 3"),
    "test -1": (put("test_idx", 3, -1), IndexRangeError, "Split indices reference pair -1"),
    "tier": (put("negative_tiers", 3, 5), ContentError, "negative_tiers holds 5 in row 3"),
    "tier 0": (put("negative_tiers", 3, 0), ContentError, "negative_tiers holds 0 in row 3"),
    "relevance": (put("pair_relevance", 3, 1.5), ContentError, "pair_relevance holds 1.5 in row 3"),
    "distance": (put("centroid_distances", 3, -0.5), ContentError, "holds -0.5 in row 3"),
    "NaN": (put("question_embs", 3, torch.nan), ContentError, "nan in row 3, column 0"),
    "Inf": (put("steering_centroid", 3, torch.inf), ContentError, "inf in row 3, column 0"),
    "empty train": (saved("train_idx", lambda t: t[:0]), ContentError, "at least one pair"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_the_disk_as_it_was(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """Into a new folder, beside the files, and over an older store, which stays in service."""
    convert(folder, tmp_path / "store")
    spoil, error, words = BAD[name]
    spoil(folder)
    before = contents(tmp_path)
    for target in (tmp_path / "new" / "store", folder, tmp_path / "store"):
        with pytest.raises(error) as caught:
            convert(folder, target)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert contents(tmp_path) == before
    Store(tmp_path / "store", validate="full")
    assert not Path("/tmp/jasper-was-run").exists()


def test_bad_input_leaves_no_folder_that_another_conversion_had_made(
    folder: Path, tmp_path: Path
) -> None:
    """One that another made, and left empty, when this one began."""
    store = tmp_path / "store"
    (store / STAGING).mkdir(parents=True)
    put("steering_residual", 3, torch.nan)(folder)
    with pytest.raises(ContentError):
        convert(folder, store)
    assert not (store / STAGING).exists()


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    """The builder is still writing: its stamp tells."""

    def rewrite(name: str, *_: int) -> None:
        os.utime(folder / f"{name}.pt", ns=(0, time.time_ns()))

    with pytest.raises(ContentError, match=r"question_embs\.pt changed while being converted"):
        convert(folder, tmp_path / "store", progress=rewrite)
    assert not (tmp_path / "store").exists()
