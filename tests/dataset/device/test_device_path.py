"""The path of a batch on a device, without one: emulated in a process of its own.

What takes part is in `emulated_device` (what a device allows) and `device_path` (what is read).
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from converters import convert
from tests.folders import MIXED, make_synthetic
from tests.oracle import STEERING_FILES
from tests.publishing import IMPORTING
from tests.serving import Named

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} cannot emulate a device",
)
STORES = (
    "plain",
    "seven_pairs",
    "one_negative",
    "float16_views",
    "bfloat16_noncontiguous",
    "float64_uint16",
    "uint32_no_distances",
    "uint8",
    "no_curriculum_empty_val",
    *MIXED,
)
REFUSED = {
    "values = torch.arange(4).to(DEVICE)": "blocks",
    "values = torch.from_numpy(np.arange(4)).to(DEVICE, non_blocking=True)": "not pinned",
    "values = torch.tensor([1, 2], device=DEVICE)": "Could not run",
    "values = table[torch.arange(2)]": "index",
    "values = table.index_select(0, torch.arange(2))": "not on the device",
    "table.add_(torch.arange(4))": "not on the device",
    "values = table.cpu()": "copies to the CPU",
    "values = torch.empty(4, dtype=torch.int64).copy_(table)": "copies to the CPU",
    "values = table.tolist()": "not supported",
    "values = table[0].item()": "_local_scalar_dense",
    "values = bool(table[0] != 1)": "_local_scalar_dense",
    "values = table.nonzero()": "nonzero",
    "values = table[table == 1]": "index",
    "table[1:2].copy_(pinned[:1])": "blocks",
    "table.view(2, 2).copy_(pinned[:2], non_blocking=True)": "expands",
    "table[:2].copy_(pinned[::2], non_blocking=True)": "strided",
    "table.copy_(pinned, non_blocking=True); pinned[2] = 0; runtime.event(DEVICE).synchronize()": (
        "overwritten"
    ),
    "table.zero_(); runtime.current_stream = 'other'; table.add_(table)": "another stream",
}
"""What would wait for a device, or fail there now and then, and a word of what is said of it."""
PROGRAM = """
import sys
import numpy as np
import torch
from tests.dataset.device.emulated_device import DEVICE, EmulatedDevice

for line, word in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    with EmulatedDevice() as device:
        runtime = device.runtime
        pinned = runtime.pinned(4, dtype=torch.int64)
        table = torch.empty(4, dtype=torch.int64, device=DEVICE)
        table.copy_(pinned, non_blocking=True)
        runtime.event(DEVICE).synchronize()
        try:
            exec(line)
        except Exception as error:
            assert word in str(error), f"{line}: {error}"
        else:
            raise AssertionError(f"{line}: passes")
"""


def run(*arguments: str | Path) -> str:
    """Run Python in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=IMPORTING,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def not_finite(root: Path) -> list[str | Path]:
    """Return a folder and its store whose steering cannot be joined; the pair whose rows are read
    in place of others has no finite number in any."""
    folder = make_synthetic("steering_of_its_own", root / "folder")
    for name, value in zip(STEERING_FILES.values(), ("inf", "-inf", "nan"), strict=True):
        path = folder / f"{name}.pt"
        table = torch.load(path, weights_only=True)
        table[0] = float(value)
        torch.save(table, path)
    convert(folder, root / "store", allow_nonfinite=True)
    return [folder, root / "store"]


def test_emulated_device_refuses_what_waits() -> None:
    """Each way to wait for the device is an error there; so the next test can see it."""
    run("-c", PROGRAM, *(word for case in REFUSED.items() for word in case))


def test_batches_are_made_on_the_device_without_waiting(
    folder_named: Named, store_named: Named, tmp_path: Path
) -> None:
    """Tables of all dtypes, joined and not: placed, read in lists, samples and passes, with forced
    steering, before and after a new generation, on two streams. A look-up takes one copy of 16
    bytes a sample, and every batch is the oracle's, bit for bit."""
    arguments: list[str | Path] = []
    for name in STORES:
        copy = Path(shutil.copytree(store_named(name), tmp_path / name))
        arguments += [folder_named(name), copy]
    arguments += not_finite(tmp_path)
    served = run("-m", "tests.dataset.device.device_path", *arguments)
    assert [line.split()[0] for line in served.splitlines()] == [*STORES, "store"]
