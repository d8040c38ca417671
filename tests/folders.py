"""Builder's folders, each untidy in its own way; `SYNTHETIC` holds their arguments."""

from pathlib import Path
from typing import Any

import torch

from tools.demo.folder import make_builder_folder

_ONLY_ZERO = {"zero": 1.0, "centroid": 0.0, "keyword": 0.0, "residual": 0.0}
_NO_KEYWORD = {"zero": 0.25, "centroid": 0.5, "keyword": 0.0, "residual": 0.25}
_LONG_CURRICULUM = {"zero_prob_start": 0.9, "zero_prob_end": 0.05, "epochs_total": 3}

SYNTHETIC: dict[str, dict[str, Any]] = {
    "plain": {"n_pairs": 300, "dim": 16},
    "seven_pairs": {"n_pairs": 7, "dim": 5, "n_neg": 2, "n_clusters": 2},
    "one_negative": {
        "n_pairs": 120,
        "dim": 33,
        "n_neg": 1,
        "config_changes": {"steering_probabilities": _ONLY_ZERO},
    },
    "float16_views": {
        "n_pairs": 200,
        "dim": 24,
        "float_dtype": torch.float16,
        "int_dtype": torch.int16,
        "untidy": frozenset({"views"}),
        "config_changes": {"curriculum": _LONG_CURRICULUM},
    },
    "bfloat16_noncontiguous": {
        "n_pairs": 180,
        "dim": 31,
        "float_dtype": torch.bfloat16,
        "int_dtype": torch.int32,
        "untidy": frozenset({"noncontiguous"}),
    },
    "float64_uint16": {
        "n_pairs": 150,
        "dim": 20,
        "n_neg": 5,
        "float_dtype": torch.float64,
        "int_dtype": torch.uint16,
    },
    "uint32_no_distances": {
        "n_pairs": 160,
        "dim": 48,
        "int_dtype": torch.uint32,
        "with_distances": False,
        "config_changes": {"steering_probabilities": _NO_KEYWORD},
    },
    "uint8": {"n_pairs": 90, "dim": 12, "n_neg": 3, "n_clusters": 4, "int_dtype": torch.uint8},
    "no_curriculum_empty_val": {
        "n_pairs": 140,
        "dim": 16,
        "curriculum": False,
        "untidy": frozenset({"empty_val"}),
    },
    "bfloat16_no_distances_zero_vectors": {
        "n_pairs": 110,
        "dim": 40,
        "float_dtype": torch.bfloat16,
        "with_distances": False,
        "untidy": frozenset({"zero_vectors", "empty_test"}),
    },
    "legacy_views": {
        "n_pairs": 130,
        "dim": 9,
        "int_dtype": torch.uint8,
        "untidy": frozenset({"legacy", "views", "noncontiguous", "zero_vectors"}),
    },
    "everything": {
        "n_pairs": 400,
        "dim": 129,
        "n_neg": 17,
        "float_dtype": torch.float64,
        "int_dtype": torch.int16,
        "with_distances": False,
        "curriculum": False,
        "untidy": frozenset({"views", "noncontiguous", "empty_val", "empty_test"}),
        "config_changes": {"steering_probabilities": _NO_KEYWORD},
    },
    "one_dtype_of_its_own": {"n_pairs": 210, "dim": 16, "dtypes": {"question_embs": torch.float16}},
    "dtypes_of_all_kinds": {
        "n_pairs": 170,
        "dim": 22,
        "dtypes": {
            "source_embs": torch.bfloat16,
            "steering_centroid": torch.float64,
            "steering_keyword_weighted": torch.float16,
            "pair_relevance": torch.float64,
            "centroid_distances": torch.float16,
            "pair_index": torch.uint16,
            "negative_tiers": torch.uint8,
            "train_idx": torch.int16,
        },
    },
    "steering_of_its_own": {
        "n_pairs": 64,
        "dim": 7,
        "n_neg": 1,
        "dtypes": dict.fromkeys(
            ("steering_centroid", "steering_keyword_weighted", "steering_residual"), torch.bfloat16
        ),
    },
}
MIXED = tuple(name for name, options in SYNTHETIC.items() if "dtypes" in options)
"""Those whose tables of embeddings cannot be joined to one."""


def make_synthetic(name: str, folder: Path) -> Path:
    """Make the folder of a name; `dtypes` are those of single artifacts."""
    options = dict(SYNTHETIC[name])
    dtypes = options.pop("dtypes", {})
    make_builder_folder(folder, seed=1, **options)
    for artifact, dtype in dtypes.items():
        path = folder / f"{artifact}.pt"
        torch.save(torch.load(path, weights_only=True).to(dtype), path)
    return folder
