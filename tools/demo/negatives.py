"""Hard negatives in four tiers for a synthetic folder: mined in blocks, never a true source.

Shape letters: `D` embedding_dim, `N` n_neg, `N_q` questions, `N_s` sources, `N_c` clusters,
`N_p` pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

TIER_SHARES = torch.tensor([3, 7, 10, 12], dtype=torch.float64) / 12  # cumulative: 3+4+3+2 of 12
BLOCK_SCORES = 2**20  # 4 MiB a block: stays in the cache, whatever N_p and N_s are
OUT_OF_REACH = -3.0  # below every score: similarity in [-1,1], or a flag plus a chance in [0,1)


def mine_negatives(
    questions: Tensor,
    sources: Tensor,
    centroids: Tensor,
    pair_index: Tensor,
    pair_cluster: Tensor,
    n_neg: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return distinct negatives `[N_p,N]` and their tiers `[N_p,N]`, lowest tier first.

    Tier 1 is in the pair's cluster, 2 in the nearest other cluster, 3 is most similar to the
    question, 4 is random in other clusters and less similar than the mean. If a tier has too few
    candidates (tiny folders), any source that is not an answer fills it.
    """
    answers = _answers(pair_index, len(questions))
    if len(sources) - answers.shape[1] < n_neg:
        raise ValueError(f"{len(sources)} sources are too few for {n_neg} negatives a pair")
    cluster_of = nearest_cluster(sources, centroids)
    likeness = normalize(centroids) @ normalize(centroids).T
    adjacent = likeness.fill_diagonal_(-2).argmax(1)
    counts = (TIER_SHARES * n_neg).round().long().diff(prepend=torch.tensor([0]))

    mined = []
    for rows in torch.split(torch.arange(len(pair_index)), 1 + BLOCK_SCORES // len(sources)):
        question, cluster = pair_index[rows, 0], pair_cluster[rows, None]
        similarity = questions[question] @ sources.T
        chance = torch.rand(similarity.shape, generator=generator)
        inside, beside = cluster_of == cluster, cluster_of == adjacent[cluster]
        distant = (similarity < similarity.mean(1, keepdim=True)) & ~(inside | beside)
        taken, block = answers[question], []
        for flag, count in zip((inside, beside, None, distant), counts.tolist(), strict=True):
            for score in (similarity, chance):
                score.scatter_(1, taken, OUT_OF_REACH)
            score = similarity if flag is None else chance + flag
            taken = score.topk(count).indices
            block.append(taken)
        mined.append(torch.cat(block, 1))
    tiers = torch.arange(1, 5).repeat_interleave(counts)
    return torch.cat(mined), tiers.repeat(len(pair_index), 1)


def nearest_cluster(sources: Tensor, centroids: Tensor) -> Tensor:
    """Return the cluster `[N_s]` of each source, as k-means assigns it."""
    return torch.cdist(sources, centroids).argmin(1)


def _answers(pair_index: Tensor, n_questions: int) -> Tensor:
    """Return the true sources of each question `[N_q, most]`; short rows repeat one."""
    question, source = pair_index[pair_index[:, 0].argsort(stable=True)].unbind(1)
    counts = question.bincount(minlength=n_questions)
    rank = torch.arange(len(question)) - (counts.cumsum(0) - counts)[question]
    answers = torch.zeros(n_questions, int(counts.max()), dtype=torch.int64)
    answers[question] = source[:, None]  # any one of them: what short rows repeat
    answers[question, rank] = source
    return answers
