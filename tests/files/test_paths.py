"""What a file's stamp says, and what is said of a path that does not exist."""

import os
from pathlib import Path

import pytest

from jasper_mmap.errors import MissingFileError
from jasper_mmap.files.missing_paths import correction, entries_of, must_be_folder
from jasper_mmap.files.stamp import Stamp


def test_stamp_is_that_of_the_file_a_link_ends_at(tmp_path: Path) -> None:
    """Or of the link itself; a missing one is an error that names it."""
    file, link = tmp_path / "a", tmp_path / "b"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 123_456_789))
    link.symlink_to(file)
    assert Stamp.of(file).to_dict() == {"name": "a", "bytes": 5, "mtime_ns": 123_456_789}
    assert Stamp.of(link) == Stamp("b", 5, 123_456_789)
    own = link.lstat()
    assert Stamp.of(link, of_link=True) == Stamp("b", own.st_size, own.st_mtime_ns)
    file.unlink()
    assert Stamp.of(link, of_link=True).bytes == own.st_size
    with pytest.raises(MissingFileError, match="/b: not found"):
        Stamp.of(link)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("data/built", "; did you mean {0}/data/build?"),
        ("data/train.pt", "; did you mean {0}/data/train_idx.pt?"),
        ("dat/build", "; did you mean {0}/data?"),
        ("data/zzz", ". Correct the path."),
        ("other/zzz", " ({0}/other does not exist either). Correct the path."),
    ],
)
def test_a_missing_path_is_told_where_it_may_be(tmp_path: Path, missing: str, says: str) -> None:
    """The nearest name in the folder that exists, else which part of the path is not there."""
    (tmp_path / "data/build").mkdir(parents=True)
    (tmp_path / "data/train_idx.pt").touch()
    assert correction(tmp_path / missing) == says.format(tmp_path)


def test_a_dataset_directory_must_be_a_folder(tmp_path: Path) -> None:
    """A file leads to its folder, a wrong name to the folder that is like it."""
    must_be_folder(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MissingFileError, match=r"^Dataset directory not found: .* did you mean"):
        must_be_folder(tmp_path / "stor")
    with pytest.raises(MissingFileError, match=f"is a file. Name the folder .*: {tmp_path}$"):
        must_be_folder(tmp_path / "notes.txt")
    assert entries_of(tmp_path / "nowhere") == []
