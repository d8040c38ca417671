"""What is wrong with a builder's folder is told at once, as far as it shows without its data."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from converters import convert
from jasper_mmap.errors import (
    ConfigError,
    ContentError,
    ContentTypeError,
    IndexRangeError,
    JasperError,
    MissingFileError,
)
from tests.converting import SMALL, contents, edit, put, snapshot
from tools.demo.folder import make_builder_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a small builder's folder that the test may change."""
    return make_builder_folder(tmp_path / "built", seed=4, **SMALL)


def told(folder: Path, dst: Path, error: type[JasperError]) -> list[str]:
    """Return the lines of the error that a conversion ends with; nothing was written."""
    before = contents(folder.parent)
    with pytest.raises(error) as caught:
        convert(folder, dst)
    assert type(caught.value) is error
    assert contents(folder.parent) == before
    return str(caught.value).split("\n")


def test_missing_files_config_and_shapes_come_in_one_error(folder: Path, tmp_path: Path) -> None:
    """In this order, a line each; the type is the first one's; the lists need not be read."""
    for name in ("val_idx.pt", "source_embs.pt", "pair_keyword_ids.pt"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_neg": 3, "embedding_dim": "x"}))
    edit(folder, "pair_cluster_id", lambda t: t.float())
    edit(folder, "steering_residual", lambda t: t[:50])
    (folder / "test_idx.pt").write_bytes(b"no torch file")
    first, *others = told(folder, tmp_path / "store", MissingFileError)
    assert "source_embs.pt not found" in first
    for line, words in zip(
        others,
        (
            "pair_keyword_ids.pt not found",
            "Split file not found",
            "'embedding_dim' must be",
            "pair_cluster_id holds float32",
            "steering_residual [N_p, D] has 50 rows, but pair_index has 60 rows",
            "hard_negatives [N_p, N] has 4 columns, but 'n_neg' in config.json is 3",
            "negative_tiers [N_p, N] has 4 columns, but 'n_neg' in config.json is 3",
            "test_idx.pt: damaged",
        ),
        strict=True,
    ):
        assert line.startswith("  ")
        assert words in line


def test_config_and_shapes_come_in_one_error_over_an_old_store(
    folder: Path, tmp_path: Path
) -> None:
    """What did not change since is looked at as well; a problem is told once."""
    store = tmp_path / "store"
    convert(folder, store)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_neg": 3}))
    edit(folder, "keyword_embs", lambda t: t[:, :5])
    before = snapshot(store)
    lines = told(folder, store, ContentError)
    assert [words for words in lines if "keyword_embs [N_k, D] has 5 columns" in words] == lines[:1]
    assert sum("hard_negatives" in line for line in lines) == 1
    assert all("'n_neg' in config.json is 3" in line for line in lines[1:])
    assert len(lines) == 3
    assert snapshot(store) == before
    (folder / "config.json").write_text(json.dumps({**config, "n_neg": 0}))
    first, second = told(folder, store, ConfigError)
    assert "'n_neg' must be" in first
    assert "keyword_embs" in second


def test_more_than_twenty_problems_are_counted(folder: Path, tmp_path: Path) -> None:
    """The first, twenty more, and how many there are still."""
    for path in folder.glob("*_*.pt"):
        path.write_bytes(b"x")
    (folder / "question_embs.pt").unlink()
    zeros = dict.fromkeys(("zero", "centroid", "keyword", "residual"), -1)
    curriculum = dict.fromkeys(("zero_prob_start", "zero_prob_end", "epochs_total"), -1)
    (folder / "config.json").write_text(
        json.dumps({"steering_probabilities": zeros, "curriculum": curriculum})
    )
    lines = told(folder, tmp_path / "store", MissingFileError)
    assert len(lines) == 22
    assert lines[-1] == "  and 4 more problems"


def test_problem_of_the_data_is_not_hidden_by_others(folder: Path, tmp_path: Path) -> None:
    """Numbers that lead outside a table that shrank are told beside what shows at once."""
    store = tmp_path / "store"
    convert(folder, store)
    edit(folder, "source_embs", lambda t: t[:5].clone())
    first = told(folder, store, IndexRangeError)
    assert len(first) == 1
    edit(folder, "val_idx", lambda t: t.double())
    lines = told(folder, store, ContentTypeError)
    assert "val_idx holds float64" in lines[0]
    assert lines[1:] == [f"  {first[0]}"]


def test_folder_with_none_of_the_files_names_one_that_has_them(
    folder: Path, tmp_path: Path
) -> None:
    """One or two levels below; what else lies there does not matter."""
    outer = tmp_path / "outer"
    (outer / "a").mkdir(parents=True)
    (outer / "notes.txt").write_text("x")
    (outer / "config.json").write_text("{}")
    (line,) = told(outer, tmp_path / "store", MissingFileError)
    assert line.startswith(f"{outer}: holds none of the builder's files")
    assert "Correct the path" in line
    for place in ("a/b", "c"):
        shutil.copytree(folder, outer / place)
        (line,) = told(outer, tmp_path / "store", MissingFileError)
        assert f"but {outer / place} does" in line
        shutil.rmtree(outer / place)
    (outer / "few").mkdir()
    shutil.copy(folder / "val_idx.pt", outer / "few")
    shutil.copytree(folder, outer / "many")
    (line,) = told(outer, tmp_path / "store", MissingFileError)
    assert f"but {outer / 'many'} does" in line


def test_folder_of_the_later_format_is_told_how_to_get_pt_files(tmp_path: Path) -> None:
    """Only `dataset.h5` is there, and maybe a configuration."""
    folder = tmp_path / "later"
    folder.mkdir()
    (folder / "dataset.h5").write_bytes(b"\x89HDF")
    for _ in range(2):
        (line,) = told(folder, tmp_path / "store", MissingFileError)
        assert "dataset.h5, a later format" in line
        assert "torch.save(torch.from_numpy" in line
        (folder / "config.json").write_text("{}")


def test_store_whose_pt_files_are_gone_is_told_so(folder: Path, tmp_path: Path) -> None:
    """It was converted already: there is nothing to do."""
    convert(folder)
    for path in folder.glob("*.pt"):
        path.unlink()
    before = snapshot(folder)
    with pytest.raises(MissingFileError, match=r"converted store without \.pt files"):
        convert(folder)
    assert snapshot(folder) == before


def test_values_are_looked_at_only_when_all_else_is_well(folder: Path, tmp_path: Path) -> None:
    """A NaN is an error by itself, with its place."""
    put(folder, "question_embs", 3, torch.nan)
    (line,) = told(folder, tmp_path / "store", ContentError)
    assert "nan in row 3, column 0" in line
