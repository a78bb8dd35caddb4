"""The zip archive of torch.save: every entry must match its directory and its checksum."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from prunetaylor.network.checkpoint.torch_format.descriptions import Malformed

_CHUNK = 1 << 24
_MOST_DIRECTORY = 1 << 24  # bytes; some 150,000 entries
_DESCRIPTOR = 0x8  # flag: sizes and checksum follow the content
_UTF8 = 0x800
_UNKNOWN = 0xFFFFFFFF  # the size is in an extra field


class Archive:
    """The entries of an open file, by name below the archive's root folder; content is checked as it is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        """Read the directory only. Raises Malformed, and whatever ``zipfile`` raises."""
        self._file = file
        if _directory_bytes(file, size) > _MOST_DIRECTORY:
            raise Malformed("its directory is too large")
        with zipfile.ZipFile(file) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir()]
            self._end = archive.start_dir
        self.names = [one.filename for one in entries]
        if len(set(self.names)) < len(self.names):
            raise Malformed("two entries have the same name")
        if sum(one.compress_size for one in entries) > size:
            raise Malformed("its entries overlap")
        roots = [name.removesuffix("data.pkl") for name in self.names if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) > 1:
            raise Malformed("it contains several pickles")
        self._root = roots[0] if roots else ""
        self._entries = {one.filename.removeprefix(self._root): one for one in entries}
        self.has_checksums = any(one.CRC for one in entries) or not any(one.file_size for one in entries)
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def size(self, name: str) -> int:
        """Return the bytes of an entry. Malformed if it is missing or compressed."""
        return self._entry(name).file_size

    def read(self, name: str) -> bytes:
        """Return a whole entry, which should be small."""
        content = bytearray(self.size(name))
        self.read_into(name, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, content: memoryview) -> None:
        """Read a whole entry into ``content``, which has its size. Malformed if its checksum differs."""
        count = 0
        for chunk in self._pieces(name, content):
            count += len(chunk)
        assert count == len(content)

    def check_rest(self) -> None:
        """Verify the checksums of entries that were not read, except compressed ones, which nothing uses."""
        buffer = memoryview(bytearray(_CHUNK))
        for name, entry in self._entries.items():
            if self.has_checksums and name not in self._read and entry.compress_type == zipfile.ZIP_STORED:
                for _ in self._pieces(name, buffer):
                    pass

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise Malformed(f"the entry {name!r} is missing")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Malformed(f"the entry {name!r} is compressed, as torch.save never does")
        if entry.flag_bits & 0x1:
            raise Malformed(f"the entry {name!r} is encrypted")
        return entry

    def _pieces(self, name: str, content: memoryview) -> Iterator[memoryview]:
        """Yield the entry piece by piece in ``content``, side by side if it has the entry's size."""
        entry = self._entry(name)
        start = self._start(entry)
        whole = len(content) == entry.file_size
        position = checksum = 0
        self._file.seek(start)
        while position < entry.file_size:
            at = position if whole else 0
            piece = content[at : at + min(_CHUNK, entry.file_size - position)]
            count = self._file.readinto(piece)  # type: ignore[attr-defined]
            if not count:
                raise Malformed(f"the entry {name!r} ends too early")
            checksum = zlib.crc32(piece[:count], checksum)
            position += count
            yield piece[:count]
        if self.has_checksums and checksum != entry.CRC:
            raise Malformed(f"the entry {name!r} does not match its checksum")
        self._descriptor(entry, start + position)
        self._read.add(name)

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Return the offset of the content, after checking that its header agrees with the directory."""
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if len(header) < 30:
            raise Malformed(f"the entry {entry.filename!r} lies outside the file")
        magic, _, flags, method, _, _, crc, packed, plain, length, extra = struct.unpack("<4s5H3I2H", header)
        name = self._file.read(length).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        start: int = entry.header_offset + 30 + length + extra
        same = magic == b"PK\x03\x04" and method == entry.compress_type and flags == entry.flag_bits
        same = same and name == entry.orig_filename
        if not flags & _DESCRIPTOR:
            same = same and crc == entry.CRC and packed in (entry.compress_size, _UNKNOWN)
            same = same and plain in (entry.file_size, _UNKNOWN)
        if not same or entry.compress_size != entry.file_size:
            raise Malformed(f"the entry {entry.filename!r} and the directory disagree")
        if start + entry.file_size > self._end:
            raise Malformed(f"the entry {entry.filename!r} lies outside the file")
        return start

    def _descriptor(self, entry: zipfile.ZipInfo, at: int) -> None:
        if entry.flag_bits & _DESCRIPTOR:
            self._file.seek(at)
            descriptor = self._file.read(8)
            if descriptor[:4] == b"PK\x07\x08" and descriptor[4:] != struct.pack("<I", entry.CRC):
                raise Malformed(f"the entry {entry.filename!r} and the directory disagree")


def _directory_bytes(file: IO[bytes], size: int) -> int:
    """Return the bytes of the archive's directory; 0 if it has no end record, which ``zipfile`` refuses."""
    length = min(size, 22 + 65535 + 76)
    file.seek(size - length)
    tail = file.read(length)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        return 0
    size32 = int.from_bytes(tail[at + 12 : at + 16], "little")
    large = tail.rfind(b"PK\x06\x06", 0, at)
    return int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else size32
