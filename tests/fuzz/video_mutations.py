"""What damage, malice and bad luck make of a video file: bytes in, bytes out, each choice from one seeded generator."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from tests.fuzz.video_boxes import BOX_MUTATIONS
from tests.fuzz.video_elements import ELEMENT_MUTATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    Mutation = Callable[[Random, bytes], bytes]

HEADER = 600
"""Bytes at a file's beginning that are rich in structure."""


def _somewhere(rng: Random, content: bytes, most: int) -> tuple[int, int]:
    """Choose a span of at most so many bytes."""
    begin = rng.randrange(len(content))
    return begin, min(len(content), begin + rng.randint(1, most))


def _overwrite(rng: Random, content: bytes, begin: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16, 64])):
        at = rng.randrange(begin, end)
        changed[at] = rng.choice([rng.randrange(256), changed[at] ^ 1 << rng.randrange(8), 0, 0x7F, 0x80, 0xFF])
    return bytes(changed)


def header_bytes(rng: Random, content: bytes) -> bytes:
    return _overwrite(rng, content, 0, min(HEADER, len(content)))


def tail_bytes(rng: Random, content: bytes) -> bytes:
    """Change an index, which many containers have at their end."""
    return _overwrite(rng, content, max(0, len(content) - HEADER), len(content))


def packet_bytes(rng: Random, content: bytes) -> bytes:
    return _overwrite(rng, content, len(content) // 4, len(content))


def number(rng: Random, content: bytes) -> bytes:
    """Put an extreme number where any may be, in one of the widths and orders that formats use."""
    form, value = rng.choice([(">H", 0xFFFF), (">I", 2**31), (">I", 2**32 - 1), (">i", -1), ("<I", 2**31 - 1),
                              (">Q", 2**63), ("<Q", 2**64 - 1), (">I", 0), ("<I", 0x10000)])  # fmt: skip
    at = rng.randrange(min(len(content), rng.choice([HEADER, len(content)])))
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def truncated(rng: Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def beheaded(rng: Random, content: bytes) -> bytes:
    return content[rng.randrange(1, len(content)) :]


def inserted(rng: Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice([1, 3, 16, 188, 4096])) + content[at:]


def removed(rng: Random, content: bytes) -> bytes:
    begin, end = _somewhere(rng, content, 2048)
    return content[:begin] + content[end:]


def wiped(rng: Random, content: bytes) -> bytes:
    begin, end = _somewhere(rng, content, 4096)
    return content[:begin] + rng.choice([b"\0", b"\xff"]) * (end - begin) + content[end:]


def duplicated(rng: Random, content: bytes) -> bytes:
    begin, end = _somewhere(rng, content, 2048)
    return content[:end] + content[begin:end] * rng.choice([1, 1, 2, 200]) + content[end:]


def exchanged(rng: Random, content: bytes) -> bytes:
    """Let two pieces change places, as a download in pieces may."""
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    a, b, c, d = cuts
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


ANYWHERE: Sequence[Mutation] = (
    header_bytes, tail_bytes, packet_bytes, number, truncated, beheaded, inserted, removed, wiped, duplicated,
    exchanged,
)  # fmt: skip


def nothing(rng: Random) -> bytes:
    return bytes(rng.choice([0, 1, 7, 4096, 100_000]))


def noise(rng: Random) -> bytes:
    magic = rng.choice(
        [b"", b"\0\0\0\x20ftypisom", b"\x1aE\xdf\xa3", b"RIFF\xff\xff\xff\xffAVI LIST", b"GIF89a", b"FLV\1"]
    )
    return magic + rng.randbytes(rng.choice([1, 64, 5000]))


def gif_bomb(rng: Random) -> bytes:
    width, height = rng.choice([(32_768, 32_768), (65_535, 65_535), (65_535, 1), (0, 0)])
    screen = struct.pack("<HH", width, height)
    frame = b",\0\0\0\0" + screen + b"\0\x02\x02D\x01\0"
    return b"GIF89a" + screen + b"\x80\0\0" + bytes(3) + b"\xff" * 3 + frame * rng.choice([1, 1000]) + b";"


def png_bomb(rng: Random) -> bytes:
    """Make an animated PNG that claims a huge picture and 2**31 frames; its data are zeros without end."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    width, height = rng.choice([(32_768, 32_768), (2**31 - 1, 1), (8_192, 4_352), (0, 5)])
    header = struct.pack(">IIBBBBB", width, height, 8, rng.choice([0, 2, 6]), 0, 0, 0)
    control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 10, 0, 0)
    body = zlib.compress(bytes(1 << 22), 9)
    animation = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + animation + chunk(b"fcTL", control) + chunk(b"IDAT", body)


def y4m_bomb(rng: Random) -> bytes:
    width, height = rng.choice([(32_768, 32_768), (2_147_483_647, 2), (16, 16)])
    rate = rng.choice([b"25:1", b"2147483647:1", b"1:2147483647", b"0:0"])
    return b"YUV4MPEG2 W%d H%d F%s C420jpeg\nFRAME\n" % (width, height, rate) + bytes(384)


def ivf_bomb(rng: Random) -> bytes:
    codec = rng.choice([b"VP80", b"VP90", b"AV01"])
    head = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, codec, 32_768, 32_768, rng.choice([0, 30]), 1, 2**31 - 1, 0)
    frames = (struct.pack("<IQ", rng.choice([64, 2**31 - 1]), at << 40) + rng.randbytes(64) for at in range(50))
    return head + b"".join(frames)


def h264_bomb(rng: Random) -> bytes:
    """Make an H.264 stream of 32,768 x 32,768 pixels, or 65,536 reference frames, with nothing in its pictures."""
    side = rng.choice([2_048, 512])  # in macroblocks of 16 x 16
    bits = _Bits()
    bits.fixed(8, 100).fixed(8, 0).fixed(8, 62)  # High profile, level 6.2
    bits.golomb(0).golomb(1).golomb(0).golomb(0).fixed(1, 0).fixed(1, 0)  # id, 4:2:0, 8 bits, no scaling
    bits.golomb(0).golomb(2)  # frame numbers of 4 bits, pictures in the order of decoding
    bits.golomb(rng.choice([1, 16, 65_535])).fixed(1, 0)  # reference frames
    bits.golomb(side - 1).golomb(side - 1).fixed(1, 1).fixed(1, 1).fixed(1, 0).fixed(1, 0).fixed(1, 1)
    picture = _Bits().golomb(0).golomb(0).fixed(1, 0).fixed(1, 0).golomb(0).golomb(0).golomb(0)
    picture.fixed(1, 0).fixed(2, 0).golomb(0).golomb(0).golomb(0).fixed(1, 1).fixed(1, 0).fixed(1, 0).fixed(1, 1)
    units = [b"\x67" + bits.bytes(), b"\x68" + picture.bytes(), *[b"\x65\x88\x84" + rng.randbytes(40)] * 20]
    return b"".join(b"\0\0\0\1" + unit for unit in units)


class _Bits:
    """A string of bits, as H.264's parameter sets are written."""

    def __init__(self) -> None:
        self._bits = ""

    def fixed(self, width: int, value: int) -> _Bits:
        self._bits += f"{value:0{width}b}"
        return self

    def golomb(self, value: int) -> _Bits:
        """Append an unsigned number in the exponential Golomb code."""
        digits = f"{value + 1:b}"
        return self.fixed(2 * len(digits) - 1, value + 1)

    def bytes(self) -> bytes:
        padded = self._bits + "0" * (-len(self._bits) % 8)
        return int(padded, 2).to_bytes(len(padded) // 8, "big")


FROM_NOTHING: Sequence[Callable[[Random], bytes]] = (
    nothing, noise, gif_bomb, png_bomb, y4m_bomb, ivf_bomb, h264_bomb,
)  # fmt: skip


def mutated_video(rng: Random, bases: Mapping[str, bytes]) -> tuple[str, str, bytes]:
    """Make one file: the mutation's name, the file's ending, and its content."""
    if rng.random() < 0.12:
        # One in eight owes nothing to a real file.
        make = rng.choice(FROM_NOTHING)
        return make.__name__, "mp4", make(rng)
    name = rng.choice(sorted(bases))
    content, ending = bases[name], name.rpartition(".")[2]
    kind = rng.random()
    if kind < 0.04:
        return "whole", ending, content
    if kind < 0.08:
        return "concatenated", ending, content + bases[rng.choice(sorted(bases))]
    own = {"mp4": BOX_MUTATIONS, "mov": BOX_MUTATIONS, "mkv": ELEMENT_MUTATIONS, "webm": ELEMENT_MUTATIONS}.get(ending)
    mutation = rng.choice(own if own and rng.random() < 0.6 else ANYWHERE)
    content = mutation(rng, content)
    if content and rng.random() < 0.2:
        content = rng.choice(ANYWHERE)(rng, content)
    return mutation.__name__, ending, content
