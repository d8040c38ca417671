"""Builder's folders, their stores and their oracles: each is made once a session, never changed."""

import functools
import gc
import multiprocessing
import shutil
import time
from collections.abc import Callable, Generator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from converters import convert
from tests.folders import SYNTHETIC, make_synthetic
from tests.oracle import Oracle
from tests.publishing import Tables, numbered
from tools.demo.folder import make_builder_folder

REAL_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "debian_small"
DEMO = "demo"
REAL = "real"

# Of no concern here: a fork beside torch's threads (Python 3.12), two workers on one core (torch).
HARMLESS = (
    "ignore:This process .* is multi-threaded:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
)

# Bounded: the same examples in every run, and what fails is not made smaller, which takes minutes.
# By `--hypothesis-profile=long`: for an hour, others in every run, no limit of time on a test.
_PACE: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile(
    "bounded",
    max_examples=150,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    **_PACE,
)
settings.register_profile("long", max_examples=12_000, print_blob=True, **_PACE)
settings.load_profile("bounded")

# Without it every forkserver worker imports torch anew, which takes longer than the tests.
multiprocessing.set_forkserver_preload(["torch"])


@pytest.hookimpl(trylast=True)  # after the one that marks tests as Hypothesis's
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every test start two workers by fork without a warning, and long ones take their time."""
    for item, warning in product(items, HARMLESS):
        item.add_marker(pytest.mark.filterwarnings(warning))
    for item in items:
        if item.get_closest_marker("hypothesis") and settings.get_current_profile_name() == "long":
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that leaves a worker process behind (a failed one may: its traceback does)."""
    before = {child.pid for child in multiprocessing.active_children()}
    result = yield
    patience_s = time.monotonic() + 10
    while left := [c for c in multiprocessing.active_children() if c.pid not in before]:
        if time.monotonic() > patience_s:
            pytest.fail(f"{item.name} left processes behind: {left}")
        gc.collect()
        time.sleep(0.05)
    return result


@pytest.fixture(scope="session")
def folder_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the builder's folder of a name: "real", "demo" or a key of SYNTHETIC."""
    root = tmp_path_factory.mktemp("folders")

    @functools.cache
    def folder(name: str) -> Path:
        if name == REAL:
            if not REAL_FOLDER.is_dir():
                pytest.skip(f"no real input at {REAL_FOLDER}")
            return REAL_FOLDER
        if name == DEMO:
            return make_builder_folder(root / name, seed=1, n_pairs=500, dim=32)
        return make_synthetic(name, root / name)

    return folder


@pytest.fixture(scope="session")
def store_named(
    folder_named: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return the store converted from the folder of a name."""
    root = tmp_path_factory.mktemp("stores")

    @functools.cache
    def store(name: str) -> Path:
        convert(folder_named(name), root / name)
        return root / name

    return store


@pytest.fixture(scope="session")
def oracle_named(folder_named: Callable[[str], Path]) -> Callable[[str], Oracle]:
    """Return the oracle of the folder of a name."""
    return functools.cache(lambda name: Oracle(folder_named(name)))


@pytest.fixture(scope="session")
def real_folder(folder_named: Callable[[str], Path]) -> Path:
    """Return the real builder's folder; skip the test where it is not at hand."""
    return folder_named(REAL)


@pytest.fixture(scope="session")
def real_store(store_named: Callable[[str], Path]) -> Path:
    """Return the store of the real folder."""
    return store_named(REAL)


@pytest.fixture(scope="session")
def demo_folder(folder_named: Callable[[str], Path]) -> Path:
    """Return a tidy synthetic folder: 500 pairs, D=32, N=12."""
    return folder_named(DEMO)


@pytest.fixture(scope="session")
def demo_store(store_named: Callable[[str], Path]) -> Path:
    """Return the store of the tidy synthetic folder."""
    return store_named(DEMO)


@pytest.fixture(scope="session", params=[REAL, *SYNTHETIC])
def any_name(request: pytest.FixtureRequest) -> str:
    """Return the name of the real folder, then of each of the synthetic ones."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def any_folder(any_name: str, folder_named: Callable[[str], Path]) -> Path:
    """Return the folder of `any_name`."""
    return folder_named(any_name)


@pytest.fixture(scope="session")
def any_store(any_name: str, store_named: Callable[[str], Path]) -> Path:
    """Return the store of `any_name`."""
    return store_named(any_name)


@pytest.fixture(scope="session")
def any_oracle(any_name: str, oracle_named: Callable[[str], Oracle]) -> Oracle:
    """Return the oracle of `any_name`."""
    return oracle_named(any_name)


@pytest.fixture
def store(demo_store: Path, tmp_path: Path) -> Path:
    """Return a copy of the tidy synthetic store with its stamps, to be spoilt."""
    return Path(shutil.copytree(demo_store, tmp_path / "store"))


@pytest.fixture
def built(demo_folder: Path, tmp_path: Path) -> Path:
    """Return a store that lies beside its `.pt` files."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    convert(folder)
    return folder


@pytest.fixture
def oracle(oracle_named: Callable[[str], Oracle]) -> Oracle:
    """Return the oracle of `store`, as long as nothing was published to it."""
    return oracle_named(DEMO)


@pytest.fixture
def new(oracle: Oracle) -> Tables:
    """Return negatives and tiers that were not published to `store` yet."""
    return numbered(oracle, 2)
