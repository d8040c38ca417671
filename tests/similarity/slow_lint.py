"""The lint computed slowly, row by row in float64, from its definitions and the `.pt` files alone.

A result has the form of the report as JSON. Rows are read as batches serve them, as float32.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
VARIANTS = ("zero", "centroid", "keyword", "residual")
STEERING = ("steering_centroid", "steering_keyword_weighted", "steering_residual")
SPLITS = ("train", "val", "test")
RANKS = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
TEMPERATURE = 0.05


def load(folder: Path) -> dict[str, Array]:
    """Read every table of a builder's folder: floats as float64, through float32."""
    tables = {}
    for path in folder.glob("*.pt"):
        value = torch.load(path, weights_only=True)
        if isinstance(value, torch.Tensor):
            wide = value.float().double() if value.is_floating_point() else value.long()
            tables[path.stem] = wide.numpy()
    return tables


def cosine(a: Array, b: Array) -> float:
    """Of two vectors: 0 with the zero vector, NaN where a value is not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    lengths = math.hypot(*a) * math.hypot(*b)
    return float(a @ b) / lengths if lengths else 0.0


def units(table: Array) -> Array:
    """Rows of length 1; zero rows stay, and rows that are not finite are NaN."""
    rows = np.where(np.isfinite(table).all(1, keepdims=True), table, np.nan)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    start: Array = np.where(np.isnan(rows), np.nan, 0.0)
    np.divide(rows, lengths, out=start, where=lengths > 0)
    return start


def share(count: float, of: float) -> dict[str, Any]:
    """As `Share`."""
    return {"count": int(count), "of": int(of), "share": count / of if of else 0.0}


def nearest_rank(values: Sequence[float], part: float) -> float | None:
    """The value of rank ceil(part * n)."""
    there = sorted(v for v in values if not math.isnan(v))
    return there[max(1, math.ceil(part * len(there))) - 1] if there else None


def quantiles(values: Sequence[float]) -> dict[str, Any]:
    """As `Quantiles`, but exact."""
    count = sum(not math.isnan(v) for v in values)
    return {"count": count, **{name: nearest_rank(values, part) for name, part in RANKS.items()}}


def middle_of_bin(value: float | None) -> float | None:
    """The middle of the bin 0.001 wide that a value is in."""
    return None if value is None else (math.floor((value + 1) * 1000) + 0.5) / 1000 - 1


class SlowLint:
    """Of one generation; `rows` are the pairs to look at."""

    def __init__(
        self,
        tables: dict[str, Array],
        *,
        margin: float = 0.05,
        rows: Sequence[int] | None = None,
    ) -> None:
        self.t, self.margin = tables, margin
        self.pairs = tables["pair_index"].tolist()
        self.rows = range(len(self.pairs)) if rows is None else rows
        self.negatives = tables["hard_negatives"].tolist()
        self.tiers = tables["negative_tiers"].tolist()
        self.splits = {s: set(tables[f"{s}_idx"].tolist()) for s in SPLITS}
        asked, given = units(tables["question_embs"]), units(tables["source_embs"])
        self.given = given
        self.right: dict[int, set[int]] = {}
        self.clusters: dict[int, set[int]] = {}
        for (q, s), cluster in zip(self.pairs, tables["pair_cluster_id"].tolist(), strict=True):
            self.right.setdefault(q, set()).add(s)
            self.clusters.setdefault(s, set()).add(cluster)
        self.own = [float(asked[q] @ given[s]) for q, s in self.pairs]
        lowest = {
            q: [v for v in (float(asked[q] @ given[s]) for s in sources) if not math.isnan(v)]
            for q, sources in self.right.items()
        }
        self.p = [min(lowest[q], default=math.nan) for q, _ in self.pairs]
        self.s = {
            i: (given[self.negatives[i]] @ asked[self.pairs[i][0]]).tolist() for i in self.rows
        }
        trained = {self.pairs[i][1] for i in self.splits["train"]}
        evaluated = {self.pairs[i][1] for i in self.splits["val"] | self.splits["test"]}
        self.evaluation_only = evaluated - trained
        self.by_number = {
            i: [n in self.right[self.pairs[i][0]] for n in self.negatives[i]] for i in self.rows
        }
        self.by_content = {i: [self._same(i, n) for n in self.negatives[i]] for i in self.rows}

    def _same(self, row: int, negative: int) -> bool:
        right = self.right[self.pairs[row][0]]
        return negative not in right and any(
            float(self.given[negative] @ self.given[s]) >= 0.9999 for s in right
        )

    def known(self, row: int) -> list[bool]:
        """Which negatives of a row are right sources."""
        pairs = zip(self.by_number[row], self.by_content[row], strict=True)
        return [a or b for a, b in pairs]

    def suspects(self, row: int, p: float, *, aside: bool = True) -> list[bool]:
        """sentence-transformers' relative margin: above p - margin * |p|."""
        cut = p - self.margin * abs(p)
        known = self.known(row) if aside else [False] * len(self.s[row])
        return [s > cut and not k for s, k in zip(self.s[row], known, strict=True)]

    def report(self) -> dict[str, Any]:
        """All of it."""
        n_neg = len(self.negatives[0])
        slots = len(self.rows) * n_neg
        train = [i for i in self.rows if i in self.splits["train"]]
        only = {i: [n in self.evaluation_only for n in self.negatives[i]] for i in self.rows}
        chance = len(self.evaluation_only) / len(self.given)
        uses = Counter(n for i in self.rows for n in self.negatives[i])
        most = sorted(((n, uses[n]) for n in uses), key=lambda one: (-one[1], one[0]))
        known = {i: self.known(i) for i in self.rows}
        return {
            "rows": len(self.rows),
            "slots": slots,
            "without_cosine": sum(math.isnan(s) for i in self.rows for s in self.s[i]),
            "similarity": {name: self._similarity(rows) for name, rows in self._split().items()},
            "tiers": self._tier_order(),
            "margin_false": self._margin_false(self.p, aside=True),
            "margin_false_own": self._margin_false(self.own, aside=True),
            "margin_false_with_known": self._margin_false(self.p, aside=False),
            "weak_right": self._weak(),
            "known_right": {
                "slots": share(sum(map(sum, known.values())), slots),
                "rows": share(sum(map(any, known.values())), len(self.rows)),
                "rows_by_number": share(sum(map(any, self.by_number.values())), len(self.rows)),
                "slots_by_number": share(sum(map(sum, self.by_number.values())), slots),
                "slots_by_content": share(sum(map(sum, self.by_content.values())), slots),
            },
            "evaluation_sources": {
                "sources": share(len(self.evaluation_only), len(self.given)),
                "slots": share(sum(sum(only[i]) for i in train), len(train) * n_neg),
                "rows": share(sum(any(only[i]) for i in train), len(train)),
                "chance_slots": chance,
                "chance_rows": 1 - (1 - chance) ** n_neg,
            },
            "untrained": self._untrained(),
            "steering": self._steering(),
            "hubness": {
                "mean": slots / len(self.given),
                "most": [list(one) for one in most[:10]],
                "top": share(
                    sum(count for _, count in most[: math.ceil(0.01 * len(self.given))]), slots
                ),
                "never": share(len(self.given) - len(uses), len(self.given)),
            },
        }

    def _split(self) -> dict[str, list[int]]:
        named = {s: [i for i in self.rows if i in self.splits[s]] for s in SPLITS}
        return {"all": list(self.rows), **named}

    def _of_tier(self, tier: int, rows: Sequence[int]) -> list[float]:
        return [s for i in rows for s, t in zip(self.s[i], self.tiers[i], strict=True) if t == tier]

    def _similarity(self, rows: Sequence[int]) -> dict[str, Any]:
        tiers = {str(t): quantiles(self._of_tier(t, rows)) for t in range(1, 5)}
        return {"own": quantiles([self.own[i] for i in rows]), "tiers": tiers}

    def _tier_order(self) -> dict[str, Any]:
        medians = {t: nearest_rank(self._of_tier(t, self.rows), 0.5) for t in range(1, 5)}
        there = [t for t in (1, 2, 3, 4) if medians[t] is not None]
        order = sorted(there, key=lambda t: -(middle_of_bin(medians[t]) or 0))
        inside = {t: [0, 0] for t in range(1, 5)}
        for i in self.rows:
            for n, t in zip(self.negatives[i], self.tiers[i], strict=True):
                clusters = self.clusters.get(n)
                if clusters:
                    inside[t][0] += int(self.t["pair_cluster_id"][i]) in clusters
                    inside[t][1] += 1
        shares = {t: a / b for t, (a, b) in inside.items() if b}
        return {
            "by_median": order,
            "as_described": order == [t for t in (3, 1, 2, 4) if t in there],
            "in_cluster": {str(t): share(*counts) for t, counts in inside.items()},
            "cluster_as_described": all((part > 0.5) == (t == 1) for t, part in shares.items()),
        }

    def _margin_false(self, p: list[float], *, aside: bool) -> dict[str, Any]:
        flags = {i: self.suspects(i, p[i], aside=aside) for i in self.rows}
        tiers = {t: [0, 0] for t in range(1, 5)}
        for i in self.rows:
            for flag, t in zip(flags[i], self.tiers[i], strict=True):
                tiers[t][0] += flag
                tiers[t][1] += 1
        return {
            "slots": share(sum(a for a, _ in tiers.values()), sum(b for _, b in tiers.values())),
            "rows": share(sum(map(any, flags.values())), len(self.rows)),
            "tiers": {str(t): share(*counts) for t, counts in tiers.items()},
            "splits": {
                name: share(sum(any(flags[i]) for i in rows), len(rows))
                for name, rows in self._split().items()
                if name != "all"
            },
        }

    def _weak(self) -> dict[str, Any]:
        below = middle_of_bin(nearest_rank(self._of_tier(4, self.rows), 0.5))
        flags = {i: sum(self.suspects(i, self.p[i])) for i in self.rows}
        weak = [i for i in self.rows if below is not None and self.own[i] < below]
        low = [i for i in self.rows if self.p[i] < 0.2]
        total = sum(flags.values())
        return {
            "below": below,
            "rows": share(len(weak), len(self.rows)),
            "margin_false": share(sum(flags[i] for i in weak), total),
            "lowest_below": 0.2,
            "lowest_rows": share(len(low), len(self.rows)),
            "lowest_margin_false": share(sum(flags[i] for i in low), total),
        }

    def _vectors(self, row: int) -> list[Array]:
        return [np.zeros_like(self.t["question_embs"][0]), *(self.t[s][row] for s in STEERING)]

    def _untrained(self) -> dict[str, Any]:
        scores: dict[tuple[int, str], tuple[bool, float, bool, float] | None] = {}
        for i in self.rows:
            q, right = self.pairs[i]
            known = self.known(i)
            for variant, steering in zip(VARIANTS, self._vectors(i), strict=True):
                at = units((self.t["question_embs"][q] + steering)[None])[0]
                s_right = float(self.given[right] @ at)
                near = (self.given[self.negatives[i]] @ at).tolist()
                left = [s for s, k in zip(near, known, strict=True) if not k]
                if math.isnan(s_right):
                    scores[i, variant] = None
                    continue
                scores[i, variant] = (*self._score(s_right, near), *self._score(s_right, left))
        return {
            name: {variant: self._mean(scores, rows, variant) for variant in VARIANTS}
            for name, rows in self._split().items()
        }

    def _score(self, right: float, negatives: list[float]) -> tuple[bool, float]:
        there = [s for s in negatives if not math.isnan(s)]
        total = math.fsum(math.exp((s - right) / TEMPERATURE) for s in [right, *there])
        return all(right > s + 1e-6 for s in there), math.log(total)

    def _mean(self, scores: dict[Any, Any], rows: list[int], variant: str) -> dict[str, Any]:
        of = [scores[i, variant] for i in rows if scores[i, variant] is not None]
        n = len(of)
        return {
            "nearest": share(sum(one[0] for one in of), n),
            "infonce": math.fsum(one[1] for one in of) / n if n else None,
            "nearest_known_aside": share(sum(one[2] for one in of), n),
            "infonce_known_aside": math.fsum(one[3] for one in of) / n if n else None,
        }

    def _steering(self) -> dict[str, Any]:
        cosines: dict[str, list[float]] = {name: [] for name in VARIANTS[1:]}
        for i in self.rows:
            q, s = (
                self.t[n][k]
                for n, k in zip(("question_embs", "source_embs"), self.pairs[i], strict=True)
            )
            apart = s - q
            if not apart @ apart > 1e-4 * (q @ q + s @ s):
                continue
            for name, steering in zip(VARIANTS[1:], self._vectors(i)[1:], strict=True):
                value = cosine(steering, apart) if steering.any() else math.nan
                if not math.isnan(value):
                    cosines[name].append(value)
        return {
            name: {"cosine": math.fsum(v) / len(v) if v else None, "rows": len(v)}
            for name, v in cosines.items()
        }


def slow_store(tables: dict[str, Array]) -> dict[str, Any]:
    """The lint of a store without its negatives; the near rows are always looked for."""
    pairs = tables["pair_index"].tolist()
    splits = {s: set(tables[f"{s}_idx"].tolist()) for s in SPLITS}
    homes: dict[int, set[str]] = {}
    for name, members in splits.items():
        for i in members:
            homes.setdefault(pairs[i][0], set()).add(name)
    twice = sorted(q for q, names in homes.items() if len(names) > 1)
    return {
        "questions": _rows(tables["question_embs"], {q for q, _ in pairs}),
        "sources": _rows(tables["source_embs"], {s for _, s in pairs}),
        "pairs": len(pairs),
        "splits": {name: len(members) for name, members in splits.items()},
        "pairs_in_no_split": len(set(range(len(pairs))) - set().union(*splits.values())),
        "questions_in_two_splits": len(twice),
        "question_examples": twice[:10],
    }


def _rows(table: Array, used: set[int]) -> dict[str, Any]:
    finite = np.isfinite(table).all(1)
    norms = [math.hypot(*row) for row in table[finite]]
    sound = [norm for norm in norms if norm]
    first: dict[bytes, int] = {}
    equal = []
    for i, row in enumerate(table):
        at = first.setdefault(row.tobytes(), i)
        if at != i:
            equal.append([at, i])
    cosines = np.nan_to_num(units(table) @ units(table).T)
    near = [i for i in range(len(table)) if i and cosines[i, :i].max() >= 0.9999]
    return {
        "count": len(table),
        "zero": sum(norm == 0 for norm in norms),
        "nonfinite": int((~finite).sum()),
        "far_from_one": sum(abs(norm - 1) > 0.01 for norm in sound),
        "norms": [min(sound), max(sound)] if sound else None,
        "equal": len(equal),
        "equal_examples": equal[:10],
        "near": len(near),
        "unused": len(table) - len(used),
    }


def assert_same(got: Any, want: Any, where: str = "") -> None:
    """Require every number of `want` in `got`: counts exactly, means to 1e-5, quantiles to half a
    bin."""
    if isinstance(want, dict):
        for key, value in want.items():
            assert_same(got[key], value, f"{where}.{key}")
    elif isinstance(want, list):
        assert len(got) == len(want), f"{where}: {got}, not {want}"
        for number, value in enumerate(want):
            assert_same(got[number], value, f"{where}[{number}]")
    elif isinstance(want, float):
        slack = 0.0005001 if where.rpartition(".")[2] in RANKS else 1e-5
        assert abs(got - want) <= slack, f"{where}: {got}, not {want}"
    else:
        assert got == want, f"{where}: {got}, not {want}"
