"""How many samples the packets of a Vorbis or Opus stream hold, against what the pages of its Ogg file say.

A page says at which sample its last packet ends (its granule position). Encoders and programs that cut without
decoding get that wrong: they begin above 0 or below, or jump. The packets tell their lengths themselves: Opus in the
first byte (RFC 6716, 3.1), Vorbis by the size of its block (Vorbis I specification, 4.3), which overlaps the last one.
"""

from __future__ import annotations

from collections.abc import Iterator

_CONTINUED, _LAST = 1, 4  # flags of a page
_HEADER = 1 << 20  # bytes of a header that are looked at
_LONGEST = 5760  # samples of an Opus packet, at 48 kHz
_MODE = 41  # bits of a mode of Vorbis: block, window (16), transform (16), mapping (8)


class Stream:
    """One stream, page by page.

    Attributes: `rate` of its positions, Hz; `skip`, samples at its beginning that are not heard; `start`, the position
    of its first sample by its pages; `held`, samples in its packets, without what the last page cuts off their end;
    `even`: its pages count as its packets do; `jump`, the longest time, in samples, that no packet fills.
    """

    def __init__(self, head: bytes) -> None:
        """`head`: the first packet, which `begins` knows."""
        self.opus = head[:8] == b"OpusHead"
        self.rate = 48_000 if self.opus else int.from_bytes(head[12:16], "little")
        self.skip = int.from_bytes(head[10:12], "little") if self.opus else 0
        self.start: int | None = None
        self.held, self.even, self.jump = 0, True, 0
        self._blocks = (0, 0) if self.opus else (1 << (head[28] & 15), 1 << (head[28] >> 4))
        self._modes: list[int] = []
        self._headers = 1 if self.opus else 2  # to come
        self._begun, self._position, self._block = b"", 0, 0

    @staticmethod
    def begins(head: bytes) -> bool:
        return (head[:8] == b"OpusHead" and len(head) >= 19) or (
            head[:7] == b"\x01vorbis" and len(head) >= 30 and any(head[12:16])
        )

    @property
    def length(self) -> int:
        """Samples that are heard."""
        return max(0, self.held - self.skip)

    @property
    def plain(self) -> bool:
        """Whether libsndfile reads all of it in its place: of an Opus that begins above 0, it plays the `skip`."""
        return self.even and (self.start == 0 or (not self.opus and (self.start or 0) > 0))

    def add(self, flags: int, granule: int, table: bytes, body: bytes) -> bool:
        """Take the next page; returns whether sound ends on it."""
        lengths = [self._length(packet) for packet in self._packets(flags, table, body)]
        lengths = [length for length in lengths if length is not None]
        if not lengths:
            return False
        step, last = sum(lengths), bool(flags & _LAST)
        if self.start is None:
            self.start = self._position = 0 if last and granule < step else granule - step
        beyond = granule - self._position - step
        if last and -step <= beyond <= 0:
            step += beyond
        elif beyond:
            self.even, self.jump = False, max(self.jump, beyond)
        self.held, self._position = self.held + step, granule
        return True

    def _packets(self, flags: int, table: bytes, body: bytes) -> Iterator[bytes]:
        """The beginnings of the packets that end on a page."""
        lost = flags & _CONTINUED and not self._begun
        if not flags & _CONTINUED:
            self._begun = b""
        at = size = 0
        for lace in table:
            size += lace
            if lace < 255:
                packet, self._begun = self._begun + body[at : at + size], b""
                if not lost:
                    yield packet
                at, size, lost = at + size, 0, 0
        if size and not lost:
            self._begun = (self._begun + body[at : at + size])[: _HEADER if self._headers else 2]

    def _length(self, packet: bytes) -> int | None:
        """Samples that a packet adds; None: it is a header."""
        if self._headers:
            self._headers -= 1
            if not self._headers and not self.opus:
                self._modes = _modes(packet)
            return None
        if not packet:
            return 0
        if self.opus:
            return _opus(packet)
        mode = packet[0] >> 1 & (1 << (len(self._modes) - 1).bit_length()) - 1 if self._modes else 0
        if packet[0] & 1 or mode >= len(self._modes):
            return 0
        before, self._block = self._block, self._blocks[self._modes[mode]]
        return (before + self._block) // 4 if before else 0


def _opus(packet: bytes) -> int:
    """Samples of an Opus packet at 48 kHz (RFC 6716, 3.1 and 3.2)."""
    config = packet[0] >> 3
    frame = (480, 960, 1920, 2880)[config & 3] if config < 12 else 480 << (config & 1) if config < 16 else 0
    frame = frame or 120 << (config & 3)
    count = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[packet[0] & 3]
    return frame * count if frame * count <= _LONGEST else 0


def _modes(setup: bytes) -> list[int]:
    """Which size of block each mode has, 0 or 1. They end the setup header, before a bit that is 1 and zeros, and their
    number, less 1, stands before them in 6 bits: it is found backwards, without reading the codebooks."""
    bits, flags, found = int.from_bytes(setup, "little"), [], []
    at = bits.bit_length() - 1
    while at >= _MODE + 6 and len(flags) < 64:
        at -= _MODE
        mode = bits >> at & (1 << _MODE) - 1
        if mode >> 1 & 0xFFFF_FFFF or mode >> 33 > 63:
            break
        flags.insert(0, mode & 1)
        if bits >> at - 6 & 63 == len(flags) - 1:
            found = list(flags)
    return found
