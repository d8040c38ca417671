"""Whether data is called the limit of a training step: planted loaders, planted figures."""

import time
from pathlib import Path
from typing import Any

import pytest

from jasper_mmap.bench.measure import Cell
from jasper_mmap.bench.step import Waiting, answer_of, measure_waiting, sentence_of
from jasper_mmap.bench.turns import Running

STEP_S = 0.004
SLOW_S = 0.016


def waiting(workers: int, share: float) -> Waiting:
    """Return what was measured with so many workers, of a step of 20 ms."""
    return Waiting(workers=workers, step_s=0.02, share=share)


def a_cell(workers: int, rate: float) -> Cell:
    """Return a cell of that throughput."""
    return Cell(
        contender="ours",
        workers=workers,
        batch_size=32,
        windows=(rate,),
        floor_windows=(1.0,),
        open_s=0.1,
        first_batch_s=0.1,
        memory=None,
    )


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (
            [waiting(0, 0.02)],
            "not be the limit, even without workers: a step would wait 0.41 ms, 2.0% of the time",
        ),
        (
            [waiting(2, 0.05)],
            "not be the limit, with num_workers=2: a step would wait 1.1 ms, 5.0% of the time",
        ),
        (
            [waiting(0, 0.2), waiting(2, 0.01)],
            "be the limit without workers: a step would wait 5 ms, 20.0% of the time;"
            " with num_workers=2 it would not: a step would wait 0.2 ms, 1.0% of the time",
        ),
        (
            [waiting(0, 0.5), waiting(1, 0.2), waiting(2, 0.1)],
            "be the limit without workers: a step would wait 20 ms, 50.0% of the time; no number"
            " of workers that was measured is enough: at best, with num_workers=2, a step would"
            " wait 2.2 ms, 10.0% of the time",
        ),
        (
            [waiting(1, 0.5)],
            "be the limit with num_workers=1: a step would wait 20 ms, 50.0% of the time; no other"
            " number of workers that was measured is better",
        ),
    ],
)
def test_one_sentence_says_it(measured: list[Waiting], sentence: str) -> None:
    """Whether, by how much, and with how many workers not; the JSON says the same."""
    begin = "a training step of 20 ms, batches of 32: data would "
    assert sentence_of(measured, 32) == begin + sentence
    answer = answer_of(measured, 32)
    assert answer["sentence"] == begin + sentence
    assert answer["limit"] == sentence.startswith("be")
    fit = [one["workers"] for one in answer["measured"] if not one["limit"]]
    assert answer["enough_workers"] == (fit[0] if fit else None)


def planted(_store: Path, workers: int, batch_size: int) -> Running:
    """Open a loader that only two workers make fast enough."""

    def take() -> int:
        if workers != 2:
            time.sleep(SLOW_S)
        return batch_size

    return Running(take, 0)


def test_waits_are_measured_with_more_workers_until_they_are_short() -> None:
    """A planted loader: none and one are too slow, and three are not tried any more."""
    fast = 32 / STEP_S * 2
    cells = [a_cell(3, fast), a_cell(0, 1.0), a_cell(1, fast), a_cell(2, fast)]
    shown: list[tuple[str, int, int]] = []
    measured = measure_waiting(
        Path(), 32, STEP_S, cells, 0.1, planted, lambda *now: shown.append(now)
    )
    assert [one.workers for one in measured] == [0, 1, 2]
    names = ("step, 0 workers", "step, 1 worker", "step, 2 workers")
    assert shown == [(name, done, 4) for done, name in enumerate(names)]
    assert [one.limits for one in measured] == [True, True, False]


def test_workers_whose_throughput_cannot_suffice_are_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for the fewest, and the fastest."""
    tried = []

    class Tried:
        def __init__(self, opened: Any) -> None:
            tried.append(opened.args[3])

        def __enter__(self) -> "Tried":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def run(self, _: float) -> float:
            return 0.5

    monkeypatch.setattr("jasper_mmap.bench.step.Turns", Tried)
    slow = 32 / STEP_S / 2
    cells = [a_cell(n, slow + n % 3) for n in range(4)]
    assert [one.workers for one in measure_waiting(Path(), 32, STEP_S, cells, 1.0)] == [0, 2]
    assert tried == [0, 2]
    assert len(measure_waiting(Path(), 32, STEP_S, cells[2:3], 1.0)) == 1
