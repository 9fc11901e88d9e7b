"""A forward-only position in a foreign binary file that hands out nothing from beyond the file's end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from modelyard.errors import ModelRefused

# What a hostile header may cost us: time (the largest real ones are some 20 MiB) and memory.
MAX_HEADER_BYTES = 64 << 20
MAX_KEPT_BYTES = 16 << 20
WINDOW_BYTES = 256 << 10

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


@dataclass(slots=True)
class Cursor:
    """Reads little-endian numbers and text through a small window. Refusals call the file `name`."""

    file: BinaryIO
    file_bytes: int
    name: str
    window: bytes = b""
    window_start: int = 0
    index: int = 0
    kept_bytes: int = 0

    @property
    def at(self) -> int:
        return self.window_start + self.index

    def refuse(self, found: str, *, expected: str, at: int | None = None, hint: str = "") -> NoReturn:
        where = self.at if at is None else at
        raise ModelRefused(
            f"{self.name}: at byte {where}: {found}; expected {expected}",
            hint=hint or "the file is damaged or was made to mislead: fetch it again from a source that you trust",
        )

    def require(self, size: int, what: str) -> None:
        """Refuse if `size` more bytes do not lie inside the file."""
        if size > self.file_bytes - self.at:
            self.refuse(
                f"{what} takes {size} bytes but the file ends at byte {self.file_bytes}",
                expected=f"at most {self.file_bytes - self.at} bytes",
                hint="the file is cut short or damaged: fetch it again",
            )
        if self.at + size > MAX_HEADER_BYTES:
            self.refuse(f"{what} takes {size} bytes", expected=f"a header of at most {MAX_HEADER_BYTES} bytes")

    def keep(self, size: int, what: str) -> None:
        """Count what will be held in memory."""
        self.kept_bytes += size
        if self.kept_bytes > MAX_KEPT_BYTES:
            self.refuse(f"{what} brings the metadata to {self.kept_bytes} bytes", expected=f"at most {MAX_KEPT_BYTES}")

    def need(self, size: int, what: str) -> int:
        """Make `size` bytes available in the window; their index there. `size` is small or already limited."""
        self.require(size, what)
        if self.index + size > len(self.window):
            self._refill(size)
            if len(self.window) < size:
                self.refuse(f"{what} could not be read", expected="a file that does not shrink while it is read")
        return self.index

    def _refill(self, size: int) -> None:
        self.window_start, self.index = self.at, 0
        self.file.seek(self.window_start)
        wanted = min(max(size, WINDOW_BYTES), self.file_bytes - self.window_start)
        parts: list[bytes] = []
        while wanted > 0 and (part := self.file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self.window = b"".join(parts)

    def scalar(self, layout: struct.Struct, what: str) -> int | float:
        index = self.need(layout.size, what)
        value: int | float = layout.unpack_from(self.window, index)[0]
        self.index += layout.size
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar(U32, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(U64, what))

    def text(self, what: str, limit: int) -> str:
        start = self.at
        size = self.u64(f"the length of {what}")
        self.require(size, what)
        if size > limit:
            self.refuse(f"{what} is {size} bytes long", expected=f"at most {limit}", at=start)
        self.keep(size, what)
        index = self.need(size, what)
        self.index += size
        try:
            return str(self.window[index : index + size], "utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8", expected="text", at=start)

    def skip(self, size: int, what: str) -> None:
        self.require(size, what)
        if self.index + size <= len(self.window):
            self.index += size
        else:
            self.window_start, self.window, self.index = self.at + size, b"", 0

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings, checking each length. The inner loop stays inside the window, for speed."""
        unpack = U64.unpack_from
        while count:
            window, index, end = self.window, self.index, len(self.window)
            while count and index + 8 <= end:
                after: int = index + 8 + unpack(window, index)[0]
                if after > end:
                    break
                index = after
                count -= 1
            self.index = index
            if count:
                self.skip(self.u64(f"the length of a string in {what}"), f"a string in {what}")
                count -= 1
