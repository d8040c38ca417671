"""Opening a store: whole or not at all, cheaply, and never at the price of the process."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import convert
from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.errors import (
    ConfigError,
    FormatError,
    IndexRangeError,
    JasperError,
    MissingFileError,
    StoreChangedError,
    UnsafeFileError,
    UsageError,
)
from jasper_mmap.rules.schema import STORED
from jasper_mmap.store.folder import Store
from jasper_mmap.store.manifest import FORMAT_VERSION, STAGING
from jasper_mmap.store.tables import table_tensor
from tests.damage import edit_manifest, rewrite
from tools.demo.folder import make_builder_folder


def test_tables_equal_the_builders_files(any_store: Path, any_folder: Path) -> None:
    """Every stored tensor is the `.pt` file's, dtype and bits."""
    tables = Store(any_store).tables
    for artifact in STORED:
        source = any_folder / artifact.source
        if not source.exists():
            assert artifact.derived
            continue
        want, table = torch.load(source, weights_only=True), tables[artifact.name]
        if artifact.kind == "ragged":
            assert [row.tolist() for row in table] == want
            continue
        found = table_tensor(table)
        assert (found.dtype, found.shape) == (want.dtype, want.shape)
        assert (
            found.numpy(force=True).tobytes() == want.contiguous().numpy().tobytes()
            if (want.dtype != torch.bfloat16)
            else torch.equal(found.view(torch.int16), want.contiguous().view(torch.int16))
        )


# Damage after the conversion is an error at open


@pytest.mark.parametrize("artifact", STORED, ids=lambda a: a.name)
def test_missing_file_is_named(artifact: Any, store: Path) -> None:
    """Whichever file is gone, its name is told; a split's in the words users know."""
    (store / artifact.file).unlink()
    words = "Split file not found" if artifact.split else artifact.file
    with pytest.raises(MissingFileError, match=words):
        Store(store)


@pytest.mark.parametrize("keep", [0, 7, 100, 4096, -1])
@pytest.mark.parametrize("name", ["source_embs", "pair_keyword_ids", "train_idx"])
def test_truncated_file_is_an_error_and_not_a_signal(store: Path, name: str, keep: int) -> None:
    """Wherever a file was cut, also with its time put back, opening says so."""
    path = store / f"{name}.safetensors"
    before = path.stat()
    os.truncate(path, keep if keep >= 0 else before.st_size - 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FormatError, match=path.name):
        Store(store)


def test_truncated_generation_is_an_error_and_not_a_signal(store: Path) -> None:
    """The negatives' file too; the error names a way out."""
    path = store / "negatives" / "000001.safetensors"
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(FormatError, match="publish the negatives again"):
        JASPERSteeringDataset(store, "train")


def test_appended_bytes_are_noticed(store: Path) -> None:
    """A file that grew is not the one that was checked."""
    with (store / "source_embs.safetensors").open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(FormatError, match=r"source_embs\.safetensors"):
        Store(store)


def test_file_of_another_artifact_is_refused(store: Path) -> None:
    """A table of the same shape in the wrong place is told by the name of its tensor."""
    shutil.copy2(store / "steering_residual.safetensors", store / "steering_centroid.safetensors")
    with pytest.raises(FormatError, match="must hold"):
        Store(store)


def test_file_of_another_shape_is_refused(store: Path) -> None:
    """Same bytes and time, but the header tells them otherwise than the manifest."""
    path = store / "train_idx.safetensors"
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    n = len(load_file(path)["train_idx"])
    for dtype, shape in (("F64", f"[{n}]"), ("I32", f"[{2 * n}]"), ("I64", f"[{n},1]")):
        told = f'"dtype":"{dtype}","shape":{shape}'.encode()
        changed = before.replace(f'"dtype":"I64","shape":[{n}]'.encode(), told)
        path.write_bytes(changed.replace(b" " * (len(changed) - len(before)), b"", 1))
        os.utime(path, ns=(stamp, stamp))
        assert path.stat().st_size == len(before)
        with pytest.raises(FormatError, match=f"the manifest records I64 .{n}"):
            Store(store)


def test_file_written_anew_by_another_program_is_refused(store: Path) -> None:
    """The same table with a header of another length is a file of another size."""
    path = store / "train_idx.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(FormatError, match="bytes, but the manifest records"):
        Store(store)


INDEX_TABLES = [a for a in STORED if a.kind != "float"]


@pytest.mark.parametrize("artifact", INDEX_TABLES, ids=lambda a: a.name)
@pytest.mark.parametrize("value", [-1, 10**6])
def test_index_smuggled_into_a_copied_file_is_caught(
    artifact: Any, store: Path, value: int
) -> None:
    """A file of the same size and another time has its numbers read again, both ends."""

    def smuggle(tensors: dict[str, torch.Tensor]) -> None:
        table = tensors["values" if artifact.kind == "ragged" else artifact.name]
        table.view(-1)[len(table) // 2] = value

    rewrite(store / artifact.file, smuggle, touch=True)
    with pytest.raises(IndexRangeError, match=str(value)):
        Store(store)


def test_stamped_file_is_not_read_again(store: Path) -> None:
    """With its time as stamped the same change goes unnoticed at open: nothing is read then;
    `validate="full"` reads it."""

    def smuggle(tensors: dict[str, torch.Tensor]) -> None:
        tensors["pair_index"][5, 1] = -1

    rewrite(store / "pair_index.safetensors", smuggle, touch=False)
    Store(store)
    with pytest.raises(IndexRangeError, match="pair_index references source -1 in row 5, column 1"):
        Store(store, validate="full")


def test_shuffled_row_offsets_in_a_copied_file_are_caught(store: Path) -> None:
    """The offsets of the keyword lists are indices as well."""

    def smuggle(tensors: dict[str, torch.Tensor]) -> None:
        tensors["offsets"][3] = 10**6

    rewrite(store / "pair_keyword_ids.safetensors", smuggle, touch=True)
    with pytest.raises(FormatError, match="offsets"):
        Store(store)


def test_full_validation_reads_what_stamps_vouch_for(store: Path) -> None:
    """NaN, values out of bounds and any changed bit are found with times put back."""
    changes: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
        "source_embs": (lambda t: t[7].fill_(float("nan")), "nan in row 7, column 0"),
        "pair_relevance": (lambda t: t[9].fill_(1.5), "1.5 in row 9"),
        "steering_residual": (lambda t: t[1, 1].neg_(), "SHA-256"),
    }
    for name, (change, words) in changes.items():
        path = store / f"{name}.safetensors"
        good = path.read_bytes()
        stamp = path.stat().st_mtime_ns
        rewrite(path, lambda t, n=name, c=change: c(t[n]), touch=False)  # type: ignore[misc]
        Store(store)
        with pytest.raises(JasperError, match=words):
            Store(store, validate="full")
        path.write_bytes(good)
        os.utime(path, ns=(stamp, stamp))
    Store(store, validate="full")


def test_full_validation_reads_the_generation(store: Path) -> None:
    """Negatives changed with their time put back are found by "full" alone."""
    path = store / "negatives" / "000001.safetensors"
    rewrite(path, lambda t: t["hard_negatives"][4, 2].fill_(10**6), touch=False)
    JASPERSteeringDataset(store, "train").close()
    with pytest.raises(FormatError, match="SHA-256"):
        JASPERSteeringDataset(store, "train", validate="full")


def test_unknown_validation_is_refused(store: Path) -> None:
    """Only the two words of the interface are taken."""
    with pytest.raises(UsageError, match="fast"):
        Store(store, validate="fast")  # type: ignore[arg-type]


# The manifest


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", "a\0b", 7])
def test_manifest_that_leads_outside_is_refused(store: Path, name: object) -> None:
    """File names are plain names inside the folder."""
    edit_manifest(store, lambda m: m["artifacts"]["source_embs"].update(file=name))
    with pytest.raises(UnsafeFileError):
        Store(store)


def test_pointer_that_leads_outside_is_refused(store: Path) -> None:
    """The generation's pointer is held to the same rule."""
    path = store / "negatives" / "CURRENT.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "file": "../../x"}))
    with pytest.raises(UnsafeFileError):
        JASPERSteeringDataset(store, "train")


def test_newer_format_names_both_versions(store: Path) -> None:
    """Whoever meets a newer store is told what he has and what he needs."""
    edit_manifest(store, lambda m: m.update(format_version=FORMAT_VERSION + 6))
    with pytest.raises(FormatError, match=rf"version is {FORMAT_VERSION + 6}.*{FORMAT_VERSION};"):
        Store(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("artifacts"),
        lambda m: m["artifacts"].pop("val_idx"),
        lambda m: m["artifacts"]["val_idx"].pop("sha256"),
        lambda m: m["artifacts"]["val_idx"].update(shape="x"),
        lambda m: m["artifacts"]["val_idx"].update(dtype="F4"),
        lambda m: m["artifacts"]["val_idx"].update(sha256="0" * 64),
        lambda m: m["artifacts"]["val_idx"].update(unheard_of=1),
        lambda m: m["artifacts"]["val_idx"].update(ranges=5),
        lambda m: m.update(format_version="1"),
        lambda m: m.update(store_id="x"),
    ],
)
def test_spoilt_manifest_is_an_error_of_ours(
    store: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Whatever was done to it by hand, the error names the file."""
    edit_manifest(store, change)
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Store(store)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1'])
def test_manifest_that_is_no_json_is_an_error_of_ours(store: Path, text: str) -> None:
    """Cut off, empty, or of another kind."""
    (store / "manifest.json").write_text(text)
    with pytest.raises(FormatError, match=r"manifest\.json"):
        Store(store)


def test_tables_of_different_lengths_are_refused(store: Path, tmp_path: Path) -> None:
    """Files and manifest that agree with each other, but not with the other tables."""
    other = make_builder_folder(tmp_path / "other", seed=1, n_pairs=400, dim=32)
    convert(other, tmp_path / "other_store")
    shutil.copy2(tmp_path / "other_store" / "pair_relevance.safetensors", store)
    entry = json.loads((tmp_path / "other_store" / "manifest.json").read_text())["artifacts"]

    def change(manifest: dict[str, Any]) -> None:
        manifest["artifacts"]["pair_relevance"] = {
            **entry["pair_relevance"],
            "sha256": manifest["artifacts"]["pair_relevance"]["sha256"],
        }

    edit_manifest(store, change)
    with pytest.raises(JasperError, match=r"pair_relevance .* 400 rows, but pair_index has 500"):
        Store(store)


def test_config_of_another_width_is_refused(store: Path) -> None:
    """`config.json` may be edited, but not against the tables."""
    config = json.loads((store / "config.json").read_text())
    (store / "config.json").write_text(json.dumps({**config, "embedding_dim": 64}))
    with pytest.raises(ConfigError, match="embedding_dim"):
        Store(store)
    (store / "config.json").write_text(json.dumps({**config, "n_neg": 5}))
    with pytest.raises(JasperError, match="hard_negatives"):
        JASPERSteeringDataset(store, "train")


def test_missing_store_is_told_with_the_remedy(tmp_path: Path, demo_folder: Path) -> None:
    """No folder, and a folder that was never converted."""
    with pytest.raises(MissingFileError, match="Dataset directory not found"):
        Store(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="jasper-convert"):
        Store(demo_folder)


def test_interrupted_conversion_is_told(store: Path) -> None:
    """Without a manifest but with staged files, a conversion is under way or was killed."""
    (store / "manifest.json").unlink()
    (store / STAGING).mkdir()
    with pytest.raises(StoreChangedError, match="conversion"):
        Store(store)
