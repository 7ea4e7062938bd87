"""CLIP's byte-pair encoding at a bounded cost: the tokens of open_clip's tokenizer, as many as the model reads.

open_clip merges the pairs of a word by one pass over the whole word for each merge, which is quadratic: a word of 2,000
letters takes 0.3 s. Here the merges are those of the `tokenizers` library, by a queue. It gives the same tokens because
no pair of CLIP's vocabulary comes before the pairs that its two halves are made of, and no symbol is made of two pairs.

And a word is encoded only as far as its tokens fit into the context. That is not a matter of cutting it off, because a
token may depend on what follows. But tokens are the encoding of their text exactly if each two neighbours are the
encoding of theirs: the first merge across a boundary would happen between the two alone as well. So an encoding of the
word's beginning can be cut at any boundary, and continued with any encoding that passes this test at the cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers.models import BPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import open_clip

_END_OF_WORD = "</w>"
_CACHED_WORDS = 20_000
"""Of the usual length: the library caches no word of 256 letters or more."""
_WINDOW = 384
"""Symbols (bytes of UTF-8) of a word that are encoded first; a context of 75 tokens takes 140 random letters."""


class BoundedTokenizer:
    """Tokenizes as ``tokenizer`` does, whose vocabulary is CLIP's.

    The cost of a query is that of cleaning its text, which is linear in its length, and of as many tokens as fit.
    """

    def __init__(self, tokenizer: open_clip.SimpleTokenizer) -> None:
        self._clean, self._pattern = tokenizer.clean_fn, tokenizer.pat
        self._letters = tokenizer.byte_encoder
        self._context = int(tokenizer.context_length)
        self._start, self._end = tokenizer.sot_token_id, tokenizer.eot_token_id
        self._special = {tokenizer.decoder[number]: number for number in tokenizer.all_special_ids}
        vocabulary, merges = tokenizer.encoder, list(tokenizer.bpe_ranks)
        self._whole = BPE(vocabulary, merges, cache_capacity=_CACHED_WORDS, end_of_word_suffix=_END_OF_WORD)
        self._parts = BPE(vocabulary, merges, cache_capacity=_CACHED_WORDS)
        self._longest = max(len(symbol.removesuffix(_END_OF_WORD)) for symbol in vocabulary)

    def __call__(self, queries: Sequence[str]) -> torch.Tensor:
        """Return (n, context): each query's tokens between those of start and end, then zeros."""
        result = torch.zeros(len(queries), self._context, dtype=torch.long)
        for row, query in zip(result, queries, strict=True):
            tokens = [self._start, *self._first_tokens(query, self._context - 2), self._end]
            row[: len(tokens)] = torch.tensor(tokens)
        return result

    def _first_tokens(self, query: str, wanted: int) -> list[int]:
        tokens: list[int] = []
        for found in self._pattern.finditer(self._clean(query)):
            word = "".join(map(self._letters.__getitem__, found[0].encode()))
            tokens += self._beginning(word, wanted - len(tokens))
            if len(tokens) >= wanted:
                break
        return tokens[:wanted]

    def _beginning(self, word: str, wanted: int) -> list[int]:
        """Return the tokens of a word, at least the first ``wanted`` of them, one or more."""
        if word in self._special:
            return [self._special[word]]
        size = _WINDOW
        while size + self._longest < len(word):
            tokens = self._settled(word, size)
            if len(tokens) >= wanted:
                return tokens
            size *= 2
        return [token.id for token in self._whole.tokenize(word)]

    def _settled(self, word: str, size: int) -> list[int]:
        """Return the tokens with which ``word`` begins, as far as its first ``size`` symbols show; none if they do not.

        The last boundary of the word's own tokens in there is at one of ``ends``, since no token is longer. Up to it,
        its tokens are the encoding of these symbols alone. So if that begins alike for each of them, the word does.
        """
        tokens = self._parts.tokenize(word[:size])
        ends = range(size - self._longest + 1, size + 1)
        cut = size
        while cut >= ends.start:
            cut -= len(tokens.pop().value)
        last = tokens[-1].value
        following = {self._parts.tokenize(word[cut:end])[0].value for end in ends}
        settled = all(self._encoded(last + first) == [last, first] for first in following)
        return [token.id for token in tokens] if settled else []

    def _encoded(self, symbols: str) -> list[str]:
        return [token.value for token in self._parts.tokenize(symbols)]
