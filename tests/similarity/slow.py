"""What pairs, questions and sources of a builder's folder are, by plain loops in float64."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.oracle import STEERING_FILES, VARIANTS, Oracle

MARGIN = 0.05
SAME = 0.9999


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine of two vectors; 0 where one of them is zero."""
    norms = norm(a) * norm(b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def norm(vector: Sequence[float]) -> float:
    """Return the length of a vector."""
    return math.sqrt(math.fsum(x * x for x in vector))


class Slow:
    """A builder's folder, looked at row by row."""

    def __init__(self, folder: Path) -> None:
        self.oracle = Oracle(folder)
        self.pairs = self.oracle.pair_index

    def vector(self, table: str, row: int) -> list[float]:
        """Return a row of a table as float32 holds it."""
        values: list[float] = self.oracle.tables[table][row].to(torch.float32).tolist()
        return values

    def similarity(self, question: int, source: int) -> float:
        """Return the cosine of a question and a source."""
        return cosine(self.vector("question_embs", question), self.vector("source_embs", source))

    def same(self, a: int, b: int) -> bool:
        """Return whether two sources have the same content."""
        return cosine(self.vector("source_embs", a), self.vector("source_embs", b)) >= SAME

    def rights(self, question: int) -> list[int]:
        """Return the right sources of a question."""
        return sorted({s for q, s in self.pairs if q == question})

    def splits(self, pair: int) -> list[str]:
        """Return the splits that a pair is in."""
        return [name for name, members in self.oracle.splits.items() if pair in members]

    def evaluation_only(self, source: int) -> bool:
        """Return whether a source is right in val or test, and nowhere in train."""
        where = [self.splits(p) for p, (_, s) in enumerate(self.pairs) if s == source]
        used = {split for splits in where for split in splits}
        return bool(used) and "train" not in used

    def flags(self, pair: int, negative: int) -> list[str]:
        """Return what is to be said of a negative of a pair."""
        question, own = self.pairs[pair]
        rights = self.rights(question)
        p = min(self.similarity(question, right) for right in rights)
        flags = []
        if negative == own:
            flags.append("own_source")
        elif negative in rights:
            flags.append("right_source")
        elif any(self.same(negative, right) for right in rights):
            flags.append("right_by_content")
        elif self.similarity(question, negative) > p - MARGIN * abs(p):
            flags.append("margin_false_negative")
        if "train" in self.splits(pair) and self.evaluation_only(negative):
            flags.append("evaluation_only")
        return flags

    def steering(self, pair: int, variant: int) -> list[float]:
        """Return the steering of a pair."""
        if VARIANTS[variant] == "zero":
            return [0.0] * self.oracle.config["embedding_dim"]
        return self.vector(STEERING_FILES[variant], pair)

    def rank(self, pair: int, variant: int) -> int:
        """Return the place of the right source for a model that predicts question + steering."""
        question, own = self.pairs[pair]
        asked = self.vector("question_embs", question)
        predicted = [a + b for a, b in zip(asked, self.steering(pair, variant), strict=True)]
        near = cosine(predicted, self.vector("source_embs", own))
        negatives = self.oracle.hard_negatives[pair]
        return 1 + sum(cosine(predicted, self.vector("source_embs", n)) >= near for n in negatives)
