"""Whole stores checked, compared, and rid of a model: in pages, beside services that go on."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from streamer.store import record_format
from streamer.store.protocol import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.store.admin import Raw, StoreAdmin

MOST_NAMED = 20
"""Records that a report names of those that are not as they should be; all are counted."""


class Advance(Protocol):
    """Is told how far a pass has come."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` records of about ``total``."""


@dataclass(slots=True)
class Damage:
    """Records that cannot be read; ``examples`` are the ids of the first ones where they can be told, else keys."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def sort(self, records: Iterable[Raw]) -> Iterator[tuple[Raw, record_format.Version]]:
        """Give the records that are whole, and note the others."""
        for raw in records:
            try:
                version = record_format.checked(raw.key, memoryview(raw.value))
            except record_format.CorruptRecordError as error:
                self.note(raw.key, str(error))
            else:
                yield raw, version

    def note(self, key: bytes, problem: str) -> None:
        """Count a damaged record."""
        self.count += 1
        if len(self.examples) < MOST_NAMED:
            self.examples.append(f"{record_format.named(key)}: {problem}")


class There(NamedTuple):
    """What the target has in the place of a record of the source."""

    is_same: bool
    is_missing: bool
    is_damaged: bool
    is_behind: bool
    """It is missing, damaged or older: the source's record belongs there."""


def pairs(target: StoreAdmin, records: Iterable[tuple[Raw, record_format.Version]]) -> Iterator[tuple[Raw, There]]:
    """Look at what the target has in the place of each record."""
    asked = list(records)
    for (raw, version), value in zip(asked, target.get([raw.key for raw, _ in asked]), strict=True):
        there = record_format.version_at(raw.key, value)
        is_same = value == raw.value
        yield (
            raw,
            There(
                is_same=is_same,
                is_missing=value is None,
                is_damaged=value is not None and there is None,
                is_behind=not is_same and record_format.outranks(version, there),
            ),
        )


@dataclass(slots=True)
class ModelFigures:
    """What a store holds of one model."""

    clips: int = 0
    tombstones: int = 0
    bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Clips by precision and length of vectors, as ``float16 x 512``."""


@dataclass(slots=True)
class VerifyReport:
    """What a store holds that is whole, by model id, and what is not."""

    models: dict[str, ModelFigures]
    damage: Damage = field(default_factory=Damage)


def verify(store: StoreAdmin, advance: Advance = lambda *_: None) -> VerifyReport:
    """Take the checksum of every record; one whose model the store has no name for counts as damaged."""
    names = store.models()
    report = VerifyReport({model_id: ModelFigures() for model_id in names.values()})
    done, total = 0, store.count()
    for page in store.scan():
        if page.anew:
            done, report = 0, VerifyReport({model_id: ModelFigures() for model_id in names.values()})
        for raw, version in report.damage.sort(page.records):
            prefix = raw.key[: record_format.PREFIX_BYTES]
            if prefix not in names:
                names = store.models()
            if prefix not in names:
                report.damage.note(raw.key, "of a model without a name")
                continue
            figures = report.models.setdefault(names[prefix], ModelFigures())
            figures.bytes += len(raw.value)
            if version.live:
                figures.clips += 1
                figures.kinds[record_format.kind(raw.value)] += 1
            else:
                figures.tombstones += 1
        done += len(page.records)
        advance("verify", done, total)
    return report


@dataclass(slots=True)
class CompareReport:
    """How the records of one store stand in another one; only ``same`` and ``ahead`` are as they should be."""

    same: int = 0
    ahead: int = 0
    """The other store has something else that this one's record does not outrank."""
    behind: int = 0
    """The other store has an older record."""
    missing: int = 0
    damaged: int = 0
    """Damaged in the other store."""
    damage: Damage = field(default_factory=Damage)
    """In this store."""
    examples: list[str] = field(default_factory=list)
    """Ids of the first ones that are behind, missing or damaged in the other store."""

    @property
    def is_good(self) -> bool:
        """Tell whether the other store has all that this one has, or newer."""
        return not (self.behind or self.missing or self.damaged or self.damage.count)


def compare(source: StoreAdmin, target: StoreAdmin, advance: Advance = lambda *_: None) -> CompareReport:
    """Look for each record of ``source`` in ``target``; what only the target has is not looked at."""
    report = CompareReport()
    done, total = 0, source.count()
    for page in source.scan():
        if page.anew:
            done, report = 0, CompareReport()
        for raw, there in pairs(target, report.damage.sort(page.records)):
            report.same += there.is_same
            report.missing += there.is_missing
            report.damaged += there.is_damaged
            report.behind += there.is_behind and not (there.is_missing or there.is_damaged)
            report.ahead += not (there.is_same or there.is_behind)
            if there.is_behind and len(report.examples) < MOST_NAMED:
                report.examples.append(record_format.named(raw.key))
        done += len(page.records)
        advance("compare", done, total)
    return report


@dataclass(slots=True)
class ModelSurvey:
    """What would go with a model."""

    clips: int = 0
    tombstones: int = 0
    newest: dt.datetime | None = None
    """The latest upload among its clips."""


def survey(store: StoreAdmin, prefix: bytes, advance: Advance = lambda *_: None) -> ModelSurvey:
    """Count a model's records by their heads."""
    found = ModelSurvey()
    newest_us: int | None = None
    done, total = 0, store.count()
    for page in store.scan(prefix=prefix, heads=True):
        if page.anew:
            done, found, newest_us = 0, ModelSurvey(), None
        for raw in page.records:
            uploaded_us, is_live = record_format.peek(raw.value)
            found.clips += is_live
            found.tombstones += not is_live
            if is_live and uploaded_us is not None:
                newest_us = uploaded_us if newest_us is None else max(newest_us, uploaded_us)
        done += len(page.records)
        advance("count", done, total)
    if newest_us is not None:
        with suppress(OverflowError):  # a damaged record's time may be anything
            found.newest = EPOCH + dt.timedelta(microseconds=newest_us)
    return found


def drop(store: StoreAdmin, prefix: bytes, advance: Advance = lambda *_: None) -> tuple[int, bool]:
    """Remove a model's records, tombstones included, a page at a time, and then its name.

    Returns how many were removed and whether all is gone: it is not where a service writes that model's records
    meanwhile; then the name stays, too. Killed, it leaves the rest, and the name, for the next time.
    """
    removed, total = 0, store.count()
    for page in store.scan(prefix=prefix, heads=True):
        store.remove([raw.key for raw in page.records])
        removed += len(page.records)
        advance("remove", removed, total)
    return removed, store.forget(prefix)
