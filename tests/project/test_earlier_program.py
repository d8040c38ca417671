"""A training program written for the earlier dataset runs with its import changed, and no more."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.publishing import IMPORTING

# As that dataset's documentation shows it; only the import is another one.
PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader
from jasper_mmap import JASPERSteeringDataset, create_loader, validate_first_batch

folder = sys.argv[1]

def train(loader, epochs):
    model = torch.nn.Linear(2 * loader.dataset_obj.embedding_dim, loader.dataset_obj.embedding_dim)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for epoch in epochs:
        if loader.sampler_obj is not None:
            loader.sampler_obj.set_epoch(epoch)
        loader.dataset_obj.set_epoch(epoch)
        variants = [0, 0, 0, 0]
        for batch in loader:
            inputs = torch.cat([batch["question_emb"], batch["steering"]], dim=-1)
            wanted = batch["target_source_emb"]
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for variant in batch["steering_variant"].tolist():
                variants[variant] += 1
        assert torch.isfinite(loss)
        seen.append((epoch, loader.dataset_obj.steering_probs["zero"], variants))
    return seen

if __name__ == "__main__":
    loader = create_loader(folder, "train", batch_size=32, num_workers=2, epoch=0)
    assert validate_first_batch(loader)
    seen = train(loader, range(3))
    pairs = len(loader) * 32
    for epoch, zero, variants in seen:
        assert set(loader.dataset_obj.steering_probs) >= {"zero", "centroid", "residual"}
        assert sum(variants) == pairs
        assert abs(variants[0] / pairs - zero) < 0.05
    assert [zero for _, zero, _ in seen] == sorted((zero for _, zero, _ in seen), reverse=True)

    # Hard negatives are mined anew: the file is overwritten, the tiers stay as they are.
    path = f"{folder}/hard_negatives.pt"
    mined = torch.load(path).roll(1, dims=0)
    before = loader.dataset_obj.hard_negatives.clone()
    torch.save(mined, path)
    loader.dataset_obj.reload_negatives()
    assert torch.equal(loader.dataset_obj.hard_negatives, mined)
    assert not torch.equal(before, mined)
    sources = loader.dataset_obj.source_embs
    served = {tuple(row.flatten()[:8].tolist()) for b in loader for row in b["negative_embs"]}
    assert served <= {tuple(sources[row].flatten()[:8].tolist()) for row in mined}

    # Evaluation: the splits share their tables, torch's own loader serves them.
    splits = JASPERSteeringDataset.create_combined_splits(folder, epoch=2)
    assert set(splits) == {"train", "val", "test"}
    for name, number in (("zero", 0), ("centroid", 1), ("keyword", 2), ("residual", 3)):
        splits["val"].force_steering(name)
        rows = 0
        for batch in DataLoader(splits["val"], batch_size=16, shuffle=False):
            assert batch["steering_variant"].unique().tolist() == [number]
            assert batch["steering"].eq(0).all() == (number == 0)
            rows += len(batch["relevance"])
        assert rows == len(splits["val"])
    splits["val"].force_steering(None)
    sample = splits["test"][0]
    assert sample["question_emb"].shape == (splits["test"].embedding_dim,)
    assert sample["negative_embs"].shape == (splits["test"].n_neg, splits["test"].embedding_dim)
    print("trained on", splits["train"].memory_usage_mb > 0)
"""


@pytest.mark.parametrize("curriculum", ["as converted", "builder's default"])
def test_program_of_the_earlier_dataset_runs(
    demo_folder: Path, tmp_path: Path, curriculum: str
) -> None:
    """Training, mining anew, evaluation: as its documentation shows them."""
    folder = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    if curriculum != "as converted":
        config = json.loads((folder / "config.json").read_text())
        config["curriculum"] = {
            "mode": "linear",
            "start_distance": 0.3,
            "end_distance": 0.7,
            "warmup_epochs": 10,
        }
        (folder / "config.json").write_text(json.dumps(config))
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    commands = (["-m", "converters", str(folder)], [str(script), str(folder)])
    for command in commands:
        ran = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=200,
            env=IMPORTING | {"PYTHONWARNINGS": "ignore"},
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "trained on True\n"
