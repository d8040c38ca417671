"""The keyed permutation is a bijection of any size, uniform, and independent of how it is asked."""

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest

from jasper_mmap.rules.permutation import permute

# Largest chi-square of 23 and 99 degrees of freedom that chance exceeds once in a million.
CHI_SQUARE_23, CHI_SQUARE_99 = 72.0, 182.0

GOLDEN_10 = [0, 9, 2, 7, 6, 8, 4, 5, 3, 1]
GOLDEN_HUGE = [74166016316, 41348591050, 14423104556]


def order(n: int, *key: int | str) -> list[int]:
    """Return the whole permutation as a list."""
    result: list[int] = permute(np.arange(n), n, *key).tolist()
    return result


def chi_square(observed: list[int], cells: int) -> float:
    """Return Pearson's statistic against equally likely cells."""
    expected = sum(observed) / cells
    return sum((count - expected) ** 2 / expected for count in observed) + expected * (
        cells - len(observed)
    )


def test_every_size_gives_each_number_once() -> None:
    """For all n up to 300, and around squares and powers of two, nothing is lost or doubled."""
    for n in [*range(1, 301), 4095, 4096, 4097, 65_535, 65_537, 99_999]:
        for key in (("order", 0), ("steering", 7, "train", 3)):
            assert sorted(order(n, *key)) == list(range(n)), f"n={n} {key}"


def test_all_orders_of_four_are_equally_likely() -> None:
    """Over many keys each of the 24 orders of 4 comes as often as the others."""
    counts = Counter(tuple(order(4, "order", seed)) for seed in range(9_600))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert chi_square(list(counts.values()), 24) < CHI_SQUARE_23


@pytest.mark.parametrize("n", [10, 5000])
def test_each_number_goes_everywhere_equally_often(n: int) -> None:
    """Over many keys the place of a number (in ten parts of the range) is uniform, for each of ten
    numbers: below and above the size where the number of rounds changes."""
    asked = np.linspace(0, n - 1, 10).astype(np.int64)
    table = np.zeros((10, 10), np.int64)
    for seed in range(2000):
        table[np.arange(10), permute(asked, n, "order", seed) * 10 // n] += 1
    assert chi_square(table.ravel().tolist(), 100) < CHI_SQUARE_99


def test_neighbours_do_not_stay_together() -> None:
    """The steps between neighbours' images look like those of a random order: none is frequent."""
    steps = Counter(np.diff(permute(np.arange(100_000), 100_000, "order", 1)).tolist())
    assert max(steps.values()) <= 12


def test_part_of_an_order_is_the_part_of_the_whole() -> None:
    """Any subset, in any order and with repeats, gets the images that the whole gives."""
    whole = order(1000, "order", 3)
    asked = [999, 0, 17, 17, 500]
    assert permute(np.array(asked), 1000, "order", 3).tolist() == [whole[i] for i in asked]


def test_keys_give_unrelated_orders() -> None:
    """Any change of the key gives an order that agrees with the first about once."""
    first = np.array(order(2000, "order", 42, "train", 0, 0))
    for key in (
        ("steering", 42, "train", 0, 0),
        ("order", 43, "train", 0, 0),
        ("order", 42, "val", 0, 0),
        ("order", 42, "train", 1, 0),
        ("order", 42, "train", 0, 1),
    ):
        assert int((first == order(2000, *key)).sum()) < 12


def test_order_is_the_same_for_ever() -> None:
    """A checkpoint is resumed by another release: these numbers must not change."""
    assert order(10, "order", 42, "train", 0, 0) == GOLDEN_10
    assert permute(np.array([0, 1, 10**10]), 10**11, "order", 1).tolist() == GOLDEN_HUGE


def test_huge_range_is_a_bijection_where_it_is_asked() -> None:
    """Beyond 32-bit words images are distinct and inside."""
    n = (1 << 40) + 12_345
    images = permute(np.arange(n - 50_000, n), n, "order", 5)
    assert len(np.unique(images)) == 50_000
    assert images.min() >= 0
    assert images.max() < n
    assert math.isclose(images.mean() / n, 0.5, abs_tol=0.02)


@pytest.mark.parametrize("n", [0, -1, 1 << 63])
def test_impossible_size_is_refused(n: int) -> None:
    """A range without numbers, or one beyond the words, is an error."""
    with pytest.raises(ValueError, match="permutation"):
        permute(np.zeros(1, np.int64), n, "order")


def slowly(index: int, n: int, *key: int | str) -> int:
    """Return where an index goes, by the published construction in Python's own integers."""
    a = next(side for side in range(math.isqrt(n), n + 2) if side * side >= n)
    b = -(-n // a)
    bits = 32 if a * b <= 2**32 else 64
    multiplier = 0x85EBCA6B if bits == 32 else 0xBF58476D1CE4E5B9
    rounds = 16 if n < 4096 else 6
    digest = hashlib.shake_128(repr(key).encode()).digest(rounds * bits // 8)
    keys = [
        int.from_bytes(digest[at : at + bits // 8], "little")
        for at in range(0, len(digest), bits // 8)
    ]

    def scrambled(y: int, key: int, size: int) -> int:
        h = (y ^ key) * multiplier % (1 << bits)
        h = (h ^ h >> bits // 2) * multiplier % (1 << bits)
        return (h >> bits // 2) * size >> bits // 2

    while True:
        left, right = divmod(index, b)
        for number, key_of_round in enumerate(keys):
            if number % 2 == 0:
                left = (left + scrambled(right, key_of_round, a)) % a
            else:
                right = (right + scrambled(left, key_of_round, b)) % b
        index = left * b + right
        if index < n:
            return index


LIMITS = (4096, 65536**2, 2 * 65536**2, 1 << 62)


@pytest.mark.parametrize("n", [*range(1, 40), *(n + d for n in LIMITS for d in (-1, 0, 1))][:-1])
def test_sizes_at_every_limit_follow_the_construction(n: int) -> None:
    """Squares, the limit of small sizes, those of 32-bit words, the largest size of all."""
    indices = np.unique(np.linspace(0, n - 1, min(n, 50)).astype(np.int64).clip(0, n - 1))
    want = [slowly(int(index), n, "key", 3) for index in indices]
    assert permute(indices, n, "key", 3).tolist() == want
