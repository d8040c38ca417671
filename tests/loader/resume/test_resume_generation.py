"""A resumed pass is served with the generation of its state, and moves on afterwards."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap import publish_negatives, rollback_negatives, set_epoch, watch_negatives
from jasper_mmap.errors import FormatError, JasperError, MissingFileError, UsageError
from jasper_mmap.rules.names import Adopt, Again
from jasper_mmap.store.pointer import FOLDER, POINTER, file_name
from tests.oracle import Oracle
from tests.publishing import LONG, Witness, numbered, publish_numbered, until
from tests.serving import CONTEXTS, loader_of, next_positions

QUICK_S = 0.02
Served = list[int]


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keep what the package warns of."""
    with caplog.at_level(logging.WARNING, "jasper_mmap"):
        yield


def state_after(store: Path, count: int = 2, **options: Any) -> dict[str, Any]:
    """Return the state after some batches of epoch 1."""
    loader = loader_of(store, "train", 32, epoch=1, **options)
    taken = iter(loader)
    for _ in range(count):
        next(taken)
    state: dict[str, Any] = loader.state_dict()
    return state


def resumed(store: Path, state: dict[str, Any], workers: int = 0, **how: Any) -> Any:
    """Return a loader that was opened on the newest generation and continues at `state`."""
    loader = loader_of(store, "train", 32, workers, how.pop("context", "fork"))
    loader.load_state_dict(state, **how)
    return loader


def generations(loader: Any, oracle: Oracle) -> set[int]:
    """Serve a pass; return the generations that its batches are made from."""
    witness = Witness(oracle, "train")
    promised = next_positions(loader)
    pairs = zip(loader, promised, strict=True)
    return {witness.generation_of(batch, positions, 1) for batch, positions in pairs}


def test_state_names_number_and_checksum(store: Path, oracle: Oracle) -> None:
    """In less than a kilobyte, as the pointer has them."""
    publish_numbered(store, oracle)
    state = state_after(store)
    pointer = json.loads((store / FOLDER / POINTER).read_text())
    assert (state["generation"], state["generation_sha256"]) == (2, pointer["sha256"])
    assert len(json.dumps(state)) < 1000
    assert all(isinstance(value, int | str) for value in state.values())


@pytest.mark.parametrize("context", CONTEXTS if LONG else CONTEXTS[::2])
def test_resumed_pass_has_the_generation_of_its_state(
    store: Path, oracle: Oracle, context: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In a second and third resume and in workers too, with one warning that names both."""
    publish_numbered(store, oracle)
    state = state_after(store)
    publish_numbered(store, oracle)
    for _ in range(2):
        caplog.clear()
        loader = resumed(store, state)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert re.search(r"generation 2 .* 3 is the newest", caplog.text)
        set_epoch(loader, 1)
        taken = iter(loader)
        next(taken)
        state = loader.state_dict()
        assert state["generation"] == 2
        del taken, loader
    loader = resumed(store, state, 2, context=context)
    assert generations(loader, oracle) == {2}
    assert generations(loader, oracle) == {2}  # nobody watches
    assert loader.dataset_obj.reload_negatives() == 3
    assert generations(loader, oracle) == {3}
    del loader


def test_current_generation_is_not_worth_a_warning(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing differs, whatever was asked for."""
    state = state_after(store)
    for serve in ("auto", "state", "current"):
        assert resumed(store, state, generation=serve).dataset_obj.generation == 1
    assert caplog.records == []


def passes_end(loader: Any) -> None:
    """Serve the rest of the pass."""
    list(loader)


def pass_is_abandoned(loader: Any) -> None:
    """Begin another pass of the same epoch."""
    next(iter(loader))
    next(iter(loader))


ENDINGS = {
    "pass": passes_end,
    "abandoned": pass_is_abandoned,
    "epoch": lambda loader: set_epoch(loader, 2),
    "dataset": lambda loader: loader.dataset_obj.set_epoch(0),
    "reload": lambda loader: loader.dataset_obj.reload_negatives(),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("adopt", ["now", "epoch"])
def test_watch_waits_for_the_end_of_the_resumed_pass(
    store: Path, oracle: Oracle, adopt: Adopt, ending: str
) -> None:
    """And moves then, by itself or with the next epoch."""
    state = state_after(store)
    publish_numbered(store, oracle)
    told: Served = []
    loader = resumed(store, state)
    with watch_negatives(loader, QUICK_S, adopt, on_reload=told.append):
        until(lambda: loader.dataset_obj.adoption._running())
        for _ in range(3):
            set_epoch(loader, 1)
            newest = publish_numbered(store, oracle)
            until(lambda: Looked(loader) >= newest)  # noqa: B023
            assert loader.dataset_obj.generation == 1
        assert told == []
        ENDINGS[ending](loader)
        if adopt == "epoch" and ending in ("pass", "abandoned"):
            assert loader.dataset_obj.generation == 1
            set_epoch(loader, 1)
        if adopt == "now":
            until(lambda: told)
        assert loader.dataset_obj.generation == newest
        assert told == [newest]


def Looked(loader: Any) -> int:  # noqa: N802
    """The newest generation that the watch has checked."""
    adoption = loader.dataset_obj.adoption
    looks = [listener.__self__ for listener in adoption.listeners]
    return max(look._newest.number if look._newest else 0 for look in looks)


def test_next_epoch_has_the_newest_without_another_look(store: Path, oracle: Oracle) -> None:
    """What was served before the state was loaded, or what a watch has found meanwhile."""
    state = state_after(store, 12)
    publish_numbered(store, oracle)
    loader = loader_of(store, "train", 32)
    adoption = loader.dataset_obj.adoption
    watch = adoption.join("epoch", frozenset({"train"}))  # and no thread that looks
    loader.load_state_dict(state)
    set_epoch(loader, 1)
    assert generations(loader, oracle) == set()
    set_epoch(loader, 2)
    assert generations(loader, oracle) == {2}
    newest = publish_numbered(store, oracle)
    loader.load_state_dict(state)
    watch.held = adoption.newest()
    set_epoch(loader, 1)
    set_epoch(loader, 2)
    assert generations(loader, oracle) == {newest}


def test_loading_moves_in_one_step(store: Path, oracle: Oracle) -> None:
    """A generation that waits for an epoch is not served in between."""
    state = state_after(store)
    told: Served = []
    loader = loader_of(store, "train", 32)
    with watch_negatives(loader, QUICK_S, "epoch", on_reload=told.append):
        publish_numbered(store, oracle)
        until(lambda: loader.dataset_obj.adoption.nominee.number == 2)
        loader.load_state_dict(state)
        assert (told, loader.dataset_obj.generation) == ([], 1)
        loader.load_state_dict(state, generation="current")
        assert (told, loader.dataset_obj.generation) == ([2], 2)
        loader.load_state_dict(state)
        assert (told, loader.dataset_obj.generation) == ([2, 1], 1)
        set_epoch(loader, 2)
        assert (told, loader.dataset_obj.generation) == ([2, 1, 2], 2)


def test_old_iterator_does_not_end_what_was_loaded_since(store: Path, oracle: Oracle) -> None:
    """Each resumed pass holds its own."""
    state = state_after(store)
    publish_numbered(store, oracle)
    loader = resumed(store, state)
    old = iter(loader)
    loader.load_state_dict(state)
    list(old)
    assert loader.dataset_obj.adoption.pinned is not None
    list(loader)
    assert loader.dataset_obj.adoption.pinned is None


@pytest.mark.parametrize("serve", ["auto", "state", "current"])
def test_generation_that_was_rolled_back_from(
    store: Path, oracle: Oracle, serve: Again, caplog: pytest.LogCaptureFixture
) -> None:
    """It was bad: the newest is served unless the state's is asked for; so it is after others."""
    publish_numbered(store, oracle)
    state = state_after(store)
    rollback_negatives(store, note="bad")
    for expected in (3, 4):
        caplog.clear()
        loader = resumed(store, state, generation=serve)
        assert loader.dataset_obj.generation == (2 if serve == "state" else expected)
        assert len(caplog.records) == (serve != "current")
        assert serve != "auto" or "rolled back" in caplog.text
        publish_negatives(store, *numbered(oracle, 4))


def test_generation_that_was_rolled_back_to_is_served_again(store: Path, oracle: Oracle) -> None:
    """Under the number it had."""
    state = state_after(store)
    publish_numbered(store, oracle)
    rollback_negatives(store)
    assert resumed(store, state).dataset_obj.generation == 1


def test_long_lived_loader_does_not_stay_on_what_was_rolled_back_from(
    store: Path, oracle: Oracle
) -> None:
    """Also where it serves it still."""
    publish_numbered(store, oracle)
    loader = loader_of(store, "train", 32)
    state = loader.state_dict()
    assert rollback_negatives(store) == 3
    loader.load_state_dict(state)
    assert loader.dataset_obj.generation == 3


def removed(path: Path) -> None:
    """Remove the file."""
    path.unlink()


def other_content(path: Path) -> None:
    """Change a byte, and nothing else that a look would show."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "error"), [(removed, MissingFileError), (other_content, FormatError)]
)
def test_generation_that_is_not_there(
    store: Path, oracle: Oracle, spoil: Any, error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """By itself the newest is served, with one warning; on request it is an error, and nothing
    moves."""
    state = state_after(store)
    publish_numbered(store, oracle)
    spoil(store / FOLDER / file_name(1))
    loader = resumed(store, state)
    assert loader.dataset_obj.generation == 2
    (record,) = caplog.records
    assert "taken with generation 1, but the newest, 2, is served" in record.getMessage()
    before = loader.state_dict()
    fresh = loader_of(store, "train", 32)
    with pytest.raises(error, match="generation='current'"):
        fresh.load_state_dict(state, generation="state")
    assert fresh.state_dict()["epoch"] == 0
    assert fresh.dataset_obj.generation == 2
    assert generations(loader, oracle) == {2}
    assert before["generation"] == 2


def test_other_negatives_under_the_same_number(
    store: Path, oracle: Oracle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two stores of one folder have the same id: the checksum tells."""
    other = Path(shutil.copytree(store, tmp_path / "other"))
    publish_numbered(store, oracle)
    publish_negatives(other, *numbered(oracle, 7))
    state = state_after(store)
    assert resumed(other, state).dataset_obj.generation == 2
    assert "has another content" in caplog.text
    with pytest.raises(FormatError, match="another content"):
        resumed(other, state, generation="state")


def test_history_that_was_lost_does_not_matter(store: Path, oracle: Oracle) -> None:
    """The file is there, with the checksum of the state."""
    state = state_after(store)
    publish_numbered(store, oracle)
    path = store / FOLDER / POINTER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": []}))
    assert generations(resumed(store, state), oracle) == {1}


def test_other_store_takes_the_newest(
    store: Path, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers mean nothing here; so it is where a framework's user deleted the id."""
    state = state_after(store)
    publish_numbered(store, oracle)
    assert resumed(store, state, other_store=True).dataset_obj.generation == 2
    del state["store_id"]
    assert resumed(store, state).dataset_obj.generation == 2
    assert caplog.records == []


def test_state_of_the_first_version_takes_the_newest(
    store: Path, oracle: Oracle, caplog: pytest.LogCaptureFixture
) -> None:
    """It has a number and no checksum, which is said where the number is another one."""
    state = state_after(store)
    first = {k: v for k, v in state.items() if k not in ("store_id", "generation_sha256")}
    assert resumed(store, first).dataset_obj.generation == 1
    assert caplog.records == []
    publish_numbered(store, oracle)
    assert resumed(store, first).dataset_obj.generation == 2
    assert "generation 1, but the newest, 2" in caplog.text
    with pytest.raises(UsageError, match=re.escape("0.1.0")):
        resumed(store, first, generation="state")


def test_no_generation_is_a_state_too(store: Path) -> None:
    """The newest is served."""
    state = state_after(store)
    del state["generation"], state["generation_sha256"]
    assert resumed(store, state).dataset_obj.generation == 1


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 0},
        {"generation": "2"},
        {"generation": 10**12},
        {"generation_sha256": 5},
        {"store_id": 5},
    ],
)
def test_generation_of_a_state_is_checked(store: Path, change: Any) -> None:
    """Before anything moves."""
    loader = loader_of(store, "train", 32)
    before = loader.state_dict()
    with pytest.raises(UsageError, match="not the state of a loader"):
        loader.load_state_dict({**state_after(store), **change})
    assert loader.state_dict() == before


def test_choice_is_checked(store: Path) -> None:
    """The three are named."""
    loader = loader_of(store, "train", 32)
    with pytest.raises(UsageError, match="'auto', 'state' or 'current', not 'newest'"):
        loader.load_state_dict(loader.state_dict(), generation="newest")


def test_damaged_pointer_is_an_error_and_nothing_moves(store: Path) -> None:
    """What was rolled back from cannot be known."""
    loader = loader_of(store, "train", 32)
    state = state_after(store)
    (store / FOLDER / POINTER).write_text("{}")
    before = loader.state_dict()
    with pytest.raises(JasperError, match=POINTER):
        loader.load_state_dict(state)
    assert loader.state_dict() == before
