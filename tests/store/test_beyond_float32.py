"""Values that a batch's float32 cannot hold are refused or counted, never served in silence."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from jasper_mmap.errors import ContentError, FormatError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.rules.schema import ARTIFACTS
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import read_manifest
from jasper_mmap.store.summary import summarise
from jasper_mmap.store.table_checks import TableCheck
from tests.converting import SMALL, change, snapshot
from tests.damage import edit_manifest, rewrite
from tools.demo.folder import make_builder_folder

LARGEST = float(np.finfo(np.float32).max)
INFINITE = float.fromhex("0x1.ffffffp+127")
NAMES = ("question_embs", "source_embs", "centroid_embs", "keyword_embs", "steering_residual")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder of float64 that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, float_dtype=torch.float64, **SMALL)


def spoil(folder: Path, name: str = "steering_residual") -> None:
    """Put two values beyond float32, an infinity and the largest float32 into a table."""
    row = torch.tensor([1e300, -1e39, LARGEST], dtype=torch.float64)
    change(folder, name, lambda t: t[2, 2:5].copy_(row))


def as_by_0_1_0(store: Path) -> None:
    """Take out of a manifest what version 0.1.0 did not write."""

    def take_out(manifest: dict[str, Any]) -> None:
        for key in ("config_sha256", "beyond_float32", "embeddings_dtype"):
            manifest.pop(key, None)

    edit_manifest(store, take_out)


@pytest.mark.parametrize("value", [LARGEST, INFINITE, 3.4028235e38, 3.4028236e38, 1e39, 1e308])
@pytest.mark.parametrize("sign", [1, -1])
def test_bound_is_the_one_of_the_conversion_to_float32(value: float, sign: int) -> None:
    """To the last bit, as torch and numpy convert."""
    for number in (value, np.nextafter(value, 0), np.nextafter(value, np.inf)):
        table = torch.zeros(3, 2, dtype=torch.float64)
        table[1, 1] = sign * float(number)
        check = TableCheck(ARTIFACTS["source_embs"], {}, "f", allow_beyond=True)
        check.feed(table)
        assert check.beyond_float32 == int(table.float().isinf().sum())
        assert check.nonfinite == 0


def test_values_are_counted_apart_from_nan_and_infinity() -> None:
    """Each once, in pieces that hold all kinds, also where the first finite one is among them."""
    table = torch.tensor([[torch.nan, 1e300], [torch.inf, 2.0], [-1e200, -torch.inf]]).double()
    table[0, 1] = 1e300
    table[2, 0] = -1e200
    check = TableCheck(ARTIFACTS["source_embs"], {}, "f", allow_nonfinite=True, allow_beyond=True)
    check.feed(table)
    check.feed(table)
    assert (check.nonfinite, check.beyond_float32) == (6, 4)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_refuses_them(name: str, folder: Path, tmp_path: Path) -> None:
    """In every table of embeddings, with row and column and the way to keep them."""
    spoil(folder, name)
    with pytest.raises(
        ContentError, match=rf"{name} holds 1e\+300 in row 2, column 2, .*--allow-nonfinite"
    ):
        convert(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_they_are_kept_where_allowed(folder: Path, tmp_path: Path) -> None:
    """Counted in a field of their own; later runs know of them, and say so or refuse them."""
    store = tmp_path / "store"
    spoil(folder)
    change(folder, "source_embs", lambda t: t[1, 1].fill_(torch.nan))
    report = convert(folder, store, allow_nonfinite=True)
    assert report.warnings["nonfinite_values"] == 1
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["beyond_float32"] == {"steering_residual": 2}
    assert manifest["artifacts"]["steering_residual"]["nonfinite"] == 0
    told = "steering_residual holds 2 finite values that are infinite as float32"
    again = convert(folder, store, allow_nonfinite=True)
    assert again.written == ()
    for notes in (report.notes, again.notes, summarise(store)["notes"], verify_store(store).notes):
        assert told in notes[0]
        assert notes[1].startswith("source_embs holds 1 NaN or infinite value, kept by")
    assert verify_store(store).ok
    Store(store, validate="full")
    before = snapshot(store)
    change(folder, "source_embs", lambda t: t[1, 1].fill_(0.0))
    with pytest.raises(ContentError, match=r"holds 1e\+300 in row 2, column 2"):
        convert(folder, store)
    assert snapshot(store) == before


def test_sound_store_says_that_it_was_looked_at(folder: Path, tmp_path: Path) -> None:
    """An empty count, whatever the dtype."""
    convert(folder, tmp_path / "store")
    assert read_manifest(tmp_path / "store").beyond_float32 == {}


@pytest.mark.parametrize("allowed", [False, True])
def test_altered_values_are_found(allowed: bool, folder: Path, tmp_path: Path) -> None:
    """One more than was counted, where some are allowed and where none is."""
    store = tmp_path / "store"
    if allowed:
        spoil(folder)
    convert(folder, store, allow_nonfinite=allowed)
    rewrite(
        store / "steering_residual.safetensors",
        lambda t: t["steering_residual"][5, 0].fill_(-1e200),
        touch=False,
    )
    words = "holds 3 values that are infinite" if allowed else "holds -1e+200 in row 5, column 0"
    problems = [p.message for p in verify_store(store).problems]
    assert any(words in message for message in problems)
    assert any("SHA-256" in message for message in problems)
    with pytest.raises((ContentError, FormatError)) as caught:
        Store(store, validate="full")
    assert words in str(caught.value)


def test_store_of_0_1_0_opens_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says nothing of them: opening in full warns once, verify calls it the problem it is."""
    store = tmp_path / "store"
    spoil(folder)
    convert(folder, store, allow_nonfinite=True)
    as_by_0_1_0(store)
    file = store / "steering_residual.safetensors"
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        Store(store)
        assert caplog.records == []
        opened = Store(store, validate="full")
    assert opened.manifest.beyond_float32 is None
    (record,) = caplog.records
    words = f"{file}: steering_residual holds 1e+300 in row 2, column 2, which is infinite"
    assert record.levelno == logging.WARNING
    assert words in record.getMessage()
    (problem,) = verify_store(store).problems
    assert (problem.file, problem.error) == (file.name, "ContentError")
    assert words in problem.message
    assert "altered" not in problem.message
    assert verify_store(store, quick=True).ok


def test_store_of_0_1_0_is_looked_at_by_the_next_conversion(folder: Path, tmp_path: Path) -> None:
    """No table is written again for it; what is found is refused, or counted where allowed."""
    store = tmp_path / "store"
    spoil(folder)
    convert(folder, store, allow_nonfinite=True)
    as_by_0_1_0(store)
    before = snapshot(store)
    with pytest.raises(
        ContentError, match=r"steering_residual\.pt: .* holds 1e\+300 in row 2, column 2"
    ):
        convert(folder, store)
    assert {**snapshot(store), "negatives": ()} == {**before, "negatives": ()}
    report = convert(folder, store, allow_nonfinite=True)
    assert report.written == ()
    after = snapshot(store)
    tables = [name for name in before if name.endswith(".safetensors")]
    assert {name: after[name] for name in tables} == {name: before[name] for name in tables}
    assert read_manifest(store).beyond_float32 == {"steering_residual": 2}


def test_bounded_tables_have_their_own_bounds(folder: Path, tmp_path: Path) -> None:
    """A relevance of 1e300 is out of them, whatever is allowed."""
    change(folder, "pair_relevance", lambda t: t[4].fill_(1e300))
    for allowed in (False, True):
        with pytest.raises(
            ContentError, match=r"pair_relevance holds 1e\+300 in row 4; it must be"
        ):
            convert(folder, tmp_path / "store", allow_nonfinite=allowed)


@pytest.mark.parametrize("allowed", [False, True])
def test_narrower_dtype_refuses_them_in_its_own_words(
    allowed: bool, folder: Path, tmp_path: Path
) -> None:
    """They do not fit there either, so keeping them is no remedy."""
    spoil(folder)
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(
            ContentError, match=rf"holds 1e\+300 in row 2, column 2, too large for {dtype}"
        ):
            convert(folder, tmp_path / "store", embeddings_dtype=dtype, allow_nonfinite=allowed)
