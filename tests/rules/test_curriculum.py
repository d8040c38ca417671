"""Probabilities follow the curriculum, and the draw of variants follows the probabilities."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from jasper_mmap.rules.config import Config, Curriculum
from jasper_mmap.rules.curriculum import steering_probabilities
from jasper_mmap.rules.names import VARIANTS
from jasper_mmap.rules.steering import draw_variants

Probabilities = tuple[float, float, float, float]


def config(base: Probabilities, curriculum: Curriculum | None) -> Config:
    """Return a configuration with these probabilities."""
    return Config(
        embedding_dim=8,
        n_neg=2,
        steering_probabilities=dict(zip(VARIANTS, base, strict=True)),
        curriculum=curriculum,
        raw={},
    )


def closed_form(base: Probabilities, rule: Curriculum, epoch: int) -> list[Fraction]:
    """Return the probabilities in exact arithmetic, from the definition."""
    start, end = Fraction(rule.zero_prob_start), Fraction(rule.zero_prob_end)
    zero = start + (end - start) * min(Fraction(epoch, rule.epochs_total), Fraction(1))
    others = [Fraction(p) for p in base[1:]]
    total = sum(others)
    shares = [p / total for p in others] if total else [Fraction(1), Fraction(0), Fraction(0)]
    return [zero, *((1 - zero) * share for share in shares)]


@pytest.mark.parametrize(
    "base", [(0.1, 0.2, 0.4, 0.3), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.25,) * 4]
)
def test_probabilities_equal_the_closed_form(base: Probabilities) -> None:
    """Zero's goes linearly, down or up, the others share the rest in proportion, in each epoch."""
    for start, end, total in itertools.product((0.0, 0.5, 1.0), (0.0, 0.1, 1.0), (1, 3, 10)):
        rule = Curriculum(zero_prob_start=start, zero_prob_end=end, epochs_total=total)
        for epoch in (*range(total + 2), 1000):
            found = steering_probabilities(config(base, rule), epoch)
            assert list(found) == list(VARIANTS)
            want = [float(p) for p in closed_form(base, rule, epoch)]
            assert list(found.values()) == pytest.approx(want, abs=1e-15)


def test_end_is_reached_exactly_and_first_in_epoch_epochs_total() -> None:
    """The epoch before is still above the end, later ones stay there to the last bit."""
    rule = Curriculum(zero_prob_start=0.9, zero_prob_end=0.1, epochs_total=7)
    zero = [
        steering_probabilities(config((0.1, 0.2, 0.4, 0.3), rule), e)["zero"] for e in range(10)
    ]
    assert zero[0] == 0.9
    assert zero[6] > 0.1
    assert zero[7:] == [0.1] * 3


def test_without_curriculum_the_configured_probabilities_hold() -> None:
    """Every epoch has what `steering_probabilities` say."""
    base = (0.1, 0.2, 0.4, 0.3)
    for epoch in (0, 5, 10**6):
        found = steering_probabilities(config(base, None), epoch)
        assert tuple(found.values()) == base


def draw(n: int, probabilities: Probabilities, positions: list[int] | None = None) -> list[int]:
    """Return the variants of positions (all of them) of a split of n."""
    asked = np.arange(n) if positions is None else np.array(positions)
    drawn = draw_variants(asked, n, probabilities, seed=42, split="train", epoch=3)
    result: list[int] = drawn.tolist()
    return result


@pytest.mark.parametrize(
    "probabilities",
    [(0.1, 0.2, 0.4, 0.3), (0.0, 0.5, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)],
)
def test_shares_are_less_than_a_sample_off(probabilities: Probabilities) -> None:
    """For every size each variant's count differs from its expectation by less than one."""
    for n in (*range(1, 60), 997, 10_000):
        drawn = draw(n, probabilities)
        for variant, probability in enumerate(probabilities):
            assert abs(drawn.count(variant) - n * probability) < 1 + 1e-9
            assert probability > 0 or variant not in drawn


def test_rounding_gives_nothing_to_an_impossible_last_variant() -> None:
    """Probabilities that sum to a little less than 1 leave no rest for one of probability 0."""
    probabilities = (0.1, 0.2, 0.7 - 9e-7, 0.0)
    assert 3 not in draw(1_000_000, probabilities)


def test_position_keeps_its_variant_however_it_is_read() -> None:
    """Order, repeats and the other positions asked for do not matter."""
    whole = draw(100, (0.25,) * 4)
    assert draw(100, (0.25,) * 4, [99, 3, 3, 0]) == [whole[i] for i in (99, 3, 3, 0)]


def test_variants_are_spread_over_the_split() -> None:
    """No part of the split gets a variant much more often than another."""
    drawn = np.array(draw(40_000, (0.25,) * 4)).reshape(40, 1000)
    for variant in range(4):
        per_part = (drawn == variant).sum(1)
        assert per_part.min() > 250 - 6 * 14
        assert per_part.max() < 250 + 6 * 14
