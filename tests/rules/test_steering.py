"""Which pairs a variant gets: as many as its probability says, by a rank that nobody chooses."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jasper_mmap.rules.permutation import permute
from jasper_mmap.rules.steering import draw_variants


def counts(probabilities: tuple[float, ...], n: int) -> list[int]:
    """Return how many of a whole split each variant gets."""
    variants = draw_variants(np.arange(n), n, probabilities, seed=7, split="train", epoch=3)
    return [int((variants == number).sum()) for number in range(len(probabilities))]


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any), st.integers(1, 3000))
def test_shares_are_the_probabilities_to_less_than_a_sample(weights: list[int], n: int) -> None:
    """Also if the probabilities do not sum to exactly 1 as floats."""
    total = sum(weights)
    drawn = counts(tuple(weight / total for weight in weights), n)
    assert sum(drawn) == n
    for count, weight in zip(drawn, weights, strict=True):
        assert abs(count - Fraction(weight, total) * n) < 1
        assert weight or not count


@pytest.mark.parametrize("scale", [0.9, 1.1, 1e-3])
def test_only_the_proportions_count(scale: float) -> None:
    """The last variant gets nothing of what is missing."""
    shares = (0.3 * scale, 0.5 * scale, 0.2 * scale, 0.0)
    assert counts(shares, 1000) == [300, 500, 200, 0]


@given(st.lists(st.integers(0, 999), max_size=20))
def test_a_position_has_its_variant_by_its_rank(positions: list[int]) -> None:
    """Rank by rank in exact arithmetic: u = (r + 1/2) / n among the cumulative probabilities."""
    shares = [Fraction(1, 10), Fraction(2, 10), Fraction(4, 10), Fraction(3, 10)]
    array = np.array(positions, np.int64)
    drawn = draw_variants(array, 1000, tuple(map(float, shares)), seed=7, split="train", epoch=3)
    ranks = permute(array, 1000, "steering", 7, "train", 3)
    for variant, rank in zip(drawn.tolist(), ranks.tolist(), strict=True):
        u = (Fraction(rank) + Fraction(1, 2)) / 1000
        assert variant == next(v for v in range(4) if u < sum(shares[: v + 1]))
