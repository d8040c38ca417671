"""The ways to hand a loader or a dataset to a tool, and the cells of the matrix."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from tools.frameworks.leg import Distributed

WORLDS = (1, 2)
DISTRIBUTED: tuple[Distributed, ...] = (False, True, "auto")
Serves = Literal["all", "filled", "evaluation", "same batches"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train: `train` of a module in this folder, called with `options`."""

    name: str
    what: str
    """What the user writes."""
    adapter: str
    package: str = ""
    """The package that it needs, as it is imported; "" for torch alone."""
    options: dict[str, Any] = field(default_factory=dict)
    serves: Serves = "all"
    """What an epoch should give: all pairs once (of train all but fewer than a step), the same
    "filled" up to whole steps with repeated pairs, the pairs of val, or the same few batches."""
    drop_last: bool | None = None
    takes_loader: bool = True
    """False: it makes its own loader over our dataset."""
    shards: bool = True
    """Whether the tool divides a loader that is not distributed among the ranks."""
    torchrun: bool = True
    """Whether several ranks are started by torchrun; False: by the tool itself."""

    @property
    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.package) and find_spec(self.package) is None


def _accelerate(
    name: str,
    what: str,
    *,
    serves: Serves = "all",
    drop_last: bool | None = None,
    shards: bool = True,
    **options: Any,
) -> Way:
    return Way(
        name=name,
        what=what,
        adapter="accelerate_loop",
        package="accelerate",
        options=options,
        serves=serves,
        drop_last=drop_last,
        shards=shards,
    )


_ALL = (
    Way(name="torchrun", what="a loop of your own", adapter="own_loop", shards=False),
    Way(
        name="lightning-hook",
        what="`train_dataloader()` of a module or DataModule",
        adapter="lightning_fit",
        package="lightning",
        options={"hook": True},
    ),
    Way(
        name="lightning-direct",
        what="`trainer.fit(model, loader)`",
        adapter="lightning_fit",
        package="lightning",
    ),
    Way(
        name="lightning-predict",
        what="`trainer.predict(model, loader)`",
        adapter="lightning_fit",
        package="lightning",
        options={"predicts": True},
        serves="evaluation",
    ),
    Way(
        name="lightning-overfit",
        what="`Trainer(overfit_batches=2)`",
        adapter="lightning_fit",
        package="lightning",
        options={"overfit_batches": 2},
        serves="same batches",
    ),
    Way(
        name="fabric",
        what="`fabric.setup_dataloaders(loader)`",
        adapter="fabric_loop",
        package="lightning",
    ),
    _accelerate("accelerate", "`accelerator.prepare(loader)`"),
    _accelerate("accelerate-split", "the same, `split_batches=True`", split_batches=True),
    _accelerate("accelerate-dispatch", "the same, `dispatch_batches=True`", dispatch_batches=True),
    _accelerate("accelerate-even", "the same, `drop_last=False`", drop_last=False, serves="filled"),
    _accelerate(
        "accelerate-uneven",
        "the same, `even_batches=False`",
        drop_last=False,
        even_batches=False,
    ),
    _accelerate(
        "accelerate-seedable", "the same, `use_seedable_sampler=True`", use_seedable_sampler=True
    ),
    _accelerate(
        "accelerate-stateful",
        "the same, `use_stateful_dataloader=True`",
        use_stateful_dataloader=True,
    ),
    _accelerate(
        "accelerate-unprepared", "a loader that is not prepared", shards=False, prepares=False
    ),
    Way(
        name="trainer-dataset",
        what="`Trainer(train_dataset=dataset)`",
        adapter="transformers_trainer",
        package="transformers",
        takes_loader=False,
    ),
    Way(
        name="trainer-callback",
        what="the same, and a callback that calls `set_epoch`",
        adapter="transformers_trainer",
        package="transformers",
        options={"moves": True},
        takes_loader=False,
    ),
    Way(
        name="trainer-loader",
        what="`get_train_dataloader()` returns a loader",
        adapter="transformers_trainer",
        package="transformers",
        options={"hook": True},
        shards=False,
    ),
    Way(
        name="ray",
        what="`ray.train.torch.prepare_data_loader(loader)`",
        adapter="ray_loop",
        package="ray",
        torchrun=False,
    ),
    Way(
        name="ray-unprepared",
        what="a loader that is not prepared",
        adapter="ray_loop",
        package="ray",
        options={"prepares": False},
        shards=False,
        torchrun=False,
    ),
)
WAYS = {way.name: way for way in _ALL}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way with a number of processes and a value of `distributed`."""

    way: Way
    world: int
    distributed: Distributed

    @property
    def divided(self) -> bool:
        """Whether each rank should get a part: nothing was divided where nobody was asked to."""
        return self.way.shards or self.distributed is not False or self.world == 1

    def __str__(self) -> str:
        return f"{self.way.name}, {self.world} processes, distributed={self.distributed!r}"


def cells(ways: list[Way], worlds: tuple[int, ...]) -> Iterator[Cell]:
    """Yield the cells of these ways; one without a loader has no `distributed`."""
    for way in ways:
        for world in worlds:
            for distributed in DISTRIBUTED if way.takes_loader else (False,):
                yield Cell(way=way, world=world, distributed=distributed)
