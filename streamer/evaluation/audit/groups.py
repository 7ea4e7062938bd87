"""From clips' attributes to groups of clips."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]

UNKNOWN = "(unknown)"
OTHER = "(other)"
MAX_VALUE_CHARS = 200
MAX_CLIPS = 20_000_000
_LARGEST = sys.float_info.max

Profile = tuple[tuple[str, tuple[str, ...]], ...]
"""A clip's attributes by name, each with its values in order; shared by all clips that have the same."""


def values_of(attribute: Any) -> tuple[str, ...]:
    """Return the values of an attribute as text, in order: those of a list, or the one; none means that it is unknown.

    Null, blank text, an object, and a number that is not finite or larger than a double are no values.
    """
    if isinstance(attribute, list | tuple):
        return tuple(sorted({value for each in attribute if not isinstance(each, list) for value in values_of(each)}))
    if isinstance(attribute, str):
        text = attribute
    elif isinstance(attribute, bool):
        text = "true" if attribute else "false"
    elif isinstance(attribute, int | float) and -_LARGEST <= attribute <= _LARGEST:
        text = str(attribute)
    else:
        return ()
    text = " ".join(text.split())[:MAX_VALUE_CHARS]
    return (text,) if text else ()


class Catalogue:
    """The clips that exist, and their attributes: of each clip, those of its newest upload that was not deleted."""

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        """``wanted``: the attributes to keep; none means all."""
        self._wanted = frozenset(wanted)
        self._clips: dict[str, Profile] = {}
        self._versions: dict[str, dt.datetime] = {}
        self._shared: dict[Profile, Profile] = {}
        self.deleted = 0

    def __len__(self) -> int:
        return len(self._clips)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._clips

    def of(self, clip_id: str) -> Profile:
        """Return a clip's attributes; none where the clip is unknown."""
        return self._clips.get(clip_id, ())

    def put(self, clip_id: str, attributes: Mapping[str, Any], version: dt.datetime | None = None) -> None:
        """Add an upload, unless one with a later ``version`` is known, as in the store.

        After a delete, the version of the deleted upload is not enough either. Without versions, the last one counts.
        """
        if version is not None:
            known = self._versions.get(clip_id)
            if known is not None and (version < known or (version == known and clip_id not in self._clips)):
                return
            self._versions[clip_id] = version
        profile = tuple(
            (name, values)
            for name, each in sorted(attributes.items())
            if (not self._wanted or name in self._wanted) and (values := values_of(each))
        )
        self._clips[clip_id] = self._shared.setdefault(profile, profile)

    def delete(self, clip_id: str) -> None:
        """Remove a clip."""
        self.deleted += self._clips.pop(clip_id, None) is not None

    def counts(self) -> dict[str, Counter[str]]:
        """Return how many clips have each value of each attribute."""
        found: dict[str, Counter[str]] = {name: Counter() for name in sorted(self._wanted)}
        for profile, clips in Counter(self._clips.values()).items():
            for name, values in profile:
                counter = found.setdefault(name, Counter())
                for value in values:
                    counter[value] += clips
        return found


class Groups:
    """The groups of one attribute: one for each of its most frequent values, one of all others, and one of unknown.

    ``names`` (g): the values, then :data:`OTHER` where there are more values than groups, then :data:`UNKNOWN`.
    A clip with several values belongs to each of their groups in equal parts.
    """

    def __init__(self, attribute: str, counts: Mapping[str, int], most: int) -> None:
        """Take how many clips have each value, and the ``most`` values that have a group of their own."""
        self.attribute = attribute
        ordered = sorted(counts, key=lambda value: (-counts[value], value))
        kept, rest = ordered[:most], ordered[most:]
        self.values = len(ordered)
        self.names: tuple[str, ...] = (*kept, *([OTHER] if rest else ()), UNKNOWN)
        self._group = {value: number for number, value in enumerate(kept)} | dict.fromkeys(rest, len(kept))
        self._rows: dict[tuple[str, ...], FloatArray] = {}

    def membership(self, profiles: Sequence[Profile]) -> FloatArray:
        """Return each clip's part in each group (n, g); each row has the sum 1."""
        rows = [self._row(self._values(profile)) for profile in profiles]
        return np.array(rows).reshape(len(profiles), len(self.names))

    def _values(self, profile: Profile) -> tuple[str, ...]:
        return next((values for name, values in profile if name == self.attribute), ())

    def _row(self, values: tuple[str, ...]) -> FloatArray:
        row = self._rows.get(values)
        if row is None:
            row = self._rows[values] = np.zeros(len(self.names))
            for value in values:
                row[self._group[value]] += 1 / len(values)
            if not values:
                row[-1] = 1
        return row
