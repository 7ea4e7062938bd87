"""The bounded tokenizer gives open_clip's tokens, and works no longer on a long word than on many."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamer.encoders import towers
from streamer.encoders.towers import BoundedTokenizer
from streamer.events import MAX_QUERY_CHARS

if TYPE_CHECKING:
    from collections.abc import Callable

LOWER = "abcdefghijklmnopqrstuvwxyz"
FREQUENT = "etaoinshrdlucmfwypvbgkjqxz"
DRAWN: dict[str, Callable[[random.Random], str]] = {
    "random letters": lambda draw: draw.choice(LOWER),
    "frequent letters": lambda draw: FREQUENT[min(int(draw.expovariate(0.2)), 25)],
    "one letter": lambda _draw: "a",
    "two letters": lambda draw: draw.choice("ab"),
    "Cyrillic": lambda draw: chr(draw.randrange(0x430, 0x450)),
    "Hangul": lambda draw: chr(draw.randrange(0xAC00, 0xD7A3)),
    "Kana and Han": lambda draw: chr(draw.choice((draw.randrange(0x3041, 0x3096), draw.randrange(0x4E00, 0x6000)))),
    "emoji": lambda draw: chr(draw.randrange(0x1F300, 0x1F6FF)),
    "punctuation": lambda draw: draw.choice("!?.,;-_#/<>&"),
    "digits": lambda draw: draw.choice("0123456789"),
    "combining marks": lambda draw: draw.choice("e\u0301\u0302\u0308"),
    "letters and blanks": lambda draw: draw.choice(LOWER + " "),
}


def drawn(kind: str, length: int, seed: int = 0) -> str:
    draw = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return "".join(DRAWN[kind](draw) for _ in range(length))


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@pytest.fixture(scope="module")
def ours(theirs: open_clip.SimpleTokenizer) -> BoundedTokenizer:
    return BoundedTokenizer(theirs)


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let words be long that open_clip's own tokenizer can encode a thousand of."""
    monkeypatch.setattr(towers, "_WINDOW", 40)


def same(ours: BoundedTokenizer, theirs: open_clip.SimpleTokenizer, text: str, context: int = 77) -> bool:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ours, "_context", context)
        theirs.cache = dict.fromkeys(ours._special) | {special: special for special in ours._special}
        return torch.equal(ours([text]), theirs([text], context))


def test_no_pair_of_the_vocabulary_comes_before_those_of_its_halves_and_no_symbol_is_made_twice(
    theirs: open_clip.SimpleTokenizer,
) -> None:
    made = {one + other: rank for (one, other), rank in theirs.bpe_ranks.items()}
    assert len(made) == len(theirs.bpe_ranks)
    halves = [(rank, made.get(half, -1)) for pair, rank in theirs.bpe_ranks.items() for half in pair]
    assert all(before < rank for rank, before in halves)


@pytest.mark.parametrize("kind", DRAWN)
def test_the_longest_query_of_each_kind_has_open_clips_tokens(
    ours: BoundedTokenizer, theirs: open_clip.SimpleTokenizer, kind: str
) -> None:
    assert same(ours, theirs, drawn(kind, MAX_QUERY_CHARS))


TEXTS = st.one_of(
    st.text(max_size=400),
    st.builds(drawn, st.sampled_from(list(DRAWN)), st.integers(0, 400), st.integers(0, 10**6)),
    st.lists(st.builds(drawn, st.sampled_from(list(DRAWN)), st.integers(1, 150), st.integers(0, 10**6))).map(
        lambda parts: "".join(parts)[:400]
    ),
    st.lists(
        st.sampled_from(["the", "ing", "st", "'s", "<start_of_text>", "<END_OF_TEXT>", "</w>", "&amp;", " ", "q"])
    ).map("".join),
)


@given(text=TEXTS, context=st.sampled_from([3, 8, 20, 77]))
@example(text="", context=77)
@example(text="<end_of_text>" * 40, context=20)
@settings(max_examples=300, deadline=None)
@pytest.mark.usefixtures("small_window")
def test_every_text_has_open_clips_tokens(
    ours: BoundedTokenizer, theirs: open_clip.SimpleTokenizer, text: str, context: int
) -> None:
    assert same(ours, theirs, text, context)


@pytest.mark.usefixtures("small_window")
def test_a_word_whose_first_tokens_depend_on_its_end_is_read_to_its_end(
    ours: BoundedTokenizer, theirs: open_clip.SimpleTokenizer
) -> None:
    """Letters of which each pair comes before the pair to its left: which of them merge is decided from the right."""
    ranks = {"".join(pair): rank for pair, rank in theirs.bpe_ranks.items()}
    pairs = [pair for pair in ranks if len(pair) == 2 and pair.isascii() and pair.isalpha()]
    longest = dict(zip(LOWER, LOWER, strict=True))
    for pair in sorted(pairs, key=ranks.__getitem__, reverse=True):
        longest[pair[1]] = max(longest[pair[1]], longest[pair[0]] + pair[1], key=len)
    chain = max(longest.values(), key=len)
    assert len(chain) > 40
    words = {chain[: len(chain) - cut] + tail for cut in range(6) for tail in ("", "zzzz", "e" * 100)}
    assert all(same(ours, theirs, word, context) for word in words for context in (4, 77))


class Counted:
    """A model of the tokenizers library that counts the symbols given to it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.symbols = 0

    def tokenize(self, symbols: str) -> Any:
        self.symbols += len(symbols)
        return self._model.tokenize(symbols)


@pytest.mark.parametrize("kind", DRAWN)
def test_the_symbols_that_are_merged_do_not_grow_with_the_length_of_the_query(
    theirs: open_clip.SimpleTokenizer, kind: str
) -> None:
    def merged(length: int) -> int:
        ours: Any = BoundedTokenizer(theirs)
        ours._whole, ours._parts = whole, parts = Counted(ours._whole), Counted(ours._parts)
        ours([drawn(kind, length)])
        return whole.symbols + parts.symbols

    assert merged(8 * MAX_QUERY_CHARS) <= max(merged(MAX_QUERY_CHARS), 1) * 1.1
    assert merged(MAX_QUERY_CHARS) < 8_000
