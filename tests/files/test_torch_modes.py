"""torch's global modes change nothing: neither what is served nor what can be done with it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from converters import convert
from jasper_mmap import JASPERSteeringDataset, publish_negatives, set_epoch, validate_first_batch
from jasper_mmap.negatives.renewal import verify_store
from tests.oracle import Oracle, assert_batches_equal
from tests.publishing import numbered, saved
from tests.serving import loader_of, next_positions


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make floats of another dtype where none is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Refuse algorithms that are not, and fill new memory."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def other_threads() -> Iterator[None]:
    """Leave torch one thread, or give it another one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


MODES: dict[str, Any] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "other_threads": other_threads,
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Any:
    """Return what makes a context in which one of the modes holds."""
    return MODES[request.param]


Mode = type[AbstractContextManager[None]]


def assert_ordinary(tensor: torch.Tensor) -> None:
    """Write to it and train with it."""
    assert not tensor.is_inference()
    if tensor.is_floating_point():
        tensor.clone().add_(1)
        leaf = torch.ones(1, requires_grad=True)
        (tensor * leaf).sum().backward()
    tensor.zero_()


@pytest.mark.parametrize("name", ["demo", "one_dtype_of_its_own"])
def test_reading_in_a_mode_gives_ordinary_tensors(
    mode: Mode, name: str, store_named: Any, oracle_named: Any
) -> None:
    """What was opened and read in it goes on outside of it, and the other way round."""
    oracle: Oracle = oracle_named(name)
    store = store_named(name)
    with mode():
        dataset = JASPERSteeringDataset(store, "train")
        inside: list[Any] = [dataset.__getitems__([3, 1, 3]).columns, dataset[5]]
        if torch.empty(0).device.type == "cpu":  # torch's own loader needs that
            list(DataLoader(dataset, 16, num_workers=1, multiprocessing_context="fork"))
            assert validate_first_batch(dataset)
    outside: list[Any] = [dataset.__getitems__([3, 1, 3]).columns, dataset[5]]
    for batches in (inside, outside):
        variants = batches[0]["steering_variant"].tolist()
        assert_batches_equal(batches[0], oracle.batch("train", [3, 1, 3], variants))
        want = oracle.sample("train", 5, int(batches[1]["steering_variant"]))
        assert_batches_equal(batches[1], want)
        for tensor in (*batches[0].values(), *batches[1].values()):
            assert_ordinary(tensor)
    embedding = torch.nn.Embedding.from_pretrained(dataset.source_embs.float(), freeze=False)
    embedding(torch.tensor([1])).sum().backward()
    dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_pass_in_a_mode_leaves_the_next_one_alone(
    mode: Mode, workers: int, demo_store: Path, oracle_named: Any
) -> None:
    """The loss before training is measured under inference mode, then training begins."""
    oracle: Oracle = oracle_named("demo")
    loader = loader_of(demo_store, "train", 16, workers)
    with mode():
        first = next(iter(loader))
        for batch in loader:
            assert not batch["question_emb"].is_inference()
        set_epoch(loader, 1)
    promised = next_positions(loader)
    for positions, batch in zip(promised, loader, strict=True):
        variants = batch["steering_variant"].tolist()
        assert_batches_equal(batch, oracle.batch("train", positions, variants))
        for tensor in batch.values():
            assert_ordinary(tensor)
    for tensor in first.values():
        assert_ordinary(tensor)
    del loader, batch, first


def test_writing_in_a_mode_writes_the_same(
    mode: Mode, demo_folder: Path, tmp_path: Path, oracle_named: Any
) -> None:
    """Conversion, verification, publishing and reloading."""
    oracle: Oracle = oracle_named("demo")
    plain = convert(demo_folder, tmp_path / "plain")
    narrow = convert(demo_folder, tmp_path / "narrow", embeddings_dtype="float16")
    with mode():
        made = convert(demo_folder, tmp_path / "made")
        made_narrow = convert(demo_folder, tmp_path / "made_narrow", embeddings_dtype="float16")
        assert verify_store(made.store).ok
        new = saved(numbered(oracle, 2), tmp_path / "new")
        with JASPERSteeringDataset(made.store, "train", validate="full") as dataset:
            assert publish_negatives(made.store, *new) == dataset.reload_negatives() == 2
            dataset[0]
    assert (made.store_id, made_narrow.store_id) == (plain.store_id, narrow.store_id)
    assert made_narrow.cosine_error == narrow.cosine_error
    publish_negatives(plain.store, *new)
    for store in (plain.store, made.store):
        assert (store / "negatives" / "000002.safetensors").read_bytes() == (
            made.store / "negatives" / "000002.safetensors"
        ).read_bytes()
