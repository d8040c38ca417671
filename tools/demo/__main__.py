"""Run `python -m tools.demo [DIR]` to see the whole package work: convert, verify, train, evaluate.

Without DIR a small synthetic builder's folder is made first. A two-layer predictor then trains on
batches of two workers; half-way another process publishes new hard negatives (those of
`--new-negatives`, on synthetic data re-mined ones), which the running loader adopts. The exit
status is 1 if the folder does not convert, is not sound or gives a nonfinite loss, and on synthetic
data unless the loss falls and retrieval with each steering is far above chance.

Shape letters: `B` batch, `D` embedding_dim, `N` n_neg.
"""

import math
import tempfile
import time
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from converters import convert
from jasper_mmap import (
    Batch,
    JASPERDataLoader,
    JASPERSteeringDataset,
    create_loader,
    publish_negatives,
    set_epoch,
    validate_first_batch,
)
from jasper_mmap.console import PATH, Command, debug_option, echo, run
from jasper_mmap.errors import FURTHER, JasperError
from jasper_mmap.negatives.renewal import verify_store
from jasper_mmap.printable import size
from jasper_mmap.rules.names import VARIANTS, Variant
from jasper_mmap.rules.schema import NEGATIVES
from jasper_mmap.store.lint import MEANING
from tools.demo.folder import make_builder_folder, remine_negatives
from tools.demo.results import (
    Epoch,
    Retrieval,
    no_numbers,
    print_retrieval,
    print_training,
    shortcomings,
)

BATCH_SIZE = 64
HIDDEN = 256
EVALUATION_BATCH = 256
LEARNING_RATE = 3e-3
TEMPERATURE = 0.05
ADOPTION_TIMEOUT_S = 30.0


class Predictor(nn.Module):
    """Predicts the normalised source embedding `[B,D]` from question and steering `[B,D]`."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = _linear(2 * dim, HIDDEN, generator)
        self.outer = _linear(HIDDEN, dim, generator)

    def forward(self, question: Tensor, steering: Tensor) -> Tensor:
        """Return the prediction `[B,D]`, of length 1, for questions and steering `[B,D]`."""
        inner = nn.functional.gelu(self.inner(torch.cat([question, steering], dim=1)))
        return normalize(self.outer(inner), dim=1)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def similarities(predictor: Predictor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the prediction `[B,D]` and its cosine `[B,1+N]` to the target, then each negative."""
    predicted = predictor(batch["question_emb"], batch["steering"])
    candidates = torch.cat([batch["target_source_emb"][:, None], batch["negative_embs"]], dim=1)
    return predicted, torch.einsum("bd,bnd->bn", predicted, normalize(candidates, dim=2))


def info_nce(predictor: Predictor, batch: Batch) -> Tensor:
    """Return the loss of classifying each target against its negatives and the other targets."""
    predicted, own = similarities(predictor, batch)
    others = predicted @ normalize(batch["target_source_emb"], dim=1).T
    others = others.masked_fill(torch.eye(len(others), dtype=torch.bool), -torch.inf)
    scores = torch.cat([own, others], dim=1) / TEMPERATURE
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))


def train_epoch(
    predictor: Predictor, optimiser: torch.optim.Optimizer, loader: Iterable[Batch]
) -> float:
    """Take one step per batch; return the mean loss."""
    losses = []
    for batch in loader:
        loss = info_nce(predictor, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    return math.fsum(losses) / len(losses)


def train(
    store: Path, epochs: int, batch_size: int, new_negatives: Path | None
) -> tuple[Predictor, list[Epoch]]:
    """Train for `epochs`; after the middle one another process publishes `new_negatives`."""
    loader = create_loader(
        store, "train", batch_size, num_workers=2, drop_last=False, watch=new_negatives is not None
    )
    dataset = loader.dataset_obj
    validate_first_batch(loader)
    predictor = Predictor(dataset.embedding_dim, torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=LEARNING_RATE)
    done = []
    for number in range(epochs):
        set_epoch(loader, number)
        began = time.perf_counter()
        loss = train_epoch(predictor, optimiser, loader)
        done.append(
            Epoch(
                number=number,
                zero_share=dataset.steering_probs["zero"],
                generation=dataset.generation,
                loss=loss,
                seconds=time.perf_counter() - began,
            )
        )
        if new_negatives is not None and number == (epochs - 1) // 2:
            publish_meanwhile(store, new_negatives)
            wait_for_adoption(dataset, after=done[-1].generation)
    return predictor, done


def publish_meanwhile(store: Path, folder: Path) -> None:
    """Publish the negatives in `folder` from another process, as a mining job does."""
    files = [folder / artifact.source for artifact in NEGATIVES]
    publisher = get_context("spawn").Process(
        target=publish_negatives, args=(store, *files), kwargs={"note": "tools.demo"}
    )
    publisher.start()
    publisher.join()
    if publisher.exitcode:
        raise JasperError(f"{folder}: its negatives were not published; see the error above.")


def wait_for_adoption(dataset: JASPERSteeringDataset, *, after: int) -> None:
    """Return when `dataset` serves a generation newer than `after`."""
    deadline_s = time.monotonic() + ADOPTION_TIMEOUT_S
    while dataset.generation <= after:
        if time.monotonic() > deadline_s:
            raise JasperError(f"generation {after + 1} was not adopted in {ADOPTION_TIMEOUT_S} s.")
        time.sleep(0.05)


def held_out_loader(store: Path) -> JASPERDataLoader | None:
    """Return a loader of val, or of test if val is empty; None if both are."""
    for split in ("val", "test"):
        loader = create_loader(store, split, EVALUATION_BATCH)
        if len(loader):
            return loader
    return None


@torch.no_grad()
def evaluate(predictor: Predictor, loader: JASPERDataLoader, variant: Variant) -> Retrieval:
    """Rank the targets of a split with every pair steered by `variant`."""
    loader.dataset_obj.force_steering(variant)
    ranks = []
    for batch in loader:
        _, scores = similarities(predictor, batch)
        ranks.append(1 + (scores[:, 1:] >= scores[:, :1]).sum(dim=1))
    rank = torch.cat(ranks).double()
    return Retrieval(accuracy=(rank == 1).double().mean().item(), mean_rank=rank.mean().item())


def demonstrate(
    source: Path | None,
    new_negatives: Path | None,
    store: Path,
    scratch: Path,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[str]:
    """Run all steps, with temporary files in `scratch`; return the failures.

    If the data of a given folder is hard to learn from, that is reported and not a failure.
    """
    synthetic = source is None
    if source is None:
        source = make_builder_folder(scratch / "builder", seed=seed)
        new_negatives = new_negatives or save_remined(source, scratch / "remined")
    report = convert(source, store)
    echo(f"converted {source} to {store}: {size(report.bytes_written)}")
    for name, count in report.warnings.items():
        if count:
            echo(f"warning: {count} {MEANING[name]}")
    for note in report.notes:
        echo(f"warning: {note}")
    verified = verify_store(store)
    if not verified.ok:
        return [problem.message for problem in verified.problems]
    echo(f"verified {verified.files} files: checksums, shapes, ranges and indices")

    predictor, trained = train(store, epochs, batch_size, new_negatives)
    print_training(trained)
    loader = held_out_loader(store)
    if loader is None:
        echo("val and test are empty, so there is nothing to evaluate on")
        return no_numbers(trained)
    dataset = loader.dataset_obj
    results: dict[str, Retrieval] = {name: evaluate(predictor, loader, name) for name in VARIANTS}
    print_retrieval(results, dataset.split, dataset.n_neg)
    missed = shortcomings(trained, results, dataset.n_neg)
    if synthetic:
        if not missed:
            echo("The loss fell and every steering is far above chance.")
        return missed
    for text in missed:
        echo(f"hard to learn from: {text}")
    return no_numbers(trained)


def save_remined(source: Path, folder: Path) -> Path:
    """Save re-mined negatives of the builder's folder `source` in `folder`; return that."""
    folder.mkdir()
    for artifact, tensor in zip(NEGATIVES, remine_negatives(source, seed=1), strict=True):
        torch.save(tensor, folder / artifact.source)
    return folder


@click.command(cls=Command)
@click.argument("source", metavar="[DIR]", type=PATH, required=False)
@click.option("--new-negatives", type=PATH, help="Folder of new negatives to publish.")
@click.option("--store", type=PATH, help="Folder of the store.  [default: a temporary one]")
@click.option("--epochs", type=click.IntRange(1), default=6, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=BATCH_SIZE, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@debug_option
def command(
    source: Path | None, new_negatives: Path | None, store: Path | None, **settings: int
) -> None:
    """Convert, verify, train on and evaluate the builder's folder DIR.

    Without DIR a small synthetic folder is made, on which the loss must fall.
    """
    with tempfile.TemporaryDirectory(prefix="jasper-demo-") as folder:
        scratch = Path(folder)
        failed = demonstrate(source, new_negatives, store or scratch / "store", scratch, **settings)
    if failed:
        raise JasperError(FURTHER.join(failed))


if __name__ == "__main__":
    run(command)
