"""What is measured of a pass, on a clock set by hand, and quantiles against sorted lists."""

import json
import math
import random
from collections.abc import Iterable
from dataclasses import FrozenInstanceError

import pytest

from jasper_mmap import LoaderStats
from jasper_mmap.timing import step_times
from jasper_mmap.timing.histogram import Histogram
from jasper_mmap.timing.step_times import StepTimes

MS = 1_000_000
WITHIN = 0.032


def counted(durations: Iterable[int]) -> Histogram:
    """Return a histogram of these durations."""
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [1, 2, 99, 100, 2000])
def test_quantiles_are_those_of_the_sorted_durations(size: int, share: float) -> None:
    """Within the width of a bucket, from nanoseconds to hours."""
    dice = random.Random(size)
    durations = sorted(int(10 ** dice.uniform(0, 13)) for _ in range(size))
    true = durations[max(0, math.ceil(share * size) - 1)]
    measured = counted(durations).quantile(share)
    assert measured == pytest.approx(true, rel=WITHIN)


def test_count_total_and_longest_are_exact() -> None:
    """Of every duration that a clock can give, with no more memory than at first."""
    durations = [0, 1, 15, 16, 31, 32, 33, 10**9, 2**63 - 1]
    histogram = counted(durations)
    assert (histogram.count, histogram.total) == (len(durations), sum(durations))
    assert histogram.longest == max(durations)
    assert len(histogram._counts) == len(Histogram()._counts)


def test_every_bucket_is_as_narrow_as_is_said() -> None:
    """Its smallest and largest duration differ from what it says by no more."""
    for power in range(1, 40):
        for duration in (2**power - 1, 2**power, 2**power + 1, 2**power * 3 // 2):
            histogram = counted([duration, 2**62])
            assert histogram.quantile(0.5) == pytest.approx(duration, rel=WITHIN)


def test_nothing_measured_is_none() -> None:
    """A loader that served nothing yet answers."""
    assert Histogram().quantile(0.5) is None
    stats = StepTimes("train", 0, 2).stats(7)
    assert stats.waits is not None
    assert (stats.batches, stats.waits.count, stats.waits.p99_s) == (0, 0, None)
    assert (stats.samples_per_s, stats.waited_share, stats.ready_share) == (None, None, None)
    assert (stats.generation, stats.batches_since_change) == (7, 0)
    assert "0 batches" in str(stats)


class Pass:
    """A pass on a clock that is set by hand, in nanoseconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 12_345
        self.times = StepTimes("train", 3, 2)
        self.times.counts_ready = True
        monkeypatch.setattr(step_times, "perf_counter_ns", lambda: self.now)

    def batch(self, wait: int, train: int, *, rows: int = 32, generation: int = 1) -> None:
        """Wait so long for a batch, then train so long."""
        requested = self.now
        self.now += wait
        self.times.samples += rows
        self.times.returned(requested, generation)
        self.now += train


def test_waits_and_steps_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow trainer and slow data with the same number of steps a second."""
    for wait, train in ((1 * MS, 19 * MS), (19 * MS, 1 * MS)):
        run = Pass(monkeypatch)
        for _ in range(50):
            run.batch(wait, train)
        run.times.ended(run.now)
        stats = run.times.stats(1)
        assert stats.waits is not None
        assert stats.steps is not None
        assert stats.waits.p50_s == pytest.approx(wait / 1e9, rel=WITHIN)
        assert stats.waits.total_s == pytest.approx(50 * wait / 1e9)
        assert stats.steps.count == 50
        assert stats.steps.total_s == pytest.approx(1.0)
        assert stats.steps.p99_s == pytest.approx(0.02, rel=WITHIN)
        assert stats.waited_share == pytest.approx(wait / (20 * MS))
        assert stats.samples_per_s == pytest.approx(50 * 32)


def test_a_step_that_is_not_over_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a pass: neither the latest wait nor what the trainer does now."""
    run = Pass(monkeypatch)
    for wait in (5 * MS, 5 * MS, 900 * MS):
        run.batch(wait, 15 * MS)
    stats = run.times.stats(1)
    assert stats.steps is not None
    assert stats.waits is not None
    assert (stats.steps.count, stats.waits.count) == (2, 3)
    assert stats.waited_share == pytest.approx(0.25)
    assert stats.samples_per_s == pytest.approx(32 / 0.02)
    assert stats.first_wait_s == pytest.approx(0.005)
    assert stats.waits.longest_s == pytest.approx(0.9)


def test_batches_since_the_generation_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the next pass, and from 0 where it changed after the latest batch."""
    run = Pass(monkeypatch)
    for generation in (1, 1, 2, 2, 2):
        run.batch(1, 1, generation=generation)
    assert run.times.stats(2).batches_since_change == 3
    assert run.times.stats(3).batches_since_change == 0
    following = Pass(monkeypatch)
    following.times.follow(run.times)
    following.batch(1, 1, generation=2)
    assert following.times.stats(2).batches_since_change == 4
    assert following.times.stats(2).batches == 1


def test_stats_are_frozen_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go into a program's log as they are."""
    run = Pass(monkeypatch)
    run.batch(MS, MS)
    run.batch(MS, MS)
    stats = run.times.stats(1)
    answer = json.loads(json.dumps(stats.to_dict()))
    assert answer["waits"]["count"] == 2
    assert answer["waited_share"] == stats.waited_share
    assert sorted(answer) == sorted(LoaderStats.__dataclass_fields__)
    with pytest.raises(FrozenInstanceError):
        stats.batches = 3  # type: ignore[misc]


def test_line_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In words and units that need no page beside them."""
    run = Pass(monkeypatch)
    for _ in range(1000):
        run.batch(2 * MS, 18 * MS)
        run.times.ready += 1
    run.times.ended(run.now)
    line = str(run.times.stats(1))
    assert line.startswith("train epoch 3: 1,000 batches, 32,000 samples, 1,600 samples/s; ")
    assert "waited 2.00 s of 20.00 s for data (10.0%)" in line
    assert "the first batch 2 ms, 100.0% of batches were ready" in line
    assert "0 slot fallbacks; generation 1, 1,000 batches since it changed" in line
