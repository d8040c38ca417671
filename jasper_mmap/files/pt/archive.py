"""The zip archive in a `.pt` file: its records, each read within a limit."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from io import BufferedReader
from typing import IO, Final, cast

from ...errors import FormatError
from ..failures import Noted

ZIP_MAGIC: Final = b"PK\x03\x04"
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
"""Its magic number, and the lengths of the two fields before the record's data."""
_BAD_ARCHIVE: Final = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error)
"""What the zipfile module raises for one; OSError for a seek to before its beginning."""
_BYTE_ORDERS: Final = {b"little": "little", b"big": "big"}
MOST_PICKLED: Final = 1 << 20
"""Limit in bytes of a tensor's pickle, its other small records, and the list of records."""


def damaged(where: str, reason: str) -> str:
    """The message of an error about a damaged file or one of another format."""
    return f"{where}: damaged, truncated or not a torch file ({reason}); copy or save it again."


class _TooLongError(zipfile.BadZipFile):
    """The list of records is too long."""


class _Listed(Noted):
    """A file from which the zipfile module reads the list of records, within a limit."""

    def read(self, n_bytes: int = -1) -> bytes:
        if n_bytes > MOST_PICKLED:
            raise _TooLongError(f"its zip directory has more than {MOST_PICKLED} bytes")
        return super().read(n_bytes)


class Archive:
    """The records of a zip archive as torch writes it: whole, and not compressed."""

    def __init__(self, file: BufferedReader, where: str) -> None:
        self._file = file
        self._where = where
        self.size = os.fstat(file.fileno()).st_size
        listed = _Listed(file)
        try:
            records = zipfile.ZipFile(cast("IO[bytes]", listed)).infolist()
        except _BAD_ARCHIVE as error:
            if listed.failure is not None:
                raise listed.failure from None
            reason = "the zip directory at its end is missing or damaged"
            if isinstance(error, _TooLongError):
                reason = str(error)
            raise FormatError(damaged(where, reason)) from None
        self._records = {record.filename: record for record in records}
        if not records or len(records) > len(self._records):
            raise FormatError(damaged(where, "its zip directory is empty or has duplicate names"))
        self._folder = records[0].filename.partition("/")[0]

    def extent(self, name: str) -> tuple[int, int, int]:
        """Return where the data of a record begins and ends, and its CRC-32 (0 if not recorded)."""
        record = self._records.get(f"{self._folder}/{name}")
        if record is None:
            raise FormatError(damaged(self._where, f"it has no record {name!r:.80}"))
        self._file.seek(record.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        magic, *lengths = _LOCAL_HEADER.unpack(header.ljust(_LOCAL_HEADER.size, b"\0"))
        begin = record.header_offset + _LOCAL_HEADER.size + sum(lengths)
        stored = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
        if magic != ZIP_MAGIC or not stored or record.file_size != record.compress_size:
            raise FormatError(
                damaged(self._where, f"its record {name!r:.80} is compressed or encrypted")
            )
        end = begin + record.file_size
        if end > self.size:
            raise FormatError(damaged(self._where, f"its record {name!r:.80} ends after the file"))
        return begin, end, record.CRC

    def read(self, name: str, most: int) -> bytes:
        """Return a record of at most `most` bytes, after its checksum was verified."""
        begin, end, crc = self.extent(name)
        if end - begin > most:
            raise FormatError(
                f"{self._where}: refused, since its record {name!r:.80} has {end - begin} bytes; at"
                f" most {most} are allowed. Save one tensor, or a plain list of lists of ints."
            )
        self._file.seek(begin)
        data = self._file.read(end - begin)
        if len(data) < end - begin or (crc and zlib.crc32(data) != crc):
            raise FormatError(
                damaged(self._where, f"the CRC-32 of its record {name!r:.80} differs")
            )
        return data

    @property
    def byte_order(self) -> str:
        """The byte order of the saved numbers, "little" or "big"."""
        if f"{self._folder}/byteorder" not in self._records:
            return "little"
        order = self.read("byteorder", MOST_PICKLED)
        if order not in _BYTE_ORDERS:
            raise FormatError(damaged(self._where, f"unknown byte order {order[:20]!r}"))
        return _BYTE_ORDERS[order]
