"""Stores to draw, and their pages."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converters import convert
from jasper_mmap import publish_negatives
from jasper_mmap.report.numbers.content import Content, content_of
from jasper_mmap.report.whole_page import page
from tests.converting import edit, load
from tests.report.reading import Page
from tools.demo.folder import make_builder_folder

MINED = Path(__file__).parents[3] / "shared/data/debian_small_new_negatives"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a builder's folder with right sources among the negatives of some rows."""
    made = make_builder_folder(tmp_path_factory.mktemp("report") / "folder", n_pairs=300, dim=16)
    pairs = load(made, "pair_index")

    def with_right(negatives: torch.Tensor) -> torch.Tensor:
        negatives = negatives.clone()
        for row, (question, source) in enumerate(pairs.tolist()):
            others = pairs[(pairs[:, 0] == question) & (pairs[:, 1] != source), 1]
            if len(others) and row % 2:
                negatives[row, 5] = others[0]
        return negatives

    edit(made, "hard_negatives", with_right)
    return made


@pytest.fixture(scope="session")
def published(folder: Path) -> Path:
    """Return its store with three generations, of which two were linted."""
    store = folder.parent / "published"
    convert(folder, store)
    negatives, tiers = load(folder, "hard_negatives"), load(folder, "negative_tiers")
    for number in (2, 3):
        changed = negatives.clone()
        changed[: 50 * number, 0] = (changed[: 50 * number, 0] + number) % int(negatives.max())
        publish_negatives(store, changed, tiers, note=f"note {number}")
    return store


@pytest.fixture(scope="session")
def content(published: Path) -> Content:
    """Return what the report shows of it."""
    return content_of(published)


@pytest.fixture(scope="session")
def html(content: Content) -> str:
    """Return its page."""
    return page(content)


@pytest.fixture(scope="session")
def read(html: str) -> Page:
    """Return its page, read back."""
    return Page(html)


@pytest.fixture(scope="session")
def real(real_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """Return what the report shows of the real folder after the publish of its new negatives."""
    store = Path(shutil.copytree(real_store, tmp_path_factory.mktemp("real") / "my_dataset"))
    tables = [MINED / f"{name}.pt" for name in ("hard_negatives", "negative_tiers")]
    publish_negatives(store, *tables, note="mined again")
    return content_of(store)


@pytest.fixture(scope="session")
def real_html(real: Content) -> str:
    """Return its page."""
    return page(real)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[], Path]:
    """Return a function that makes a store of 10 pairs: one cluster, no val, one epoch."""

    def make() -> Path:
        made = make_builder_folder(
            tmp_path / "tiny",
            n_pairs=10,
            dim=4,
            n_neg=2,
            untidy=frozenset({"empty_val"}),
            with_distances=False,
            config_changes={
                "curriculum": {"zero_prob_start": 1.0, "zero_prob_end": 0.0, "epochs_total": 1}
            },
        )
        edit(made, "centroid_embs", lambda table: table[:1].clone())
        edit(made, "pair_cluster_id", torch.zeros_like)
        convert(made)
        return made

    return make
