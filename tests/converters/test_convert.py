"""The converter keeps every bit, or says what it cost, and counts what is doubtful."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from converters import convert, write
from jasper_mmap.errors import ContentError, UsageError
from jasper_mmap.rules.schema import ARTIFACTS, NEGATIVES, STORED
from jasper_mmap.store.manifest import STAGING, read_manifest
from tests.converting import SMALL, change, load, same_bits, stored
from tools.demo.folder import make_builder_folder

TABLES = [a.name for a in STORED if a.kind != "ragged"]
NARROWED = [a.name for a in STORED if a.narrow]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def test_every_table_is_kept_bit_for_bit(any_folder: Path, any_store: Path) -> None:
    """Whatever its dtype, layout and file format; read back without our own code."""
    for name in TABLES:
        if (any_folder / f"{name}.pt").exists():
            found = stored(any_store / f"{name}.safetensors")
            assert list(found) == [name]
            assert same_bits(found[name], load(any_folder, name)), name
    ragged = stored(any_store / "pair_keyword_ids.safetensors")
    rows = ragged["values"].tensor_split(ragged["offsets"][1:-1])
    assert [row.tolist() for row in rows] == load(any_folder, "pair_keyword_ids")
    generation = stored(any_store / "negatives" / "000001.safetensors")
    for artifact in NEGATIVES:
        assert same_bits(generation[artifact.name], load(any_folder, artifact.name))
    assert (any_store / "config.json").read_bytes() == (any_folder / "config.json").read_bytes()


def test_the_manifest_says_what_the_files_are(any_folder: Path, any_store: Path) -> None:
    """Sizes, times, checksums, alignment, sources; no staging folder is left."""
    for name, entry in read_manifest(any_store).artifacts.items():
        path = any_store / entry.file
        assert (entry.bytes, entry.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 4096 == 0
        source = any_folder / f"{name}.pt"
        if source.exists():
            assert entry.source["mtime_ns"] == source.stat().st_mtime_ns
        if ARTIFACTS[name].refers and ARTIFACTS[name].kind == "int" and entry.shape[0]:
            columns = load(any_folder, name).long().reshape(entry.shape[0], -1)
            assert entry.ranges[0][0] == int(columns[:, 0].min())
            assert entry.ranges[-1][1] == int(columns[:, -1].max())
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert not (any_store / STAGING).exists()


def test_missing_distances_are_computed(folder: Path, tmp_path: Path) -> None:
    """Cosine distance to the pair's centroid, 1.0 where either vector is zero; then reused."""
    (folder / "centroid_distances.pt").unlink()
    change(folder, "question_embs", lambda t: t[load(folder, "pair_index")[5, 0]].zero_())
    report = convert(folder, tmp_path / "store")
    assert report.derived == ("centroid_distances",)
    found = stored(tmp_path / "store" / "centroid_distances.safetensors")["centroid_distances"]
    question = load(folder, "question_embs").double()[load(folder, "pair_index")[:, 0]]
    centroid = load(folder, "centroid_embs").double()[load(folder, "pair_cluster_id")]
    wanted = 1 - torch.nn.functional.cosine_similarity(question, centroid)
    assert found.dtype == torch.float32
    assert found[5] == 1.0
    torch.testing.assert_close(found, wanted.float())

    assert convert(folder, tmp_path / "store").written == ()
    change(folder, "centroid_embs", lambda t: t[0].neg_())
    assert set(convert(folder, tmp_path / "store").written) == {
        "centroid_embs",
        "centroid_distances",
    }


def cosine_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos of the rows, in float64."""
    a, b = a.double(), b.double()
    cosine: torch.Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return 1 - cosine


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_can_be_stored_narrower(
    dtype: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    """With the cosine error told, until "source" asks for what there was; centroids and keywords
    stay as they are."""
    store, name = tmp_path / "store", str(dtype).removeprefix("torch.")
    report = convert(folder, store, embeddings_dtype=name)
    assert set(report.cosine_error) == set(NARROWED)
    for table in NARROWED:
        whole = load(folder, table)
        found = stored(store / f"{table}.safetensors")[table]
        assert same_bits(found, whole.to(dtype))
        error = cosine_error(whole, found)
        told = report.cosine_error[table]
        assert told["max"] == pytest.approx(float(error.max()), rel=1e-3)
        assert told["p50"] == pytest.approx(float(error.quantile(0.5)), rel=1e-3)
        assert told["p99"] == pytest.approx(float(error.quantile(0.99)), rel=1e-3)
    assert stored(store / "pair_relevance.safetensors")["pair_relevance"].dtype == torch.float32
    again = convert(folder, store, embeddings_dtype=name)
    assert (again.written, again.cosine_error) == ((), report.cosine_error)
    for table in ("centroid_embs", "keyword_embs"):
        assert same_bits(stored(store / f"{table}.safetensors")[table], load(folder, table))
    kept = convert(folder, store)
    assert (kept.written, kept.cosine_error) == ((), report.cosine_error)
    assert set(convert(folder, store, embeddings_dtype="source").written) == set(NARROWED)
    assert same_bits(
        stored(store / "source_embs.safetensors")["source_embs"], load(folder, "source_embs")
    )


def test_cosine_errors_of_large_tables_are_sampled_evenly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantiles are those of every third row, whatever the pieces; the largest stays exact."""
    monkeypatch.setattr(write, "_SAMPLED_ROWS", 25)
    monkeypatch.setattr(write, "_PIECE_VALUES", 7 * SMALL["dim"])
    told = convert(folder, tmp_path / "store", embeddings_dtype="float16").cosine_error
    whole = load(folder, "steering_residual")
    assert len(whole) == 60
    error = cosine_error(whole, whole.half())
    assert told["steering_residual"] == pytest.approx(
        {
            "p50": float(error[::3].quantile(0.5)),
            "p99": float(error[::3].quantile(0.99)),
            "max": float(error.max()),
        },
        rel=1e-3,
    )


def test_what_is_narrow_already_stays(tmp_path: Path) -> None:
    """bfloat16 is not turned into float16, and no error is told of it."""
    folder = make_builder_folder(tmp_path / "in", float_dtype=torch.bfloat16, **SMALL)
    report = convert(folder, tmp_path / "store", embeddings_dtype="float16")
    assert report.cosine_error == {}
    assert convert(folder, tmp_path / "store").written == ()


def test_a_value_too_large_for_the_narrow_dtype_is_named(folder: Path, tmp_path: Path) -> None:
    """It would become infinite."""
    change(folder, "question_embs", lambda t: t[7].fill_(70000.0))
    with pytest.raises(ContentError, match="holds 70000 in row 7, column 0, too large for float16"):
        convert(folder, tmp_path / "store", embeddings_dtype="float16")
    convert(folder, tmp_path / "store", embeddings_dtype="bfloat16")


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    """The choices are named."""
    with pytest.raises(UsageError, match="float16 or bfloat16"):
        convert(folder, embeddings_dtype="int8")


def test_nonfinite_values_are_kept_where_allowed(folder: Path, tmp_path: Path) -> None:
    """They are counted; a later run that does not allow them names the place."""
    store = tmp_path / "store"
    change(folder, "steering_residual", lambda t: t[11, 3:5].fill_(torch.nan))
    report = convert(folder, store, allow_nonfinite=True)
    assert report.warnings["nonfinite_values"] == 2
    assert read_manifest(store).artifacts["steering_residual"].nonfinite == 2
    assert convert(folder, store, allow_nonfinite=True).written == ()
    with pytest.raises(ContentError, match="steering_residual holds nan in row 11, column 3"):
        convert(folder, store)


def test_doubtful_data_is_counted(folder: Path, tmp_path: Path) -> None:
    """Pairs in two splits or twice in one; own sources, false negatives and repeats."""
    train, pairs = load(folder, "train_idx"), load(folder, "pair_index")
    torch.save(torch.cat([load(folder, "val_idx"), train[:2]]), folder / "val_idx.pt")
    torch.save(torch.cat([train, train[:3]]), folder / "train_idx.pt")
    change(folder, "hard_negatives", lambda t: t[4:6].copy_(pairs[4:6, 1:].expand(2, 4)))
    report = convert(folder, tmp_path / "store")
    assert report.warnings["pairs_in_two_splits"] == 2
    assert report.warnings["pairs_twice_in_a_split"] == 3
    assert report.warnings["own_source_rows"] == 2
    assert report.warnings["repeat_rows"] == 2
    assert report.shares["own_source_rows"] == 2 / SMALL["n_pairs"]
    assert convert(folder, tmp_path / "store").warnings == report.warnings


def test_progress_counts_up_to_the_whole(folder: Path, tmp_path: Path) -> None:
    """Bytes of all artifacts, the last call at 100 %."""
    calls: list[tuple[str, int, int]] = []
    convert(folder, tmp_path / "store", progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1][1] == calls[-1][2]
    assert {call[0] for call in calls} == set(ARTIFACTS)
