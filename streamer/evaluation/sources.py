"""Whose answers are read: several consumer groups may answer the same queries, each with a model of its own.

An answer's group is in the header ``streamer.group`` of its record, which recorded files do not have; its model is in
the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from streamer.settings import SettingsError, invalid_setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.events import QueryReranked

_MOST_NAMED = 5
"""Names of groups and models that one message lists."""


class Source(NamedTuple):
    """Who made an answer; ``group`` is the consumer group's full name, empty where it is not known."""

    group: str
    model_id: str


class OneSource:
    """Admits the answers of one consumer group and one model, so that two are never evaluated as one."""

    def __init__(self, *, group: str | None = None, model_id: str | None = None, advice: str) -> None:
        """``group`` and ``model_id``: those that were chosen. ``advice``: what to do if there are several models."""
        self._group = group
        self._model_id = model_id
        self._advice = advice
        self._found: Source | None = None
        self._others: set[Source] = set()

    def is_meant(self, group: str) -> bool:
        """Tell whether what ``group`` wrote (empty: unknown) may be meant."""
        return not self._group or not group or group == self._group

    def admits(self, source: Source) -> bool:
        """Tell whether the answers of a source are meant.

        Raises :class:`SettingsError` where they are, and those of another source were before.
        """
        if not self.is_meant(source.group) or (self._model_id or source.model_id) != source.model_id:
            self._others.add(source)
            return False
        found = self._found = self._found or source
        if found.group != source.group and found.group and source.group:
            named = _listed([found.group, source.group])
            raise invalid_setting("group_suffix", f"several consumer groups have answered: {named}; choose one")
        if found != source:
            named = _listed([found.model_id, source.model_id])
            raise SettingsError(f"there are answers of several models or groups: {named}; {self._advice}")
        return True

    def of(self, answers: Iterable[tuple[QueryReranked, str]]) -> Iterator[QueryReranked]:
        """Go through the answers that are meant; each comes with its group. Raises :class:`SettingsError`."""
        for answer, group in answers:
            if self.admits(Source(group, answer.model_id)):
                yield answer
        if self._found is None and self._others:
            chosen = " and ".join(name for name in (self._group, self._model_id) if name)
            found = _listed(f"{each.model_id} ({each.group or 'group unknown'})" for each in self._others)
            raise SettingsError(f"there are no answers of {chosen}; there are those of {found}")


def _listed(names: Iterable[str]) -> str:
    distinct = sorted(set(names))
    return ", ".join(distinct[:_MOST_NAMED]) + f" and {len(distinct) - _MOST_NAMED} more" * (
        len(distinct) > _MOST_NAMED
    )
