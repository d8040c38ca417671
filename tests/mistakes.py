"""Mistakes as users make them, and what they are told: `python -m tests.mistakes` shows all.

Its answer is kept in `mistakes.md`, to be read as a whole and to show in a review what changes:
`python -m tests.mistakes > tests/mistakes.md` writes it anew.
"""

import contextlib
import io
import json
import logging
import re
import shlex
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

import converters.__main__
import jasper_mmap.__main__
from converters import convert
from jasper_mmap import (
    JASPERSteeringDataset,
    create_loader,
    publish_negatives,
    rollback_negatives,
    set_epoch,
    validate_first_batch,
    watch_negatives,
)
from tools.demo.folder import make_builder_folder

Spoil = Callable[[Path], object]
PROGRAMS = {
    "jasper-convert": converters.__main__.main,
    "jasper-mmap": jasper_mmap.__main__.main,
}
NAMES: dict[str, Any] = {
    "JASPERSteeringDataset": JASPERSteeringDataset,
    "convert": convert,
    "create_loader": create_loader,
    "np": np,
    "publish_negatives": publish_negatives,
    "rollback_negatives": rollback_negatives,
    "set_epoch": set_epoch,
    "torch": torch,
    "validate_first_batch": validate_first_batch,
    "watch_negatives": watch_negatives,
}
CHANGING = (
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "HASH"),
    (re.compile(r"\b\d+\.\d s\b"), "0.0 s"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"  \S+@\S+"), "  USER@HOST"),
    (re.compile(r"python -m \S*(?=jasper-)"), ""),
    (re.compile("─{4,}"), "───"),
    (re.compile(r"(?<=\S)  +"), "  "),
    # As other versions of Python, click and safetensors word it.
    (re.compile(r"(?<=unexpected keyword argument '\w{10}')\. Did you mean '\w+'\?"), ""),
    (re.compile(r"(?<=^Try ')(.*) -h(?=' for help\.$)", re.MULTILINE), r"\1 --help"),
    (re.compile("InvalidHeaderLength"), "invalid header length"),
)
N_PAIRS, DIM, N_NEG = 60, 8, 12


class Mistake(NamedTuple):
    """What a user has before him, and the command or the Python that he then runs.

    The folder has `built` (a builder's), `store` (converted from it) and `mined` (other negatives).
    """

    title: str
    call: str
    spoil: Spoil = lambda place: None


def make_scene(place: Path) -> None:
    """Write what every mistake begins with."""
    make_builder_folder(place / "built", seed=1, n_pairs=N_PAIRS, dim=DIM, n_neg=N_NEG)
    convert(place / "built", place / "store")
    (place / "mined").mkdir()
    for name, table in read_mined(place / "built").items():
        torch.save(table, place / "mined" / f"{name}.pt")


def read_mined(built: Path) -> dict[str, torch.Tensor]:
    """Return other negatives that are as good as those of a folder."""
    negatives = torch.load(built / "hard_negatives.pt", weights_only=True)
    tiers = torch.load(built / "negative_tiers.pt", weights_only=True)
    return {"hard_negatives": negatives.flip(1), "negative_tiers": tiers.flip(1)}


def told(mistake: Mistake, place: Path) -> str:
    """Make the mistake in `place`; the call, and all that its user sees then."""
    mistake.spoil(place)
    program, *arguments = shlex.split(mistake.call) if mistake.call.startswith("jasper-") else [""]
    seen = io.StringIO()
    with _watched(seen), contextlib.chdir(place):
        if program:
            lines = [f"$ {mistake.call}"]
            status = _run(program, arguments, seen)
        else:
            lines = [f">>> {mistake.call}"]
            status = _evaluate(mistake.call, seen)
    text = seen.getvalue().replace(f"{place}/", "DIR/").replace(str(place), "DIR")
    for pattern, instead in CHANGING:
        text = pattern.sub(instead, text)
    shown = [line.rstrip() for line in text.splitlines() if "B/s: " not in line]
    return "\n".join([*lines, *shown, *([status] if status else [])])


@contextlib.contextmanager
def _watched(seen: io.StringIO) -> Iterator[None]:
    """Write into `seen` what the package logs as a warning or worse."""
    handler = logging.StreamHandler(seen)
    handler.setLevel(logging.WARNING)
    log = logging.getLogger("jasper_mmap")
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate


def _run(program: str, arguments: list[str], seen: io.StringIO) -> str:
    with (
        contextlib.redirect_stdout(seen),
        contextlib.redirect_stderr(seen),
        mock.patch.object(sys, "argv", [program, *arguments]),
    ):
        try:
            PROGRAMS[program]()
        except SystemExit as ended:
            return f"(exit status {ended.code or 0})"
    raise AssertionError("main returned")


def _evaluate(code: str, seen: io.StringIO) -> str:
    """Run some Python and write what it returns or raises."""
    try:
        *statements, last = code.split("; ")
        names = dict(NAMES)
        exec("; ".join(statements), names)
        seen.write(f"{eval(last, names)}\n")
    except Exception as error:  # noqa: BLE001 - whatever a user sees
        seen.write(f"{type(error).__name__}: {error}\n")
    return ""


# What a user may have done to his folders before


def edit(file: str, change: Callable[[Any], Any]) -> Spoil:
    """Replace the tensor or list of a `.pt` file by what `change` makes of it."""

    def spoil(place: Path) -> None:
        path = place / file
        torch.save(change(torch.load(path, weights_only=True)), path)

    return spoil


def put(file: str, at: Any, value: Any) -> Spoil:
    """Set one value in the tensor of a `.pt` file."""

    def change(table: torch.Tensor) -> torch.Tensor:
        table[at] = value
        return table

    return edit(file, change)


def edit_json(file: str, **changes: Any) -> Spoil:
    """Set keys of a JSON file; None removes one."""

    def spoil(place: Path) -> None:
        value = json.loads((place / file).read_text())
        value = {k: v for k, v in (value | changes).items() if v is not None}
        (place / file).write_text(json.dumps(value))

    return spoil


def write(file: str, data: bytes) -> Spoil:
    """Write a file."""
    return lambda place: (place / file).write_bytes(data)


def cut(file: str) -> Spoil:
    """Leave half of a file."""
    return lambda place: (place / file).write_bytes(
        (data := (place / file).read_bytes())[: len(data) // 2]
    )


def remove(*files: str) -> Spoil:
    """Remove files."""

    def spoil(place: Path) -> None:
        for file in files:
            for path in place.glob(file):
                path.unlink()

    return spoil


def make(folder: str) -> Spoil:
    """Make an empty folder."""
    return lambda place: (place / folder).mkdir()


def together(*spoils: Spoil) -> Spoil:
    """Do one after the other."""

    def spoil(place: Path) -> None:
        for each in spoils:
            each(place)

    return spoil


def beside(place: Path) -> None:
    """Convert the builder's folder beside its files."""
    convert(place / "built")


def published(place: Path) -> None:
    """Publish the other negatives."""
    mined = place / "mined"
    publish_negatives(place / "store", mined / "hard_negatives.pt", mined / "negative_tiers.pt")


def as_safetensors(name: str) -> Spoil:
    """Save the mined negatives as a safetensors file whose tensor has a name."""

    def spoil(place: Path) -> None:
        table = read_mined(place / "built")["hard_negatives"]
        save_file({name: table.contiguous()}, place / "mined" / "hard_negatives.safetensors")

    return spoil


def flip_byte(place: Path) -> None:
    """Change the last byte of a table, and with it the file's time."""
    path = place / "store" / "source_embs.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def other_dtype(place: Path) -> None:
    """Give a table another dtype of the same size."""
    path = place / "store" / "source_embs.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"'))


def unknown_dtype(place: Path) -> None:
    """Save the mined negatives as a dtype of eight bits that is no integer."""
    header = json.dumps(
        {"hard_negatives": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}
    ).encode()
    path = place / "mined" / "hard_negatives.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)


MINED = "--negatives mined/hard_negatives.pt --tiers mined/negative_tiers.pt"
PUBLISH = f"jasper-mmap publish store {MINED}"
ESCAPE = "\x1b]0;owned\x07\nforged"

KNOWN = (
    Mistake("convert: path does not exist", "jasper-convert biult"),
    Mistake("convert: empty folder", "jasper-convert empty", make("empty")),
    Mistake("load: wrong path", "create_loader('stroe', 'train', 8)"),
    Mistake("load: split 'training'", "create_loader('store', 'training', 8)"),
    Mistake("cli: inspect the manifest file itself", "jasper-mmap inspect store/manifest.json"),
    Mistake(
        "convert: negative -1 in hard_negatives (padding)",
        "jasper-convert built",
        put("built/hard_negatives.pt", (9, 11), -1),
    ),
    Mistake(
        "convert: train_idx is a boolean mask",
        "jasper-convert built",
        edit("built/train_idx.pt", lambda _: torch.ones(N_PAIRS, dtype=torch.bool)),
    ),
    Mistake("convert: .pt file truncated", "jasper-convert built", cut("built/source_embs.pt")),
    Mistake(
        "convert: Python convert(dtype='float32')", "convert('built', embeddings_dtype='float32')"
    ),
    Mistake(
        "publish: tiers given twice (as negatives too)",
        "jasper-mmap publish store --negatives mined/negative_tiers.pt"
        " --tiers mined/negative_tiers.pt",
    ),
    Mistake(
        "publish: numpy arrays in Python",
        f"publish_negatives('store', np.zeros(({N_PAIRS}, {N_NEG}), int), torch.zeros(1))",
    ),
    Mistake(
        "publish: folder given for --negatives",
        "jasper-mmap publish store --negatives mined --tiers mined/negative_tiers.pt",
    ),
    Mistake("rollback: --to 99", "jasper-mmap rollback store --to 99", published),
    Mistake("use: dataset[0:4]", "JASPERSteeringDataset('store', 'train')[0:4]"),
    Mistake(
        "use: set_epoch(dataset, 1) - dataset instead of loader",
        "set_epoch(JASPERSteeringDataset('store', 'train'), 1)",
    ),
    Mistake(
        "use: same, without validate: loop over nothing",
        "list(create_loader('store', 'train', 4096))",
    ),
    Mistake(
        "use: attribute typo ds.hard_negative",
        "JASPERSteeringDataset('store', 'train').hard_negative",
    ),
    Mistake(
        "use: load_state_dict from loader with other seed",
        "state = create_loader('store', 'train', 8).state_dict();"
        " create_loader('store', 'train', 8, seed=1).load_state_dict(state)",
    ),
    Mistake(
        "corrupt: flipped byte in source_embs, mtime new -> open",
        "len(JASPERSteeringDataset('store', 'test'))",
        flip_byte,
    ),
    Mistake(
        "corrupt: flipped byte in source_embs -> verify", "jasper-mmap verify store", flip_byte
    ),
    Mistake(
        "corrupt: negatives/000001 removed -> open",
        "JASPERSteeringDataset('store', 'train')",
        remove("store/negatives/000001.safetensors"),
    ),
    Mistake(
        "moved: config.json edited by hand after conversion (n_neg)",
        "JASPERSteeringDataset('store', 'train')",
        edit_json("store/config.json", n_neg=8),
    ),
    Mistake(
        "watch: inbox folder does not exist",
        "jasper-mmap watch store --inbox mined/*.pt --once --settle 0",
    ),
    Mistake("bench: --workers two", "jasper-mmap bench store --workers two"),
    Mistake(
        "manifest of older format_version 0",
        "JASPERSteeringDataset('store', 'train')",
        edit_json("store/manifest.json", format_version=0),
    ),
    Mistake(
        "convert again beside, after the .pt files were deleted",
        "jasper-convert built",
        together(beside, remove("built/*.pt")),
    ),
    Mistake("convert: DST is a file", "jasper-convert built afile", write("afile", b"x")),
    Mistake(
        "convert: --allow-nonfinite with NaN",
        "jasper-convert built --allow-nonfinite",
        put("built/source_embs.pt", (0, 0), torch.nan),
    ),
    Mistake(
        "convert: --allow-nonfinite with NaN then validate_first_batch",
        "convert('built', allow_nonfinite=True);"
        " validate_first_batch(create_loader('built', 'train', 8))",
        put("built/source_embs.pt", (0, 0), torch.nan),
    ),
    Mistake("use: batch_size=64.0", "create_loader('store', 'train', 64.0)"),
    Mistake("use: store=None", "create_loader(None, 'train', 8)"),
    Mistake(
        "use: validate_first_batch(dataset)",
        "validate_first_batch(JASPERSteeringDataset('store', 'train'))",
    ),
    Mistake("use: watch_negatives(store path)", "watch_negatives('store')"),
    Mistake(
        "use: reload_negatives with half-written pt beside",
        "JASPERSteeringDataset('built', 'train').reload_negatives()",
        together(beside, cut("built/hard_negatives.pt"), cut("built/negative_tiers.pt")),
    ),
    Mistake(
        "publish: safetensors with wrong key name",
        "jasper-mmap publish store --negatives mined/hard_negatives.safetensors"
        " --tiers mined/negative_tiers.pt",
        as_safetensors("negative_tiers"),
    ),
    Mistake(
        "load_state_dict of val loader into train",
        "state = create_loader('store', 'val', 8).state_dict();"
        " create_loader('store', 'train', 8).load_state_dict(state)",
    ),
    Mistake(
        "loader: keyword misspelt (Python's own words)",
        "create_loader('store', 'train', 8, num_worker=2)",
    ),
    Mistake(
        "loader: collate_fn given (Python's own words)",
        "create_loader('store', 'train', 8, collate_fn=list)",
    ),
)
"""Those that users were seen to make; those of permissions are in `test_mistakes`."""

FURTHER_ONES = (
    Mistake("convert: SRC is a .pt file", "jasper-convert built/source_embs.pt"),
    Mistake("convert: in the middle of the path a wrong name", "jasper-convert data/biult/x"),
    Mistake("convert: DST lies below a file", "jasper-convert built afile/x", write("afile", b"x")),
    Mistake(
        "convert: -1 as padding in pair_keyword_ids",
        "jasper-convert built",
        edit("built/pair_keyword_ids.pt", lambda rows: [[*row, -1] for row in rows]),
    ),
    Mistake(
        "convert: -2 in val_idx, counted from the end",
        "jasper-convert built",
        put("built/val_idx.pt", 0, -2),
    ),
    Mistake(
        "convert: n_neg written as text in config.json",
        "jasper-convert built",
        edit_json("built/config.json", n_neg="12"),
    ),
    Mistake(
        "convert: a key twice in config.json",
        "jasper-convert built",
        lambda place: (place / "built/config.json").write_text(
            (place / "built/config.json").read_text().replace("{", '{"n_neg": 12, ', 1)
        ),
    ),
    Mistake(
        "convert: probabilities in per cent",
        "jasper-convert built",
        edit_json(
            "built/config.json",
            steering_probabilities={"zero": 25, "centroid": 25, "keyword": 25, "residual": 25},
        ),
    ),
    Mistake(
        "convert: tiers counted from 0",
        "jasper-convert built",
        edit("built/negative_tiers.pt", lambda tiers: tiers - 1),
    ),
    Mistake(
        "convert: numpy array saved by torch.save",
        "jasper-convert built",
        lambda place: torch.save(np.arange(3), place / "built/train_idx.pt"),
    ),
    Mistake(
        "convert: dict of tensors in one file",
        "jasper-convert built",
        edit("built/train_idx.pt", lambda table: {"idx": table}),
    ),
    Mistake(
        "convert: Git LFS pointer in place of a file",
        "jasper-convert built",
        write("built/source_embs.pt", b"version https://git-lfs.github.com/spec/v1\noid x\n"),
    ),
    Mistake("convert: --to-pt of a builder's folder", "jasper-convert built back --to-pt"),
    Mistake("convert: --to-pt into the builder's folder", "jasper-convert store built --to-pt"),
    Mistake("convert: --dtype fp16", "jasper-convert built --dtype fp16"),
    Mistake("cli: inspect of the folder above", "jasper-mmap inspect ."),
    Mistake("cli: inspect of a builder's folder", "jasper-mmap inspect built"),
    Mistake("cli: verify of a file's name", "jasper-mmap verify store/config.jsn"),
    Mistake(
        "publish: path of the negatives misspelt",
        "jasper-mmap publish store --negatives mined/hard_negative.pt"
        " --tiers mined/negative_tiers.pt",
    ),
    Mistake("publish: store misspelt", PUBLISH.replace("publish store", "publish stor")),
    Mistake(
        "publish: lists in Python", "publish_negatives('store', [[0] * 12] * 60, [[1] * 12] * 60)"
    ),
    Mistake(
        "publish: negatives of a sparse tensor",
        "publish_negatives('store', torch.ones(60, 12).int().to_sparse(), torch.ones(60, 12))",
    ),
    Mistake("publish: neither a folder nor files", "jasper-mmap publish store"),
    Mistake("publish: a folder and files", f"jasper-mmap publish store mined {MINED}"),
    Mistake(
        "publish: the negatives without their tiers",
        "jasper-mmap publish store --negatives mined/hard_negatives.pt",
    ),
    Mistake("publish: folder misspelt", "jasper-mmap publish store mind"),
    Mistake(
        "publish: file in place of the folder", "jasper-mmap publish store mined/hard_negatives.pt"
    ),
    Mistake(
        "publish: folder that lacks the tiers",
        "jasper-mmap publish store mined",
        remove("mined/negative_tiers.pt"),
    ),
    Mistake(
        "publish: folder with both kinds of files",
        "jasper-mmap publish store mined",
        as_safetensors("hard_negatives"),
    ),
    Mistake(
        "publish: what is current already",
        "jasper-mmap publish store mined --note again",
        published,
    ),
    Mistake("prune: keep none", "jasper-mmap prune store --keep 0"),
    Mistake("prune: of a builder's folder", "jasper-mmap prune built --keep 2"),
    Mistake(
        "publish: negatives of another number of pairs",
        PUBLISH,
        edit("mined/hard_negatives.pt", lambda table: table[:-1]),
    ),
    Mistake("publish: padding", PUBLISH, put("mined/hard_negatives.pt", (3, 1), -1)),
    Mistake(
        "publish: float numbers",
        PUBLISH,
        edit("mined/hard_negatives.pt", lambda table: table.float()),
    ),
    Mistake(
        "publish: safetensors of several tensors, none of that name",
        "jasper-mmap publish store --negatives mined/hard_negatives.safetensors"
        " --tiers mined/negative_tiers.pt",
        lambda place: save_file(
            {"a": torch.zeros(1), "b": torch.zeros(1)}, place / "mined/hard_negatives.safetensors"
        ),
    ),
    Mistake(
        "publish: safetensors of an unknown dtype",
        "jasper-mmap publish store --negatives mined/hard_negatives.safetensors"
        " --tiers mined/negative_tiers.pt",
        unknown_dtype,
    ),
    Mistake(
        "publish: --max-false-negatives 5 for five per cent", f"{PUBLISH} --max-false-negatives 5"
    ),
    Mistake("rollback: to the current generation", "jasper-mmap rollback store --to 1"),
    Mistake("rollback: where there was only one", "jasper-mmap rollback store"),
    Mistake(
        "rollback: to a generation whose file is gone",
        "rollback_negatives('store', 1)",
        together(published, remove("store/negatives/000001.safetensors")),
    ),
    Mistake("bench: -1 workers", "jasper-mmap bench store --workers -1"),
    Mistake(
        "store: manifest of a newer version",
        "jasper-mmap verify store",
        edit_json("store/manifest.json", format_version=2),
    ),
    Mistake(
        "store: an absolute file name in the manifest",
        "jasper-mmap inspect store",
        lambda place: (place / "store/manifest.json").write_text(
            (place / "store/manifest.json").read_text().replace('"val_idx.saf', '"/etc/val_idx.saf')
        ),
    ),
    Mistake(
        "store: CURRENT.json edited by hand",
        "jasper-mmap generations store",
        edit_json("store/negatives/CURRENT.json", bytes=None),
    ),
    Mistake(
        "store: CURRENT.json of another store",
        "JASPERSteeringDataset('store', 'train')",
        edit_json("store/negatives/CURRENT.json", store_id="0" * 32),
    ),
    Mistake(
        "store: CURRENT.json not copied",
        "JASPERSteeringDataset('store', 'train')",
        remove("store/negatives/CURRENT.json"),
    ),
    Mistake(
        "store: a table not copied",
        "JASPERSteeringDataset('store', 'train')",
        remove("store/keyword_embs.safetensors"),
    ),
    Mistake(
        "store: a table cut short by a full disk",
        "JASPERSteeringDataset('store', 'train')",
        cut("store/keyword_embs.safetensors"),
    ),
    Mistake(
        "store: a table of another dtype",
        "JASPERSteeringDataset('store', 'train')",
        other_dtype,
    ),
    Mistake(
        "store: config.json not copied",
        "JASPERSteeringDataset('store', 'train')",
        remove("store/config.json"),
    ),
    Mistake(
        "store: control characters in a note",
        "jasper-mmap generations store",
        lambda place: publish_negatives(
            place / "store", *read_mined(place / "built").values(), note=f"{ESCAPE}{'x' * 999}"
        ),
    ),
)
"""Those that nobody was seen to make yet."""


def section(title: str, text: str) -> str:
    """Write one mistake as it stands in `mistakes.md`."""
    return f"\n## {title}\n\n```text\n{text}\n```\n"


def main() -> None:
    """Make all mistakes."""
    print("# Mistakes, and what they are told\n\nWritten by `python -m tests.mistakes`.")
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder).resolve() / "scene"
        make_scene(scene)
        for number, mistake in enumerate((*KNOWN, *FURTHER_ONES)):
            place = scene.with_name(f"place{number}")
            shutil.copytree(scene, place)
            print(section(mistake.title, told(mistake, place)), end="")


if __name__ == "__main__":
    main()
