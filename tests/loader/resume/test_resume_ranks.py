"""Ranks that load a state continue at one place with one generation, or all raise."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from converters import convert
from jasper_mmap import publish_negatives, set_epoch
from jasper_mmap.errors import JasperError, MissingFileError, StoreChangedError, UsageError
from jasper_mmap.store.pointer import FOLDER, file_name
from tests.oracle import Oracle
from tests.publishing import numbered, publish_numbered
from tests.ranks import ranks
from tests.serving import loader_of

pytestmark = pytest.mark.xdist_group("torchrun")  # each test starts ranks


class Case(NamedTuple):
    """What the ranks load, a store and a state for each, and where they meet afterwards."""

    stores: list[Path]
    states: list[Any]
    meeting: Callable[[Any], None]
    options: dict[str, Any] = {}  # noqa: RUF012


def epoch(loader: Any) -> None:
    """Begin the epoch of the state."""
    set_epoch(loader, 1)


def begun(loader: Any) -> None:
    """Begin a pass."""
    iter(loader)


MEETINGS = (epoch, begun)


def loaded(rank: int, case: Case) -> Any:
    """Return a loader of this rank that has loaded its state, if it has one."""
    loader = loader_of(case.stores[rank], "train", 8, distributed=True)
    if case.states[rank] is not None:
        loader.load_state_dict(case.states[rank], **case.options)
    return loader


def states_of(rank: int, cases: list[Case]) -> list[list[dict[str, Any]]]:
    """For each case a rank's states: when it has loaded, after the meeting, and after a batch."""
    seen = []
    for case in cases:
        loader = loaded(rank, case)
        states = [loader.state_dict()]
        if case.meeting is epoch:
            epoch(loader)
        taken = iter(loader)
        states.append(loader.state_dict())
        next(taken)
        seen.append([*states, loader.state_dict()])
    return seen


def refusals(rank: int, cases: list[Case]) -> list[list[tuple[type, str]]]:
    """For each case what a rank's next two meetings raise; then all load a state that they
    accept, and serve it."""
    seen = []
    for case in cases:
        loader = loaded(rank, case)
        raised = []
        for _ in range(2):
            with pytest.raises(JasperError) as caught:
                case.meeting(loader)
            raised.append((type(caught.value), str(caught.value)))
        loader.load_state_dict(case.states[0], generation="current")
        case.meeting(loader)
        assert loader.state_dict()["consumed"] == 64
        next(iter(loader))
        seen.append(raised)
    return seen


@pytest.fixture
def state(store: Path) -> dict[str, Any]:
    """Return the state of one process after two batches of epoch 1."""
    loader = loader_of(store, "train", 32, epoch=1)
    taken = iter(loader)
    next(taken)
    next(taken)
    state: dict[str, Any] = loader.state_dict()
    return state


@pytest.fixture
def lacking(store: Path, state: dict[str, Any], oracle: Oracle, tmp_path: Path) -> Path:
    """Publish a generation; return a copy of the store that lacks that of `state`."""
    publish_numbered(store, oracle)
    other = Path(shutil.copytree(store, tmp_path / "lacking"))
    (other / FOLDER / file_name(state["generation"])).unlink()
    return other


def test_ranks_continue_together(
    store: Path, lacking: Path, state: dict[str, Any], tmp_path: Path
) -> None:
    """All have the same states, and serve the generation of theirs; where one rank lacks it (nodes
    may have copies of a store), all take the newest."""
    cases = [
        Case(stores, [state] * 3, meeting)
        for stores in ([store] * 3, [lacking, store, store], [store, lacking, store])
        for meeting in MEETINGS
    ]
    first, *others = ranks(3, tmp_path / "ranks", states_of, cases)
    for case, seen in zip(cases, first, strict=True):
        have_it = lacking not in case.stores
        if have_it:
            assert seen[0] == state
        assert seen[1]["consumed"] == 64
        assert seen[1]["generation"] == (1 if have_it else 2)
        assert seen[2] == seen[1] | {"consumed": 64 + 3 * 8}
    for seen in others:
        assert [states[1:] for states in seen] == [states[1:] for states in first]


def test_what_one_rank_refuses_all_raise(
    store: Path, lacking: Path, state: dict[str, Any], tmp_path: Path
) -> None:
    """None waits; they raise until they have loaded a state that all accept."""
    wrong: list[tuple[dict[str, Any], type, str]] = [
        ({"split": "val"}, JasperError, "rank 1: the state is of a different loader: split was"),
        ({"seed": 5}, JasperError, "rank 1: the state is of a different loader: seed was 5"),
        ({"store_id": "x"}, StoreChangedError, "rank 1: the state is of store 'x'"),
        ({"epoch": "x"}, UsageError, "rank 1: not the state of a loader"),
        ({"consumed": 96}, UsageError, "64 samples consumed, rank 1 epoch 1, pass 0, 96 samples"),
    ]
    both = [store] * 2
    cases, expected = [], []
    for meeting in MEETINGS:
        for change, kind, words in wrong:
            cases.append(Case(both, [state, state | change], meeting))
            expected.append((kind, words))
        for rank in range(2):
            stores = [lacking if rank == other else store for other in range(2)]
            cases.append(Case(stores, [state] * 2, meeting, {"generation": "state"}))
            expected.append(
                (MissingFileError, f"rank {rank}: the state was taken with generation 1")
            )
    # Only one of them was given the checkpoint.
    cases.append(Case(both, [state, None], epoch))
    expected.append((UsageError, "rank 1 none. Call load_state_dict with the same state on every"))
    first, second = ranks(2, tmp_path / "ranks", refusals, cases)
    assert first == second
    for raised, (kind, words) in zip(first, expected, strict=True):
        for its_kind, message in raised:
            assert its_kind is kind
            assert words in message


def begin_epochs(rank: int, stores: list[list[Path]]) -> list[tuple[type, str]]:
    """Return what a rank's `set_epoch` raises for each pair of stores."""
    raised = []
    for pair in stores:
        with pytest.raises(JasperError) as caught:
            set_epoch(loader_of(pair[rank], "train", 8, distributed=True), 0)
        raised.append((type(caught.value), str(caught.value)))
    return raised


def test_ranks_with_different_stores_all_raise(
    store: Path, demo_folder: Path, oracle: Oracle, tmp_path: Path
) -> None:
    """Stores of other embeddings, and of other negatives under the same number."""
    narrow = convert(demo_folder, tmp_path / "narrow", embeddings_dtype="float16").store
    other = Path(shutil.copytree(store, tmp_path / "other"))
    publish_numbered(store, oracle)
    publish_negatives(other, *numbered(oracle, 7))
    first, second = ranks(2, tmp_path / "ranks", begin_epochs, [[store, narrow], [store, other]])
    assert first == second
    assert [kind for kind, _ in first] == [StoreChangedError, JasperError]
    assert "the ranks serve different stores: rank 0" in first[0][1]
    assert "The ranks serve different generations (2, SHA-256" in first[1][1]
