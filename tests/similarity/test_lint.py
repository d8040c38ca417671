"""The lint, compared with one computed slowly in float64 from its definitions."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import lint_negatives
from tests.similarity.slow_lint import SlowLint, assert_same, load, slow_store

UNTIDY = (
    "seven_pairs",
    "dtypes_of_all_kinds",
    "no_curriculum_empty_val",
    "bfloat16_no_distances_zero_vectors",
    "everything",
)


@pytest.fixture(scope="module")
def real_report(real_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the lint of the real folder, as JSON."""
    own = Path(shutil.copytree(real_store, tmp_path_factory.mktemp("lint") / "real"))
    value: dict[str, Any] = json.loads(json.dumps(lint_negatives(own).to_dict()))
    return value


def lint_of(store: Path, **options: Any) -> dict[str, Any]:
    """Return a lint as JSON gives it back."""
    value: dict[str, Any] = json.loads(json.dumps(lint_negatives(store, **options).to_dict()))
    return value


def test_all_numbers_of_the_real_folder(real_folder: Path, real_report: dict[str, Any]) -> None:
    """Equal to those computed row by row."""
    assert_same(real_report["of_generation"], SlowLint(load(real_folder)).report())


def test_known_numbers_of_the_real_folder(real_report: dict[str, Any]) -> None:
    """What two scripts found that know nothing of this package."""
    lint = real_report["of_generation"]
    aside, own, known = (
        lint[name] for name in ("margin_false", "margin_false_own", "margin_false_with_known")
    )
    assert (aside["slots"]["count"], aside["rows"]["count"]) == (11_017, 2_979)
    percent = [
        round(100 * counts[part]["share"], 2) if part != "3" else counts["tiers"]["3"]["share"]
        for counts in (known, aside, own)
        for part in ("slots", "rows")
    ]
    assert percent == [22.36, 69.18, 19.10, 61.99, 10.68, 44.28]
    third = [round(100 * counts["tiers"]["3"]["share"], 2) for counts in (known, aside, own)]
    assert third == [60.53, 47.90, 31.33]
    evaluation = lint["evaluation_sources"]
    assert (evaluation["slots"]["count"], evaluation["rows"]["count"]) == (8_321, 3_480)
    assert round(100 * evaluation["chance_slots"], 1) == 19.2
    assert round(100 * evaluation["chance_rows"], 1) == 92.3
    train = lint["untrained"]["train"].items()
    nearest = {variant: round(100 * scores["nearest"]["share"], 1) for variant, scores in train}
    assert nearest == {"zero": 54.2, "centroid": 11.0, "keyword": 51.6, "residual": 49.5}
    steering = {name: round(one["cosine"], 3) for name, one in lint["steering"].items()}
    assert steering == {"centroid": 0.573, "keyword": 0.039, "residual": -0.573}
    assert lint["hubness"]["most"][0][1] == 128
    assert round(lint["hubness"]["mean"], 1) == 13.8
    assert round(lint["weak_right"]["lowest_rows"]["share"], 2) == 0.12
    assert round(lint["weak_right"]["lowest_margin_false"]["share"], 2) == 0.38


@pytest.mark.parametrize("name", UNTIDY)
def test_all_numbers_of_untidy_folders(
    name: str, folder_named: Callable[[str], Path], store_named: Callable[[str], Path]
) -> None:
    """Whatever the dtypes; with zero rows, empty splits and derived tables."""
    tables = load(folder_named(name))
    report = lint_of(store_named(name), near_duplicates=True)
    assert_same(report["of_generation"], SlowLint(tables).report())
    assert_same(report["of_store"], slow_store(tables))
