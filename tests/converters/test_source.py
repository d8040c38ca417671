"""What the converter reads and computes, row by row once more."""

import math
from pathlib import Path

import pytest
import torch

from converters.source import cosine_distance, derive, derived_stamp
from jasper_mmap.rules.schema import ARTIFACTS
from tests.converting import load


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cosine_distance_is_that_of_each_row(dtype: torch.dtype) -> None:
    """In float64 whatever comes in; 1 where a vector is zero; 0 and 2 at the ends."""
    draw = torch.Generator().manual_seed(3)
    a, b = (torch.randn(40, 7, generator=draw).to(dtype) for _ in range(2))
    a[0] = b[1] = 0.0
    a[2], a[3] = b[2] * 2, b[3] * -2
    found = cosine_distance(a, b)
    assert found.dtype == torch.float64
    for x, y, distance in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        norms = math.sqrt(math.fsum(v * v for v in x)) * math.sqrt(math.fsum(v * v for v in y))
        cosine = math.fsum(v * w for v, w in zip(x, y, strict=True)) / norms if norms else 0.0
        assert math.isclose(distance, 1.0 - cosine, abs_tol=1e-12)
    assert found[2:4].tolist() == pytest.approx([0.0, 2.0])
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 2.0


def test_derived_distances_are_those_of_question_and_centroid(demo_folder: Path) -> None:
    """Of the pair's own question and cluster, and their files' stamps are kept."""
    (part,) = derive(ARTIFACTS["centroid_distances"], demo_folder).parts.values()
    found = torch.cat(list(part.chunks()))
    questions, centroids = load(demo_folder, "question_embs"), load(demo_folder, "centroid_embs")
    pairs, clusters = load(demo_folder, "pair_index"), load(demo_folder, "pair_cluster_id")
    for row in range(0, len(pairs), 37):
        question = questions[int(pairs[row, 0])].double()
        centroid = centroids[int(clusters[row])].double()
        cosine = torch.nn.functional.cosine_similarity(question, centroid, dim=0)
        assert math.isclose(float(found[row]), 1 - float(cosine), abs_tol=1e-6)
    names = [stamp["name"] for stamp in derived_stamp(demo_folder)["derived_from"]]
    assert names == [
        f"{name}.pt" for name in ("question_embs", "centroid_embs", "pair_index", "pair_cluster_id")
    ]
