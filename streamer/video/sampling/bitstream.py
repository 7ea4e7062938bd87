"""Classifies encoded frames by their own syntax: whether decoding may start at one, and whether others depend on it.

Containers' key-frame flags are not used, because they are wrong too often. For each codec, the state that a decoder
keeps from one frame to the next determines at which frames decoding may start (START), and which frames may be skipped:

- H.264: START is an IDR picture (NAL type 5), which resets all references. Recovery points and other I pictures are
  not used. No other picture depends on one whose ``nal_ref_idc`` is 0.
- HEVC: START is an IDR, CRA or BLA picture. RASL pictures, which follow a CRA picture but refer to frames before it,
  are LEADING: they need the START before the last one. No other picture depends on a sub-layer non-reference picture of
  the highest temporal layer; a higher layer may depend on one of a lower layer.
- VP8, VP9: START is a key frame, which resets all reference frames and contexts. No frame is skipped: even one to which
  no other refers may change probabilities, segment maps and motion vectors.
- AV1: START is a shown key frame with its sequence header. No frame is skipped: all state belongs to reference frames,
  so unreferenced frames could be, but the fields that tell the references are near the end of the frame header.
- MPEG-4 part 2, MPEG-1, MPEG-2: START is an I picture (in MPEG-1 and 2 with a sequence header). B pictures that follow
  it in decoding order, but precede the next I or P picture, are LEADING. No other picture depends on a B picture.
- Motion JPEG, ProRes and other codecs of independent pictures: START is each picture, in Motion JPEG only if it
  contains its own tables.
- GIF, APNG, animated WebP and all other codecs: no START, because frames are painted over the previous one.

Headers that apply to later frames (parameter sets, sequence and VOL headers) must not change within a stream. If one
appears that was not present at the first frame, no classification of the stream's frames is used.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Kind(IntFlag):
    """Properties of one encoded frame that its syntax proves; 0 claims nothing."""

    PLAIN = 0
    START = 1
    """Decoding may start here: later frames do not depend on earlier ones, except for LEADING frames."""
    LEADING = 2
    """It depends on frames before the last START."""
    DROPPABLE = 4
    """No other frame depends on it."""
    HIDDEN = 8
    """It is not shown, because an edit list removes it."""


_DISPLAY_ORIENTATION = 47
"""The message that turns the picture (ISO/IEC 14496-10, section D.1.27; ISO/IEC 23008-2, section D.2.17)."""

ALL = Kind.START | Kind.LEADING | Kind.DROPPABLE | Kind.HIDDEN


class Reader(Protocol):
    """Classifies the encoded frames of one stream, which it must be given in decoding order."""

    valid: Kind
    """The properties that are valid for all frames so far; later frames of the stream may invalidate some."""
    oriented: bool
    """Whether a frame so far turns the picture from itself on, until another one says otherwise."""

    def kind(self, data: bytes) -> Kind:
        """Return the properties of one encoded frame, without HIDDEN."""


def reader(codec: str, extradata: bytes | None) -> Reader | None:
    """Return the reader for a codec by FFmpeg's name; None if there is none for this codec."""
    make = _READERS.get(codec)
    return make(extradata or b"") if make else None


class _Headers:
    """Verifies that no headers appear besides those of the first frame."""

    def __init__(self) -> None:
        self.valid = ALL
        self.oriented = False
        self._known: frozenset[bytes] | None = None

    def _see(self, headers: frozenset[bytes]) -> None:
        # If the first frame has none, the decoder uses the container's copy from the beginning.
        self._known = headers if self._known is None else self._known
        if not headers <= self._known:
            self._invalidate()

    def _invalidate(self) -> None:
        self.valid = Kind.HIDDEN


class _Nals(_Headers):
    """Codecs of network abstraction layer units, each preceded by a start code or by its length.

    A message (SEI) may turn the picture from its frame on. Where that is not repeated at each START, no frame is one.
    """

    def __init__(self, length_size: int) -> None:
        super().__init__()
        self._length_size = length_size  # in bytes; 0: start codes
        self._is_cancelled = False

    def _turn(self, messages: Sequence[memoryview], found: Kind) -> None:
        """Note whether a frame with these supplemental messages turns the picture."""
        turns = [payload for each in messages for kind, payload in _payloads(each) if kind == _DISPLAY_ORIENTATION]
        is_start = bool(found & Kind.START)
        if (turns and not is_start) or (is_start and self.oriented and not turns):
            self.valid &= ~Kind.START
        # A decoder does not say where a turn is cancelled: then each frame is as its own message says.
        self._is_cancelled |= any(payload[:1] >= b"\x80" for payload in turns)
        self.oriented = (self.oriented or bool(turns)) and not self._is_cancelled

    def _units(self, data: bytes) -> Iterator[memoryview]:
        view = memoryview(data)
        size = self._length_size
        at = 0
        while size and at + size < len(data):
            end = at + size + int.from_bytes(view[at : at + size])
            if end > len(data):
                self._invalidate()
            yield view[at + size : end]
            at = end
        if not size:
            for code, end in _start_codes(data):
                yield view[code:end]


class _H264(_Nals):
    """ISO/IEC 14496-10, section 7.3.1."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__((extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0)  # noqa: PLR2004

    def kind(self, data: bytes) -> Kind:
        headers: set[bytes] = set()
        messages: list[memoryview] = []
        slices: list[int] = []  # first bytes of slices; a packet may hold two fields, one of which refers to the other
        for unit in self._units(data):
            unit_type = unit[0] & 31 if unit else 0
            if unit_type in {7, 8}:  # sequence and picture parameter sets
                headers.add(bytes(unit).rstrip(b"\0"))
            elif unit_type == 6 and not slices:  # noqa: PLR2004 - supplemental messages before the picture
                messages.append(unit[1:])
            elif 1 <= unit_type <= 5:  # noqa: PLR2004
                slices.append(unit[0])
        self._see(frozenset(headers))
        found = Kind.START if slices and slices[0] & 31 == 5 else Kind.PLAIN  # noqa: PLR2004 - IDR
        self._turn(messages, found)
        return found if not slices or any(first >> 5 & 3 for first in slices) else found | Kind.DROPPABLE


class _Hevc(_Nals):
    """ISO/IEC 23008-2, sections 7.3.1 and 7.4.2.2."""

    def __init__(self, extradata: bytes) -> None:
        framed = len(extradata) > 21 and extradata[:3] not in {b"\0\0\0", b"\0\0\1"}  # noqa: PLR2004
        super().__init__((extradata[21] & 3) + 1 if framed else 0)
        self._layer: int | None = None

    def kind(self, data: bytes) -> Kind:
        headers: set[bytes] = set()
        messages: list[memoryview] = []
        found = Kind.PLAIN
        for unit in self._units(data):
            if len(unit) < 2 or unit[0] & 1 or unit[1] >> 3:  # noqa: PLR2004 - of an additional view or quality layer
                continue
            unit_type, layer = unit[0] >> 1 & 63, unit[1] & 7
            if unit_type in {32, 33, 34}:  # video, sequence and picture parameter sets
                headers.add(bytes(unit).rstrip(b"\0"))
            elif unit_type == 39:  # noqa: PLR2004 - supplemental messages before the picture
                messages.append(unit[2:])
            elif unit_type < 32:  # noqa: PLR2004 - a picture
                found = _HEVC_PICTURES.get(unit_type, Kind.PLAIN)
                self._layer = layer if self._layer is None else self._layer
                if layer != self._layer:
                    self.valid &= ~Kind.DROPPABLE
                break
        self._see(frozenset(headers))
        self._turn(messages, found)
        return found


_HEVC_PICTURES = {
    **dict.fromkeys((0, 2, 4, 6, 10, 12, 14), Kind.DROPPABLE),  # sub-layer non-reference
    8: Kind.LEADING | Kind.DROPPABLE,  # RASL_N
    9: Kind.LEADING,  # RASL_R
    **dict.fromkeys((16, 17, 18, 19, 20, 21), Kind.START),  # BLA, IDR, CRA
}


class _Mpeg(_Headers):
    """The common part of the MPEG codecs before H.264: start codes, and I, P and B pictures."""

    def __init__(self) -> None:
        super().__init__()
        self._start_was_last = False  # whether the last I or P picture was a START

    def _place(self, letter: str, *, start: bool) -> Kind:
        if letter == "B":
            return Kind.DROPPABLE | (Kind.LEADING if self._start_was_last else Kind.PLAIN)
        self._start_was_last = start
        return Kind.START if start else Kind.PLAIN


class _Mpeg4(_Mpeg):
    """ISO/IEC 14496-2, section 6.2."""

    def kind(self, data: bytes) -> Kind:
        headers: set[bytes] = set()
        found = Kind.PLAIN
        pictures = 0
        for at, end in _start_codes(data):
            code = data[at] if at < end else -1
            if code in {0xB0, 0xB5} or 0x20 <= code <= 0x2F:  # noqa: PLR2004 - object sequence, object, layer
                headers.add(data[at:end].rstrip(b"\0"))
            elif code == 0xB6 and at + 1 < end:  # noqa: PLR2004 - a picture
                letter = "IPBS"[data[at + 1] >> 6]
                found = self._place(letter, start=letter == "I")
                pictures += 1
        self._see(frozenset(headers))
        if pictures > 1:  # DivX's packed B pictures
            self._invalidate()
        return found


class _Mpeg2(_Mpeg):
    """ISO/IEC 13818-2, section 6.2, and 11172-2."""

    def kind(self, data: bytes) -> Kind:
        headers: set[bytes] = set()
        found = Kind.PLAIN
        picture = False
        for at, end in _start_codes(data):
            code = data[at] if at < end else -1
            if code in {0xB3, 0xB5} and not picture:  # sequence header and its extensions
                headers.add(data[at:end].rstrip(b"\0"))
            elif code == 0 and not picture and at + 2 < end:
                letter = "?IPBD???"[data[at + 2] >> 3 & 7]
                found = self._place(letter, start=letter == "I" and bool(headers))
                picture = True
            elif code == 0xB5 and at + 1 < end and data[at + 1] >> 4 == 3:  # noqa: PLR2004 - new quantiser matrices
                self._invalidate()
            elif 0 < code < 0xB0:  # noqa: PLR2004 - slices
                break
        self._see(frozenset(headers))
        return found


class _MotionJpeg:
    """ISO/IEC 10918-1, annex B. Tables apply until they are redefined."""

    oriented = False

    def __init__(self) -> None:
        self.valid = ALL
        self._tables: frozenset[tuple[int, int]] | None = None

    def kind(self, data: bytes) -> Kind:
        tables = frozenset(_jpeg_tables(data))
        self._tables = tables if self._tables is None else self._tables
        if not tables <= self._tables:
            self.valid = Kind.HIDDEN
        return Kind.START if data[:2] == b"\xff\xd8" and tables == self._tables else Kind.PLAIN


class _Independent:
    """Codecs for which only START is used, and a frame's own bytes prove it."""

    oriented = False

    def __init__(self, is_start: Callable[[bytes], bool]) -> None:
        self.valid = ALL
        self._is_start = is_start

    def kind(self, data: bytes) -> Kind:
        return Kind.START if self._is_start(data) else Kind.PLAIN


def _start_codes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each unit that follows a start code, 00 00 01."""
    at = data.find(b"\0\0\1")
    while at >= 0:
        following = data.find(b"\0\0\1", at + 3)
        yield at + 3, following if following >= 0 else len(data)
        at = following


def _payloads(messages: memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of supplemental messages (ISO/IEC 14496-10, section 7.3.2.3.1)."""
    data = bytes(messages).replace(b"\0\0\3", b"\0\0")
    at = 0
    while at + 2 < len(data):
        numbers = [0, 0]  # type and size, each a sum of bytes up to the first that is not 255
        for each in (0, 1):
            while at < len(data) and data[at] == 255:  # noqa: PLR2004
                numbers[each] += data[at]
                at += 1
            numbers[each] += data[at] if at < len(data) else 0
            at += 1
        yield numbers[0], data[at : at + numbers[1]]
        at += numbers[1]


def _jpeg_tables(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, number) of each quantisation and Huffman table before the picture's first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:  # noqa: PLR2004
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        at += 4
        while marker in {0xDB, 0xC4} and at + 17 <= min(end, len(data)):
            yield marker, data[at]
            at += 17 + sum(data[at + 1 : at + 17]) if marker == 0xC4 else 65 + 64 * (data[at] >> 4)  # noqa: PLR2004
        if marker == 0xDA:  # noqa: PLR2004 - start of scan
            return
        at = end


def _is_vp8_key(data: bytes) -> bool:
    """RFC 6386, section 9.1."""
    return bool(data) and not data[0] & 1


def _is_vp9_key(data: bytes) -> bool:
    """VP9 bitstream specification, section 6.2: marker, profile, show_existing_frame, frame_type."""
    if not data or data[0] >> 6 != 2:  # noqa: PLR2004
        return False
    profile_3 = data[0] >> 4 & 3 == 3  # noqa: PLR2004 - a reserved bit follows
    return not data[0] & (0b0110 if profile_3 else 0b1100)


def _is_av1_key(data: bytes) -> bool:
    """AV1 bitstream specification, sections 5.3 and 5.9: the first frame is a shown key frame with its sequence."""
    at = 0
    sequence = False
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if extended else 1
        size = 0
        for shift in range(0, 56, 7) if sized else ():
            byte = data[at] if at < len(data) else 0
            at += 1
            size |= (byte & 127) << shift
            if byte < 128:  # noqa: PLR2004
                break
        if kind in {3, 6}:  # show_existing_frame 0, frame_type 00, show_frame 1
            return sequence and at < len(data) and data[at] >> 4 == 1
        sequence |= kind == 1
        at = at + size if sized else len(data)
    return False


_READERS: dict[str, Callable[[bytes], Reader]] = {
    "h264": _H264,
    "hevc": _Hevc,
    "mpeg4": lambda _: _Mpeg4(),
    **dict.fromkeys(("mpeg1video", "mpeg2video"), lambda _: _Mpeg2()),
    "vp8": lambda _: _Independent(_is_vp8_key),
    "vp9": lambda _: _Independent(_is_vp9_key),
    "av1": lambda _: _Independent(_is_av1_key),
    "mjpeg": lambda _: _MotionJpeg(),
    **dict.fromkeys(("prores", "dnxhd", "rawvideo", "v210", "png", "dvvideo"), lambda _: _Independent(bool)),
}
"""FFmpeg's name of a codec -> constructor of its reader, which takes the stream's extradata."""
