"""Run `python -m tools.demo.folder DIR` to write a small synthetic builder's folder into DIR.

Every file of the input table is written, the same ones for the same seed. Sources lie in clusters,
several sources answer one question, and a question points near its sources, so a small predictor
learns to retrieve the target. No negative is a true source of its question.

Shape letters: `D` embedding_dim, `N` n_neg, `N_q` questions, `N_s` sources, `N_k` keywords,
`N_c` clusters, `N_p` pairs.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from jasper_mmap.console import PATH, Command, debug_option, echo, run
from tools.demo.negatives import mine_negatives, nearest_cluster

UNTIDY = frozenset({"views", "noncontiguous", "legacy", "empty_val", "empty_test", "zero_vectors"})
KEYWORDS_PER_CLUSTER = 8
WIDENING = (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64)


def make_builder_folder(
    dst: Path,
    *,
    seed: int = 0,
    n_pairs: int = 2000,
    dim: int = 64,
    n_neg: int = 12,
    n_clusters: int = 16,
    float_dtype: torch.dtype = torch.float32,
    int_dtype: torch.dtype = torch.int64,
    curriculum: bool = True,
    with_distances: bool = True,
    untidy: frozenset[str] = frozenset(),
    config_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder and return it; files of an earlier call are replaced.

    A table whose values do not fit `int_dtype` gets the next wider type that holds them.
    `untidy` takes any of UNTIDY: "views" and "noncontiguous" surround the values with poison (NaN
    or the largest integer), "legacy" is torch's pre-zip format, "zero_vectors" zeroes one question
    and one centroid. `config_changes` replaces keys of `config.json`.
    """
    if n_pairs < 3 or n_neg < 1 or dim < 1:
        raise ValueError(f"need n_pairs >= 3, n_neg >= 1, dim >= 1: {n_pairs=}, {n_neg=}, {dim=}")
    if unknown := untidy - UNTIDY:
        raise ValueError(f"unknown untidy options {sorted(unknown)}; known are {sorted(UNTIDY)}")
    generator = torch.Generator().manual_seed(seed)
    n_clusters = max(2, min(n_clusters, n_pairs // 4))
    floats, ints, keyword_ids = _synthesise(n_pairs, dim, n_neg, n_clusters, generator)
    if "zero_vectors" in untidy:
        floats["question_embs"][ints["pair_index"][0, 0]] = 0
        floats["centroid_embs"][ints["pair_cluster_id"][-1]] = 0
    floats = {name: table.to(float_dtype) for name, table in floats.items()}
    if with_distances:
        question = floats["question_embs"].double()[ints["pair_index"][:, 0]]
        centroid = floats["centroid_embs"].double()[ints["pair_cluster_id"]]
        distance = (1 - cosine_similarity(question, centroid)).clamp(0, 2)
        floats["centroid_distances"] = distance.to(float_dtype)
    ints |= _splits(ints["pair_index"][:, 0], untidy, generator)
    ints = {name: table.to(_wide_enough(table, int_dtype)) for name, table in ints.items()}
    config: dict[str, Any] = {
        "embedding_dim": dim,
        "n_neg": n_neg,
        "steering_probabilities": {"zero": 0.1, "centroid": 0.2, "keyword": 0.4, "residual": 0.3},
        "builder": "tools.demo.folder",  # unused keys, as in folders of real builders
        "random_seed": seed,
    }
    if curriculum:
        config["curriculum"] = {"zero_prob_start": 0.5, "zero_prob_end": 0.1, "epochs_total": 10}
    config.update(config_changes or {})

    dst.mkdir(parents=True, exist_ok=True)
    (dst / "centroid_distances.pt").unlink(missing_ok=True)
    tables = {name: _store_untidily(table, untidy) for name, table in (floats | ints).items()}
    for name, value in {**tables, "pair_keyword_ids": keyword_ids}.items():
        zipped = "legacy" not in untidy
        torch.save(value, dst / f"{name}.pt", _use_new_zipfile_serialization=zipped)
    (dst / "config.json").write_text(json.dumps(config, indent=2))
    return dst


def remine_negatives(src: Path, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return another valid (hard_negatives, negative_tiers) pair `[N_p,N]` for a builder's folder.

    Both keep the dtype of the stored tables.
    """

    def load(name: str) -> Tensor:
        tensor: Tensor = torch.load(src / f"{name}.pt", weights_only=True)
        return tensor

    old_negatives, old_tiers = load("hard_negatives"), load("negative_tiers")
    negatives, tiers = mine_negatives(
        load("question_embs").float(),
        load("source_embs").float(),
        load("centroid_embs").float(),
        load("pair_index").long(),
        load("pair_cluster_id").long(),
        old_negatives.shape[1],
        torch.Generator().manual_seed(seed),
    )
    return negatives.to(old_negatives.dtype), tiers.to(old_tiers.dtype)


def _synthesise(
    n_pairs: int, dim: int, n_neg: int, n_clusters: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[list[int]]]:
    """Return the float tables, the integer tables and the keyword ids of each pair."""

    def noise(n: int) -> Tensor:
        return torch.randn(n, dim, generator=generator) / math.sqrt(dim)

    # Every pair starts with its own source; spare sources, which no pair uses, follow, so that each
    # cluster has N sources that are not an answer.
    starts = torch.rand(n_pairs, generator=generator) < 0.6
    starts[:3] = True  # at least three questions, one for each split
    pair_question = starts.cumsum(0) - 1
    first_source = starts.nonzero()[:, 0]
    n_questions, n_spare = len(first_source), n_clusters * n_neg
    question_cluster = torch.randint(n_clusters, (n_questions,), generator=generator)
    spare_cluster = torch.arange(n_spare) % n_clusters
    source_cluster = torch.cat([question_cluster[pair_question], spare_cluster])

    centres = normalize(noise(n_clusters))
    keyword_cluster = torch.arange(n_clusters).repeat_interleave(KEYWORDS_PER_CLUSTER)
    keywords = normalize(0.5 * centres[keyword_cluster] + noise(len(keyword_cluster)))
    uses = torch.rand(n_pairs + n_spare, len(keywords), generator=generator) < 0.25
    uses &= keyword_cluster == source_cluster[:, None]
    topics = torch.cat([noise(n_questions)[pair_question], noise(n_spare)])
    sources = centres[source_cluster] + 0.4 * uses.float() @ keywords + 0.8 * topics
    sources = normalize(sources + 0.3 * noise(len(sources)))
    questions = normalize(sources[first_source] + 0.5 * noise(n_questions))
    centroids = torch.zeros(n_clusters, dim).index_add_(0, source_cluster, sources)
    centroids /= source_cluster.bincount(minlength=n_clusters)[:, None]

    # Some second pairs point to the first source of another question of the cluster instead.
    order = (question_cluster + torch.rand(n_questions, generator=generator)).argsort()
    neighbour = torch.empty_like(order).scatter_(0, order, order.roll(-1))
    lends = question_cluster[neighbour] == question_cluster
    lends &= neighbour != torch.arange(n_questions)
    shares = lends[pair_question] & ~starts & starts.roll(1)
    shares &= torch.rand(n_pairs, generator=generator) < 0.3
    pair_source = torch.where(shares, first_source[neighbour[pair_question]], torch.arange(n_pairs))

    # Shuffled, so that no number of a pair, question or source can stand in for another.
    pair_order = torch.randperm(n_pairs, generator=generator)
    source_order = torch.randperm(len(sources), generator=generator)
    sources, uses = sources[source_order], uses[source_order]
    pair_source = source_order.argsort()[pair_source]
    pair_index = torch.stack([pair_question, pair_source], 1)[pair_order]
    pair_cluster = nearest_cluster(sources, centroids)[pair_index[:, 1]]
    negatives, tiers = mine_negatives(
        questions, sources, centroids, pair_index, pair_cluster, n_neg, generator
    )

    question, used = questions[pair_index[:, 0]], uses[pair_index[:, 1]]
    centroid = centroids[pair_cluster]
    to_centroid = normalize(centroid - question)
    weights = used * (question @ keywords.T).clamp(min=0.01)
    by_keyword = torch.where(used.any(1, keepdim=True), normalize(weights @ keywords), to_centroid)
    floats = {
        "question_embs": questions,
        "source_embs": sources,
        "keyword_embs": keywords,
        "centroid_embs": centroids,
        "pair_relevance": cosine_similarity(question, sources[pair_index[:, 1]]).clamp(0, 1),
        "steering_centroid": to_centroid,
        "steering_keyword_weighted": by_keyword,
        "steering_residual": question - centroid,
    }
    ints = {
        "pair_index": pair_index,
        "pair_cluster_id": pair_cluster,
        "hard_negatives": negatives,
        "negative_tiers": tiers,
    }
    keyword_ids = torch.split(used.nonzero()[:, 1], used.sum(1).tolist())
    return floats, ints, [ids.tolist() for ids in keyword_ids]


def _splits(
    question: Tensor, untidy: frozenset[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the sorted pair numbers of each split; all pairs of a question share one split."""
    n_questions = int(question.max()) + 1
    n_val = 0 if "empty_val" in untidy else max(1, n_questions // 10)
    n_test = 0 if "empty_test" in untidy else max(1, n_questions // 10)
    rank = torch.randperm(n_questions, generator=generator)[question]
    in_val, in_test = rank < n_val, (rank >= n_val) & (rank < n_val + n_test)
    masks = {"train": ~in_val & ~in_test, "val": in_val, "test": in_test}
    return {f"{split}_idx": mask.nonzero()[:, 0] for split, mask in masks.items()}


def _wide_enough(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or the narrowest one that holds the tensor where `dtype` does not."""
    largest = int(tensor.max()) if tensor.numel() else 0
    return next(d for d in (dtype, *WIDENING) if torch.iinfo(d).max >= largest)


def _store_untidily(tensor: Tensor, untidy: frozenset[str]) -> Tensor:
    """Return equal values in a storage that also holds poison, as `untidy` asks."""
    floating = tensor.dtype.is_floating_point
    poison = torch.nan if floating else torch.iinfo(tensor.dtype).max
    flip = "noncontiguous" in untidy
    base = tensor.T if flip and tensor.ndim == 2 else tensor
    if flip and tensor.ndim == 1:
        base = torch.stack([tensor, torch.full_like(tensor, poison)], 1)
    base = base.contiguous()
    if "views" in untidy:
        edge = torch.full((5,), poison, dtype=base.dtype)
        base = torch.cat([edge, base.flatten(), edge])[5:-5].view(base.shape)
    if not flip:
        return base
    return base.T if tensor.ndim == 2 else base[:, 0]


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--pairs", type=click.IntRange(3), default=2000, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=64, show_default=True)
@click.option("--neg", type=click.IntRange(1), default=12, show_default=True)
@debug_option
def command(folder: Path, *, seed: int, pairs: int, dim: int, neg: int) -> None:
    """Write a synthetic builder's folder."""
    make_builder_folder(folder, seed=seed, n_pairs=pairs, dim=dim, n_neg=neg)
    echo(f"{folder}: {pairs} pairs, D={dim}, N={neg}, seed {seed}")


if __name__ == "__main__":
    run(command)
