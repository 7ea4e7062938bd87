"""Hypothesis strategies for input records: valid events of both topics, and what senders make of them.

An event is kept as a tree whose leaves are raw JSON text, so that it can be written in ways that no JSON library
writes: repeated keys, numbers beyond every type, lone surrogates, nesting without end. A record is an event after up
to three changes of its tree, then perhaps in another encoding or with damaged bytes.

Every choice is read from a :class:`Tape` of bytes, which is all that Hypothesis draws: twenty draws a record would take
ten times as long as all that is done with it. Zero bytes choose what is simplest, so Hypothesis can still shrink.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from streamer.events import (
    MAX_ENGINE_CHARS,
    MAX_EVENT_BYTES,
    MAX_ID_BYTES,
    MAX_QUERY_CHARS,
    MAX_RESULTS,
    MAX_URI_CHARS,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import SearchStrategy

    Header = tuple[str, bytes | None]
    Event = Callable[["Tape"], tuple[str, Any]]

T = TypeVar("T")


class Tape:
    """A string of choices; those after its end are all the first one."""

    def __init__(self, choices: bytes) -> None:
        self._choices = choices

    def take(self, count: int) -> bytes:
        """Read the next bytes, zeros beyond the end."""
        taken, self._choices = self._choices[:count], self._choices[count:]
        return taken.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """Choose a whole number from 0 to ``limit`` - 1, of 65,536 at most."""
        return int.from_bytes(self.take(1 if limit <= 1 << 8 else 2)) % limit

    def pick(self, options: Sequence[T]) -> T:
        """Choose one of several."""
        return options[self.below(len(options))]

    def coin(self) -> bool:
        """Choose yes or no."""
        return bool(self.below(2))

    def text(self, count: int) -> str:
        """Choose up to ``count`` characters of all planes, without lone surrogates."""
        return self.take(2 * count).decode("utf-16-le", errors="ignore")


class Members(list[list[Any]]):
    """A JSON object: [name, node] pairs in their order, where a name is raw JSON text and may come twice.

    A node is one of these, a list of nodes, or a leaf of raw JSON text (bytes).
    """


@dataclass(frozen=True, slots=True)
class Mutated:
    """One record as some sender might write it."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


TEXTS = [
    "a red disc", "赤い自転車に乗った男", "un lapin géant 🐇 — «drôle»", "👩\u200d👩\u200d👧", "e\u0301\u0302" * 9,
    "\u202eneddih", "\u3000\u00a0\u2003", "\ufeff", "\ufffd\uffff", "\x00", "\x1f\x7f\x85", "\\\"'/",
    "\U0010ffff\U000e0001", "a\nb\tc\r", "<script>", "%00%ff", "NaN", "null", "Ω" * 9, "",
]  # fmt: skip
BLANKS = ["", " ", "\t\n\r", "\u3000\u00a0\u2003", "\x1c\x85\u2028"]
NAMES = [
    b'"clip_id"', b'"CLIP_ID"', b'"\\u0063lip_id"', b'"score"', b'"query"', b'"query_id"', b'"uri"', b'"__proto__"',
    b'"\\u0000"', b'""', b'"\\ud800"', b"unquoted", b"7",
]  # fmt: skip
TIMES = [
    "2026-11-24T10:00:00Z", "2026-11-24t10:00:00.123456789z", "2026-11-24 10:00:00+14:00", "2026-11-24T10:00:00",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "1969-12-31T23:59:59.999999Z",
    "0000-01-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-06-30T23:59:60Z", "2026-11-24T24:00:00Z", "2026-11-24",
    "20261124T100000Z", "1790000000", "2026-11-24T10:00:00+24:00",
]  # fmt: skip
NUMBERS = [
    b"0", b"-0", b"-0.0", b"1", b"1.0", b"1e308", b"-1.7976931348623157e308", b"5e-324", b"1e-999", b"9007199254740993",
    b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809", b"1" + b"0" * 300, b"0." + b"1" * 5_000,
]  # fmt: skip
NO_FINITE_NUMBERS = [
    b"1e309", b"-1e999", b"1" + b"0" * 400, b"9" * 5_000, b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"nan",
]  # fmt: skip
NO_JSON = [
    b"01", b"+1", b".5", b"1.", b"0x10", b"1_000", b"", b",", b"/* */", b"'single'", b'"open', b'"\\ud800"',
    b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xff\xfe"', b'"\x00"', b'"\n"', b'"\\x41"', b'"\\u12"',
]  # fmt: skip
OF_OTHER_TYPES = [b"null", b"true", b"false", b"[]", b"{}", b'[""]', b'{"a":1,"a":2}', b'"1"', b"1"]


def quoted(text: str, *, ascii_only: bool = False) -> bytes:
    return json.dumps(text, ensure_ascii=ascii_only).encode(errors="surrogatepass")


def nested(depth: int, *, closed: bool = True) -> list[bytes]:
    """Nest arrays and objects, and the two in turn, ``depth`` deep."""
    kinds = [(b"[", b"", b"]"), (b'{"a":', b"1", b"}"), (b'[{"a":', b"[]", b"}]")]
    return [before * depth + core + (after * depth if closed else b"") for before, core, after in kinds]


def crowd(count: int, last: str = "last") -> bytes:
    """Write ``count`` candidates, the last one's id being ``last``."""
    ids = [f"c{index}" for index in range(count - 1)]
    return json.dumps([{"clip_id": clip_id, "score": 1} for clip_id in [*ids, last]]).encode()


_LIMITS = (MAX_ID_BYTES, MAX_ENGINE_CHARS, MAX_QUERY_CHARS, MAX_URI_CHARS)
LENGTHS = [
    quoted(char * (limit // per + more))
    for limit in _LIMITS
    for char, per in (("x", 1), ("é", 2), ("🐇", 4), ("\x00", 1))
    for more in (0, 1)
]
DEEP = [text for depth in (3, 250, 260, 1_020, 1_030) for text in nested(depth)]
BOTTOMLESS = [text for depth in (5_000, 100_000) for closed in (True, False) for text in nested(depth, closed=closed)]
HUGE = [
    crowd(MAX_RESULTS), crowd(MAX_RESULTS + 1), crowd(MAX_RESULTS, "c1"), crowd(400, "c398"),
    quoted("q" * (MAX_EVENT_BYTES - 400)), quoted("q" * MAX_EVENT_BYTES), b" " * 50_000 + b"1", b"7" * 500_000,
]  # fmt: skip

_TEXTS = [quoted(text, ascii_only=plain) for text in TEXTS for plain in (True, False)]
_TIMES = [quoted(text) for text in TIMES]
_NUMBERS = [*NUMBERS, *NO_FINITE_NUMBERS]
_KINDS_OF_ATOMS = [OF_OTHER_TYPES, OF_OTHER_TYPES, _NUMBERS, _TEXTS, _TIMES, LENGTHS, DEEP, NO_JSON, None]
_ODD_BY_NAME = {
    b'"query"': [*map(quoted, BLANKS * 3), *LENGTHS, *_TEXTS],
    b'"score"': _NUMBERS,
    b'"results"': [crowd(9), crowd(9, "c7"), *HUGE[:4]],
    b'"clip_id"': [b'"c1"', b'""', *LENGTHS],
    b'"query_id"': [b'"q1"', b'""', *LENGTHS],
    b'"issued_at"': _TIMES,
    b'"uploaded_at"': _TIMES,
    b'"attributes"': [*DEEP, *(b'{"a":[%s]}' % text for text in DEEP)],
}
"""What is odd for a field in particular: beside what is of the wrong type there."""


def atom(tape: Tape) -> bytes:
    """Choose raw JSON text, or nearly, to stand in the place of any node."""
    kind = tape.pick(_KINDS_OF_ATOMS)
    if kind is not None:
        return tape.pick(kind)
    if tape.coin():
        return quoted(tape.text(6))
    return json.dumps(*struct.unpack("<d", tape.take(8))).encode()


# -- events ------------------------------------------------------------------------------------------------------


def tree(value: object) -> Any:
    """Take a value of the usual JSON types apart."""
    if isinstance(value, dict):
        return Members([quoted(name), tree(child)] for name, child in value.items())
    if isinstance(value, list):
        return [tree(child) for child in value]
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


def written(node: Any) -> bytes:
    """Write a tree as JSON, or as what its leaves make of that."""
    if isinstance(node, Members):
        return b"{" + b",".join(name + b":" + written(child) for name, child in node) + b"}"
    if isinstance(node, list):
        return b"[" + b",".join(map(written, node)) + b"]"
    return bytes(node)


_IDS = ["q1", "clip-7", "漢" * 9, "a/b c%20?é", "-", "é" * (MAX_ID_BYTES // 2), "\x00\x01"]


def _identifier(tape: Tape) -> str:
    return (tape.text(5) if tape.coin() else "") or tape.pick(_IDS)


def queries(clip_ids: Sequence[str]) -> Event:
    """Make valid events of query.results over these clips: the id, and the tree."""

    def query(tape: Tape) -> tuple[str, Any]:
        query_id, first = _identifier(tape), tape.below(len(clip_ids))
        shown = [clip_ids[(first + rank) % len(clip_ids)] for rank in range(tape.below(4))]
        event: dict[str, object] = {
            "query_id": query_id,
            "query": tape.pick(TEXTS[:6]),
            "engine": "bm25-v3",
            "issued_at": tape.pick(TIMES[:3]),
            "results": [{"clip_id": clip_id, "score": 9.5 - 3 * rank} for rank, clip_id in enumerate(shown)],
        }
        if tape.coin():
            event |= {"user_key": "opaque", "page": {"of": ["unknown", "fields"]}}
        return query_id, tree(event)

    return query


def uploads(uris: Sequence[str]) -> Event:
    """Make valid events of clips.uploaded with these sources: the id, and the tree."""

    def upload(tape: Tape) -> tuple[str, Any]:
        clip_id = _identifier(tape)
        event: dict[str, Any] = {"clip_id": clip_id, "uri": tape.pick(uris), "uploaded_at": tape.pick(TIMES[:3])}
        if tape.coin():
            event["attributes"] = {"language": "ja", "more": [1, {"a": None}]}
        return clip_id, tree(event)

    return upload


# -- changes of the tree -----------------------------------------------------------------------------------------


def _slots(node: Any) -> list[tuple[Any, int]]:
    """List every place below ``node`` that holds another node: the parent and the position in it."""
    found = []
    for position, each in enumerate(node):
        found.append((node, position))
        child = each[1] if isinstance(node, Members) else each
        if isinstance(child, list):
            found += _slots(child)
    return found


def _drop(_tape: Tape, parent: Any, position: int) -> None:
    del parent[position]


def _repeat(tape: Tape, parent: Any, position: int) -> None:
    """Give an object a key twice, with another value perhaps, or an array an item."""
    again = parent[position]
    if isinstance(parent, Members) and tape.coin():
        again = [again[0], atom(tape)]
    parent.insert(tape.below(len(parent) + 1), again)


def _swap(tape: Tape, parent: Any, position: int) -> None:
    other = tape.below(len(parent))
    if isinstance(parent, Members) and tape.coin():
        parent[position][1], parent[other][1] = parent[other][1], parent[position][1]
    else:
        parent[position], parent[other] = parent[other], parent[position]


def _rename(tape: Tape, parent: Any, position: int) -> None:
    if isinstance(parent, Members):
        parent[position][0] = tape.pick(NAMES)


def _get(parent: Any, position: int) -> Any:
    return parent[position][1] if isinstance(parent, Members) else parent[position]


def _set(parent: Any, position: int, node: Any) -> None:
    if isinstance(parent, Members):
        parent[position] = [parent[position][0], node]
    else:
        parent[position] = node


def _retype(tape: Tape, parent: Any, position: int) -> None:
    _set(parent, position, atom(tape))


def _aim(tape: Tape, parent: Any, position: int) -> None:
    name = parent[position][0] if isinstance(parent, Members) else b""
    _set(parent, position, tape.pick(_ODD_BY_NAME[name]) if name in _ODD_BY_NAME else atom(tape))


def _weigh_down(tape: Tape, parent: Any, position: int) -> None:
    _set(parent, position, tape.pick(BOTTOMLESS + HUGE if tape.below(6) == 5 else OF_OTHER_TYPES))


def _nest(tape: Tape, parent: Any, position: int) -> None:
    node = _get(parent, position)
    _set(parent, position, [node] if tape.coin() else Members([[tape.pick(NAMES), node]]))


def _blow_up(tape: Tape, parent: Any, position: int) -> None:
    """Make a text longer, an array fuller, a number of more digits."""
    node, times = _get(parent, position), tape.pick([2, 40, 600, 2_100])
    if isinstance(node, Members):
        node.append([b",".join(b'"f%d":%d' % (index, index) for index in range(times)) + b',"f"', b"1"])
        return
    core = written(node[0] if node else b"0") if isinstance(node, list) else node
    times = min(times, 1 + MAX_EVENT_BYTES // (1 + len(core)))
    if isinstance(node, list):
        node.append(b",".join([core] * times))
    elif node[:1] == b'"':
        _set(parent, position, b'"' + node[1:-1] * times + b'"')
    else:
        _set(parent, position, node * times)


_CHANGES = [_drop, _repeat, _swap, _rename, _retype, _retype, _aim, _aim, _aim, _weigh_down, _nest, _blow_up]


def _change(tape: Tape, root: Any) -> None:
    slots = _slots(root)
    if slots:
        tape.pick(_CHANGES)(tape, *tape.pick(slots))


# -- encodings and damage ----------------------------------------------------------------------------------------


def _encoded(name: str) -> Callable[[bytes], bytes]:
    return lambda value: value.decode(errors="replace").encode(name, errors="replace")


_ENCODINGS = [
    _encoded(name) for name in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp932", "utf-7")
] + [
    lambda value: b"\xef\xbb\xbf" * 2 + value,
    lambda value: json.dumps(value.decode(errors="replace")).encode(),  # JSON within JSON
    lambda value: value + b"\n" + value,
    lambda value: b"\x00\x00\x00\x00\x01" + value,  # a schema registry's prefix
]


def _damage(tape: Tape, value: bytes) -> bytes:
    """Flip a bit, cut, insert or splice, somewhere in the first 64 KiB."""
    at = tape.below(min(len(value) + 1, 1 << 16))
    end = min(len(value), at + tape.below(17))
    match tape.pick(["insert", "flip", "cut", "truncate", "splice"]):
        case "flip" if at < len(value):
            return value[:at] + bytes([value[at] ^ 1 << tape.below(8)]) + value[at + 1 :]
        case "cut":
            return value[:at] + value[end:]
        case "truncate":
            return value[:at]
        case "splice":
            target = tape.below(min(len(value) + 1, 1 << 16))
            return value[:target] + value[at:end] + value[target:]
    return value[:at] + tape.take(1 + tape.below(8)) + value[at:]


# -- records -----------------------------------------------------------------------------------------------------


_FRAGMENTS = [None, b"", b" ", b"null", b"[]", b"{}", *BOTTOMLESS]
_KEYS = [b"", b"q1 ", "q1".encode("utf-16"), b"\xff" * 600]
_HEADER_NAMES = ["traceparent", "ce_source", "ce_", "x-shard", "dlq.reason", "dlq.at", "nämé", "n" * 300, " "]
_TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_HEADER_VALUES = [None, b"", _TRACE, b"\xff\xfe\x00", b"\x00", "/söurce".encode(), b"v" * 10_000]


def _key(tape: Tape, identifier: str) -> bytes | None:
    chance = tape.below(20)
    if chance < 17:
        return identifier.encode() if chance < 14 else None
    return tape.take(tape.below(12)) if tape.coin() else tape.pick(_KEYS)


def _header(tape: Tape) -> Header:
    return tape.pick(_HEADER_NAMES), tape.take(tape.below(9)) if tape.coin() else tape.pick(_HEADER_VALUES)


def mutate(event: Event, tape: Tape) -> Mutated:
    """Make a record of a valid event; about one in four stays valid."""
    identifier, root = event(tape)
    key, chance = _key(tape, identifier), tape.below(20)
    for _ in range(tape.below(4)):
        _change(tape, root)
    value: bytes | None = written(root)
    if chance == 19:
        value = tape.pick(_FRAGMENTS) if tape.coin() else tape.take(tape.below(40))
    elif chance == 18:
        value = tape.pick(_ENCODINGS)(value)
    elif chance == 17:
        value = None
    elif chance >= 14:
        for _ in range(1 + tape.below(3)):
            value = _damage(tape, value or b"")
    # As brokers let them pass: without values, repeated, long, of any bytes, with names that we use.
    headers = tuple(_header(tape) for _ in range(tape.below(3)))
    return Mutated(key, value, headers)


_CHOICES = 56
"""Bytes of choices that a record takes, but for a few that are left at their simplest."""


def mutated(event: Event) -> SearchStrategy[Mutated]:
    """Draw records made of the events that ``event`` makes."""
    return st.binary(min_size=_CHOICES, max_size=_CHOICES).map(lambda choices: mutate(event, Tape(choices)))
