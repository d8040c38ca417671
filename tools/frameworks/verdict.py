"""What the records of a cell say, compared with a single process of our own loader."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from typing import Any, Literal

from jasper_mmap import create_loader, set_epoch
from jasper_mmap.rules.names import Split
from tools.frameworks.launch import Records, Result
from tools.frameworks.leg import Plan

Word = Literal["once", "each", "error", "wrong", "failed", "skipped"]
Batches = list[dict[str, Any]]


@dataclass(kw_only=True)
class Verdict:
    """One cell's answer; the counts are those of its worst epoch."""

    way: str
    world: int
    distributed: bool | str
    word: Word
    """`once`: every pair once; `each`: on each rank, as was asked for; `error`: an error of ours;
    `failed`: another error, or no end in time."""
    text: str = ""
    """The error, or what is wrong."""
    once: int = 0
    repeated: int = 0
    missed: int = 0
    epochs: list[int | None] = field(default_factory=list)
    """The curriculum's epoch in each epoch of the tool; None where batches are of several."""
    in_order: bool | None = None
    """Whether the ranks together serve the order of a single process."""
    devices: list[str] = field(default_factory=list)
    resume: str = ""
    """`exact`, or what differs from the uninterrupted run."""
    reload: str = ""
    """Which batch after a reload is the first with the new negatives."""
    speed: float | None = None
    """Samples per second over those of our own loader, in turns in the same process."""


class Expected:
    """What a single process of our own loader serves of a split."""

    def __init__(self, store: str, split: Split, epochs: int) -> None:
        loader = create_loader(store, split, 1, drop_last=False)
        dataset = loader.dataset_obj
        numbers: list[int] = dataset.split_indices.tolist()
        self.pairs = set(numbers)
        self.order: list[list[int]] = []
        self.variants: list[dict[int, int]] = []
        for epoch in range(epochs):
            set_epoch(loader, epoch)
            self.order.append([numbers[position] for position in loader.sampler_obj])
            samples = dataset.__getitems__(list(range(len(dataset))))
            variants = [int(sample["steering_variant"]) for sample in samples]
            self.variants.append(dict(zip(numbers, variants, strict=True)))

    def epoch_of(self, batches: Batches, likely: int) -> int | None:
        """The epoch whose variants all these batches have, `likely` if several have."""
        drawn = [pv for b in batches for pv in zip(b["pairs"], b["variants"], strict=True)]
        fitting = [
            epoch
            for epoch, variants in enumerate(self.variants)
            if all(variants.get(pair) == variant for pair, variant in drawn)
        ]
        return likely if likely in fitting else next(iter(fitting), None)


@cache
def expected(store: str, split: Split, epochs: int) -> Expected:
    """Return what to expect; computed once."""
    return Expected(store, split, epochs)


def judge(result: Result, plans: list[Plan]) -> Verdict:
    """Return the verdict of a cell."""
    cell = result.cell
    verdict = Verdict(
        way=cell.way.name, world=cell.world, distributed=cell.distributed, word="failed"
    )
    by_name = {plan.name: plan for plan in plans}
    whole = result.legs.get("whole", {})
    if failure := _failure(result, whole, cell.world):
        verdict.text = failure["text"]
        verdict.word = "error" if failure["ours"] else "failed"
        return verdict
    plan = by_name["whole"]
    if not cell.divided:
        # What each rank gets must be right by itself.
        for number, record in whole.items():
            _judge_epochs(verdict, replace(plan, world=1), {number: record}, cell.way.serves)
            if verdict.word != "once":
                break
        else:
            verdict.word = "each"
    else:
        _judge_epochs(verdict, plan, whole, cell.way.serves)
    _judge_reload(verdict, result)
    _judge_resume(verdict, result, plan)
    speeds = [record["speed"] for record in result.legs.get("speed", {}).values()]
    if speeds and speeds[0]:
        verdict.speed = speeds[0]["tool"] / speeds[0]["ours"]
    return verdict


def _failure(result: Result, records: Records, world: int) -> dict[str, Any] | None:
    """The error of a leg: one of ours before others; None if every rank came to its end."""
    errors = [r["error"] for r in records.values() if r["error"]]
    errors.sort(key=lambda error: not error["ours"])
    for error in errors:
        return {**error, "text": f"{error['type']}: {error['text']}"}
    if len(records) < world:
        text = "no end in time" if result.timed_out else f"ended early: {result.stderr}"
        return {"text": text, "ours": False}
    return None


def _epochs_in(records: Records) -> list[int]:
    return sorted({b["epoch"] for record in records.values() for b in record["batches"]})


def _batches(records: Records, epoch: int) -> list[Batches]:
    """The batches of an epoch of the tool, of each rank."""
    return [
        [b for b in record["batches"] if b["epoch"] == epoch]
        for _, record in sorted(records.items())
    ]


def _in_turns(ranks: list[Batches]) -> list[tuple[int, int]]:
    """The pairs and variants of the ranks, batch by batch, rank by rank."""
    return [
        pair
        for step in zip_longest(*ranks)
        for batch in step
        if batch is not None
        for pair in zip(batch["pairs"], batch["variants"], strict=True)
    ]


def _judge_epochs(verdict: Verdict, plan: Plan, records: Records, serves: str) -> None:
    should = expected(plan.store, plan.split, plan.epochs + 2)
    step = plan.batch_size * plan.world
    in_order, worst = True, (-1, 0, 0, 0)
    wrong, served_sets, reached = [], [], []
    for epoch in _epochs_in(records):
        ranks = _batches(records, epoch)
        served = [pair for pair, _ in _in_turns(ranks)]
        seen = Counter(served)
        once = sum(count == 1 for count in seen.values())
        repeated, missed = len(served) - len(seen), len(should.pairs - seen.keys())
        worst = max(worst, (repeated + missed, once, repeated, missed))
        in_order &= served[: len(should.pairs)] == should.order[epoch][: len(served)]
        reached.append(should.epoch_of([b for r in ranks for b in r], epoch))
        served_sets.append(seen.keys())
    verdict.epochs = reached
    _, verdict.once, verdict.repeated, verdict.missed = worst
    verdict.in_order = None if serves == "same batches" else in_order
    verdict.devices = sorted({b["device"] for r in records.values() for b in r["batches"]})
    most_missed = 0 if plan.split != "train" or plan.drop_last is False else step - 1
    if serves == "same batches":
        if verdict.repeated or any(each != served_sets[0] for each in served_sets):
            wrong.append("not the same batches in each epoch")
    else:
        if verdict.repeated > (step - 1 if serves == "filled" else 0):
            wrong.append(f"{verdict.repeated} repeated")
        if verdict.missed > most_missed:
            wrong.append(f"{verdict.missed} of {len(should.pairs)} missed")
    if verdict.epochs != list(range(plan.epochs)):
        wrong.append(f"epochs {_words(verdict.epochs)}")
    verdict.text = ", ".join(wrong)
    verdict.word = "wrong" if wrong else "once"


def _words(epochs: list[int | None]) -> str:
    return " ".join("mixed" if epoch is None else str(epoch) for epoch in epochs)


def _judge_reload(verdict: Verdict, result: Result) -> None:
    records = result.legs.get("reload", {})
    if failure := _failure(result, records, verdict.world if records else 0):
        verdict.reload = failure["text"]
        return
    later = set()
    for record in records.values():
        after = [b["generation"] for b in record["batches"]][record["published_at"] or 0 :]
        later.add(after.index(2) + 1 if 2 in after else None)
    if records:
        numbers = sorted(later, key=str)
        verdict.reload = ", ".join("never" if n is None else str(n) for n in numbers)


def _judge_resume(verdict: Verdict, result: Result, plan: Plan) -> None:
    whole, first, second = (result.legs.get(name, {}) for name in ("whole", "first", "second"))
    for leg in (first, second):
        if failure := _failure(result, leg, verdict.world if first else 0):
            verdict.resume = failure["text"]
            return
    if not first:
        return
    differs = []
    for epoch in range(plan.epochs):
        parts = [_in_turns(_batches(leg, epoch)) for leg in (first, second)]
        if parts[0] + parts[1] == _in_turns(_batches(whole, epoch)):
            continue
        seen = Counter(pair for part in parts for pair, _ in part)
        repeated = sum(seen.values()) - len(seen)
        missed = len({p for p, _ in _in_turns(_batches(whole, epoch))} - seen.keys())
        other = "another order or other variants" if not repeated and not missed else ""
        counts = f"{repeated} repeated, {missed} missed"
        differs.append(f"epoch {epoch}: {other or counts}")
    verdict.resume = "; ".join(differs) or "exact"


def skipped(result: Result) -> Verdict:
    """Return the verdict of a cell whose package is missing."""
    cell = result.cell
    text = f"{cell.way.package} is not installed"
    return Verdict(
        way=cell.way.name,
        world=cell.world,
        distributed=cell.distributed,
        word="skipped",
        text=text,
    )
