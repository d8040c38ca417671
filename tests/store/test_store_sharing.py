"""One store, many processes: whole while it is converted again, and shared, not copied."""

import json
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

from converters import convert
from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.errors import MissingFileError, StoreChangedError
from jasper_mmap.rules.schema import ARTIFACTS, STORED
from jasper_mmap.store.folder import Store
from jasper_mmap.store.tables import table_tensor
from tests.damage import edit_manifest
from tools.demo.folder import make_builder_folder

ROOT = Path(__file__).parents[2]


# Reconversion


def test_open_during_reconversion_is_one_store_or_an_error(tmp_path: Path) -> None:
    """Of two contents of the same shapes, converted in turn, an opener sees all of one."""
    folders = []
    for number in (1, 2):
        folder = make_builder_folder(tmp_path / f"b{number}", seed=number, n_pairs=40, dim=4)
        for path in folder.glob("*.pt"):
            table = torch.load(path, weights_only=True)
            if isinstance(table, torch.Tensor) and table.is_floating_point():
                torch.save(torch.full_like(table, number / 4), path)
        folders.append(folder)
    (folders[1] / "config.json").write_text((folders[0] / "config.json").read_text())
    for path in folders[0].glob("*.pt"):
        if path.name.startswith(("pair_i", "pair_c", "pair_k", "hard", "neg", "t", "val")):
            shutil.copy2(path, folders[1])
    store = tmp_path / "store"
    convert(folders[0], store)
    done = threading.Event()

    def convert_in_turn() -> None:
        try:
            for turn in range(8):
                convert(folders[(turn + 1) % 2], store)
        finally:
            done.set()

    converter = threading.Thread(target=convert_in_turn)
    converter.start()
    contents, refused = [], 0
    while not done.is_set():
        try:
            opened = Store(store)
        except (StoreChangedError, MissingFileError):
            refused += 1
            continue
        floats = [table_tensor(opened.tables[a.name]) for a in STORED if a.kind == "float"]
        contents.append({float(table.min()) for table in floats if table.numel()})
    converter.join()
    assert all(len(values) == 1 for values in contents)
    assert {value for values in contents for value in values} == {0.25, 0.5}


def test_open_store_outlives_reconversion_and_removal(store: Path, tmp_path: Path) -> None:
    """What was opened stays what it was when its files are replaced or removed."""
    opened = Store(store)
    before = table_tensor(opened.tables["source_embs"]).clone()
    convert(make_builder_folder(tmp_path / "other", seed=9, n_pairs=300, dim=32), store)
    shutil.rmtree(store)
    assert torch.equal(table_tensor(opened.tables["source_embs"]), before)


# Sharing


def test_in_place_write_reaches_neither_file_nor_another_process(store: Path) -> None:
    """Writing to every table works, in the process that does it alone."""
    before = {path.name: path.read_bytes() for path in store.glob("*.safetensors")}
    opened = Store(store)

    def write_to_all() -> None:
        for table in opened.tables.values():
            tensor = table_tensor(table)
            tensor.zero_()
            assert not tensor.any()

    child = multiprocessing.get_context("fork").Process(target=write_to_all)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert table_tensor(opened.tables["source_embs"]).any()
    assert {path.name: path.read_bytes() for path in store.glob("*.safetensors")} == before


def test_links_are_followed(store: Path, tmp_path: Path) -> None:
    """A model hub's cache is a folder of links."""
    linked = tmp_path / "linked"
    shutil.copytree(store, linked, copy_function=lambda a, b: Path(b).symlink_to(a))
    JASPERSteeringDataset(linked, "train", validate="full").close()


READ_ONLY = """
import sys
from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.negatives.renewal import verify_store
with JASPERSteeringDataset(sys.argv[1], "train") as dataset:
    assert dataset[0]["question_emb"].shape == (32,)
    assert dataset.reload_negatives() == 1
assert len(list(create_loader(sys.argv[1], "val", 8, num_workers=1)))
report = verify_store(sys.argv[1])
assert report.ok, report.problems
print(len(report.renewed), report.notes)
"""


def test_read_only_store_of_the_first_version_needs_no_conversion(
    demo_folder: Path, tmp_path: Path
) -> None:
    """Its manifest lacks what this version notes, but there is nothing that could be written."""
    built = Path(shutil.copytree(demo_folder, tmp_path / "built"))
    convert(built)
    added = ("config_sha256", "beyond_float32", "embeddings_dtype")
    edit_manifest(built, lambda m: [m.pop(key, None) for key in added])
    mounted = f"mount --bind {built} {built} && mount -o remount,bind,ro {built}"
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    command = f"{mounted} && exec {sys.executable} -W ignore -m converters {built}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*unshare, command], capture_output=True, text=True, env=environment, check=False
    )
    if "mount" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "0 of 17 artifacts written" in done.stdout


def test_read_only_mount_serves_and_verifies(store: Path, tmp_path: Path) -> None:
    """Nothing is written for reading; stale stamps are told and left."""
    os.utime(store / "source_embs.safetensors", ns=(1, 1))
    script = tmp_path / "script.py"
    script.write_text(READ_ONLY)
    mounted = f"mount --bind {store} {store} && mount -o remount,bind,ro {store}"
    refused = f"{mounted} && ! touch {store}/x 2>/dev/null"
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    probe = subprocess.run([*unshare, refused], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(
        [*unshare, f"{mounted} && exec {sys.executable} {script} {store}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 (")
    assert "could not be renewed" in done.stdout


def grow_sparsely(store: Path, name: str, rows: int) -> int:
    """Give a table `rows` rows of zeros without writing them; return the bytes of its file."""
    path = store / f"{name}.safetensors"
    width = load_file(path)[name].shape[1]
    end = rows * width * 4
    header: dict[str, Any] = {
        name: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, end]}
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    edit_manifest(
        store,
        lambda m: m["artifacts"][name].update(
            shape=[rows, width], bytes=path.stat().st_size, mtime_ns=path.stat().st_mtime_ns
        ),
    )
    return path.stat().st_size


def test_file_larger_than_memory_opens_and_serves(store: Path) -> None:
    """A 60 GB table is opened by its header alone, and its last row can be read and written."""
    try:
        size = grow_sparsely(store, "source_embs", 60 * 2**30 // (32 * 4))
    except OSError as error:
        pytest.skip(f"no sparse files of that size here: {error}")
    assert size > 60 * 2**30
    with JASPERSteeringDataset(store, "train") as dataset:
        last = dataset.source_embs[-1]
        assert not last.any()
        last.fill_(1.0)
        assert dataset.source_embs[-1].sum() == 32
        dataset.force_steering("zero")
        assert not dataset[0]["target_source_emb"].any()
        assert dataset.memory_usage_mb > 60 * 1024
    assert size > mmap.PAGESIZE * (store / "source_embs.safetensors").stat().st_blocks


def test_a_table_has_a_storage_of_its_own(demo_store: Path) -> None:
    """To save or pickle one takes it alone, although batches read many of them as one."""
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        for name in ARTIFACTS:
            table = getattr(dataset, name)
            if isinstance(table, torch.Tensor):
                assert table.untyped_storage().nbytes() == table.nbytes, name


def test_dataset_holds_few_descriptors(demo_store: Path) -> None:
    """Its control words and the generation in service; the three splits no more."""

    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    with JASPERSteeringDataset(demo_store, "train") as dataset:
        dataset[0]
        assert len(dataset.pair_keyword_ids[0]) >= 0
        assert held() - before <= 3
    del dataset
    splits = JASPERSteeringDataset.create_combined_splits(demo_store)
    for split in splits.values():
        split[0]
    assert held() - before <= 3
    for split in splits.values():
        split.close()
    del splits, split
    assert held() == before


class Nothing(Dataset[torch.Tensor]):
    """A dataset that takes no memory."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(1)


def private_bytes_of_workers(loader: Any) -> int:
    """Return the most that a worker has for itself after two passes: no other process has it."""
    before = {child.pid for child in multiprocessing.active_children()}
    for _ in range(2):
        for _batch in loader:
            pass
    private = []
    for child in multiprocessing.active_children():
        if child.pid not in before:
            lines = Path(f"/proc/{child.pid}/smaps_rollup").read_text().splitlines()
            numbers = [int(x.split()[1]) for x in lines if x.startswith(("Private_C", "Private_D"))]
            private.append(sum(numbers) << 10)
    assert len(private) == 2
    return max(private)


def test_workers_share_the_tables_instead_of_copying_them(tmp_path: Path) -> None:
    """What each of two workers has for itself after reading all is that of a worker of nothing,
    give or take a small part of the tables."""
    folder = make_builder_folder(tmp_path / "b", seed=1, n_pairs=3000, dim=1024)
    convert(folder, tmp_path / "s")
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}
    nothing: DataLoader[Any] = DataLoader(Nothing(), persistent_workers=True, **options)
    floor = private_bytes_of_workers(nothing)
    del nothing
    # Few slots: those that the trainer has not looked at count as a worker's own.
    options["prefetch_factor"] = 2
    loader = create_loader(tmp_path / "s", "train", 32, pin_memory=False, **options)
    tables = loader.dataset_obj.memory_usage_mb * 2**20
    assert tables > 50 << 20
    assert private_bytes_of_workers(loader) - floor < tables / 5
    del loader
