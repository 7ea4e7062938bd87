"""A training-free rule for negated queries: the score of the rest minus the score of the negated part.

CLIP's text encoders hardly read "no" and "without": the vector of "a car without a ball" lies near that of "a car with
a ball". The rule takes such a text apart (:func:`split`), and subtracts the vector of the negated part, weighted, from
that of the rest (:func:`subtract`). Because a cosine is linear in the text's vector, the cosine of the difference is,
for each frame, the weighted difference of both cosines, times a constant of the query. The rule reads English only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_CUE = re.compile(
    r"[,;]?\s+(?:(?:and|but|with)\s+no|(?:but\s+)?without(?:\s+any)?|(?:but|and)\s+not)\s+", re.IGNORECASE
)
_END = re.compile(
    r"\s*[,.;:!?]|\s+(?:in|on|at|by|above|over|under|below|before|behind|beside|near|next\s+to|inside|outside|against|"
    r"during|while|who|which|that|is|are)\b|\s*$",
    re.IGNORECASE,
)
"""Where a negated part ends: at punctuation, at a word that begins another phrase, at the text's end."""


class Negated(NamedTuple):
    """A query taken apart: "a car without a ball on grass" is ``rest`` "a car on grass" and ``part`` "a ball"."""

    rest: str
    part: str


def split(text: str) -> Negated | None:
    """Take a text apart at its negation; None where it has none, or more than one, or nothing on either side.

    A leading negation ("no people") leaves nothing that could be searched for, so such a text stays whole.
    """
    cues = list(_CUE.finditer(text))
    if len(cues) != 1:
        return None
    (cue,) = cues
    end = _END.search(text, cue.end())
    stop = end.start() if end else len(text)
    before, part, after = (
        text[: cue.start()].strip(),
        text[cue.end() : stop].strip(),
        text[stop:].strip(" \t\r\n,.;:!?"),
    )
    if not before or not part:
        return None
    return Negated(f"{before} {after}".rstrip(), part)


def subtract(rest: npt.NDArray[np.float32], part: npt.NDArray[np.float32], weight: float) -> npt.NDArray[np.float32]:
    """Return ``rest`` - ``weight`` * ``part``, L2-normalised (d,); ``rest`` itself where nothing remains."""
    difference = rest.astype(np.float64) - weight * part.astype(np.float64)
    length = float(np.linalg.norm(difference))
    if length < 1e-6:  # noqa: PLR2004 - a difference of equal vectors, up to rounding
        return rest
    return (difference / length).astype(np.float32)
