"""A small reader and writer of VHD images that shares nothing with the Rust code: the oracle of scripts/soak.

Written from the specification alone. It knows what the soak makes: fixed, dynamic and differencing images of a few MiB
with relative locators. It locks nothing and is only used while nobody else writes.
"""

import os
import struct

SECTOR = 512
UNUSED = 0xFFFFFFFF


class Unreadable(Exception):
    """The file, or its chain, is not what the specification says."""


def _checksum_is_right(data, at):
    stored = struct.unpack_from(">I", data, at)[0]
    rest = sum(data[:at]) + sum(data[at + 4:])
    return stored == ~rest & 0xFFFFFFFF


def _footer(data):
    if len(data) == SECTOR and data[:8] == b"conectix" and _checksum_is_right(data, 64):
        return data
    return None


class Image:
    """One file."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.data = bytearray(file.read())
        footer = _footer(self.data[-SECTOR:]) or _footer(self.data[:SECTOR])
        if footer is None:
            raise Unreadable(f"{path}: no footer")
        self.footer = bytes(footer)
        self.header_at, = struct.unpack_from(">Q", footer, 16)
        self.size, = struct.unpack_from(">Q", footer, 48)
        self.kind, = struct.unpack_from(">I", footer, 60)
        self.id = bytes(footer[68:84])
        if self.kind not in (2, 3, 4):
            raise Unreadable(f"{path}: type {self.kind}")
        if self.kind != 2:
            self._read_header()

    def _read_header(self):
        header = self.data[self.header_at:self.header_at + 1024]
        if header[:8] != b"cxsparse" or not _checksum_is_right(header, 36):
            raise Unreadable(f"{self.path}: no header at {self.header_at:#x}")
        self.table_at, = struct.unpack_from(">Q", header, 16)
        self.entries, self.block = struct.unpack_from(">II", header, 28)
        self.parent_id = bytes(header[40:56])
        self.bitmap = -(-(self.block // SECTOR // 8) // SECTOR) * SECTOR
        self.ways = []
        for slot in range(8):
            code, _, length, _, offset = struct.unpack_from(">4sIIIQ", header, 576 + 24 * slot)
            if code in (b"W2ru", b"W2ku"):
                text = self.data[offset:offset + length].decode("utf-16-le")
                self.ways.append(text.replace("\\", "/"))

    def parent(self):
        """The path of the parent: the first file with the recorded identity where the locators lead."""
        for way in self.ways:
            path = os.path.join(os.path.dirname(self.path), way)
            if os.path.isfile(path) and Image(path).id == self.parent_id:
                return path
        raise Unreadable(f"{self.path}: no parent at {self.ways}")

    def _entry(self, index):
        return struct.unpack_from(">I", self.data, self.table_at + 4 * index)[0]

    def read(self, depth=0):
        """The whole disk."""
        if depth > 64:
            raise Unreadable(f"{self.path}: a circle")
        if self.kind == 2:
            return bytes(self.data[:self.size])
        below = Image(self.parent()).read(depth + 1) if self.kind == 4 else b""
        disk = bytearray(below[:self.size].ljust(self.size, b"\0"))
        for index in range(min(self.entries, -(-self.size // self.block))):
            entry = self._entry(index)
            if entry != UNUSED:
                self._read_block(index, entry * SECTOR, disk)
        return bytes(disk)

    def _read_block(self, index, at, disk):
        bits = self.data[at:at + self.bitmap]
        start, stored = index * self.block, at + self.bitmap
        count = min(self.block, self.size - start) // SECTOR
        if len(self.data) < stored + count * SECTOR:
            raise Unreadable(f"{self.path}: block {index} ends behind the file")
        for sector in range(count):
            if self.kind == 3 or bits[sector // 8] & (0x80 >> sector % 8):
                source = stored + sector * SECTOR
                to = start + sector * SECTOR
                disk[to:to + SECTOR] = self.data[source:source + SECTOR]

    def write(self, offset, data):
        """Writes whole sectors, and the file."""
        for done in range(0, len(data), SECTOR):
            self._write_sector(offset + done, data[done:done + SECTOR])
        with open(self.path, "r+b") as file:
            file.write(self.data)
            file.truncate()

    def _write_sector(self, offset, sector):
        if self.kind == 2:
            self.data[offset:offset + SECTOR] = sector
            return
        index, within = divmod(offset, self.block)
        entry = self._entry(index)
        if entry == UNUSED:
            end = len(self.data) - SECTOR
            self.data[end:] = bytes(self.bitmap + self.block) + self.footer
            entry = end // SECTOR
            struct.pack_into(">I", self.data, self.table_at + 4 * index, entry)
            if self.kind == 3:
                self.data[end:end + self.bitmap] = b"\xff" * self.bitmap
        at, number = entry * SECTOR, within // SECTOR
        self.data[at + number // 8] |= 0x80 >> number % 8
        to = at + self.bitmap + within
        self.data[to:to + SECTOR] = sector


def read(path):
    """The whole disk at `path`."""
    return Image(path).read()
