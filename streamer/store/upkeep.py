"""Verifies and compares whole stores, and deletes models: in pages, while services run."""

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
"""Number of defective records that a report names; all are counted."""


class Advance(Protocol):
    """A callback for progress."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` records of about ``total``."""


@dataclass(slots=True)
class Damage:
    """Unreadable records; ``examples`` are the ids of the first ones if they are known, else keys."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def sort(self, records: Iterable[Raw]) -> Iterator[tuple[Raw, record_format.Version]]:
        """Yield the undamaged records, and count the others."""
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
    """The comparison of one of the source's records with the target's."""

    is_same: bool
    is_missing: bool
    is_damaged: bool
    is_behind: bool
    """The target's record is missing, damaged or older: the source's record must be put."""


def pairs(target: StoreAdmin, records: Iterable[tuple[Raw, record_format.Version]]) -> Iterator[tuple[Raw, There]]:
    """Compare each record with the target's."""
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
    """The counts of one model."""

    clips: int = 0
    tombstones: int = 0
    bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Clips by precision and length of vectors, such as ``float16 x 512``."""


@dataclass(slots=True)
class VerifyReport:
    """The undamaged records of a store by model id, and the damaged ones."""

    models: dict[str, ModelFigures]
    damage: Damage = field(default_factory=Damage)


def verify(store: StoreAdmin, advance: Advance = lambda *_: None) -> VerifyReport:
    """Verify the checksum of every record; a record of an unregistered model counts as damaged."""
    names = store.models()
    report = VerifyReport({model_id: ModelFigures() for model_id in names.values()})
    done, total = 0, store.count()
    for page in store.scan():
        if page.restarted:
            done, report = 0, VerifyReport({model_id: ModelFigures() for model_id in names.values()})
        for raw, version in report.damage.sort(page.records):
            prefix = raw.key[: record_format.PREFIX_BYTES]
            if prefix not in names:
                names = store.models()
            if prefix not in names:
                report.damage.note(raw.key, "of an unregistered model")
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
    """The comparison of one store's records with another store; only ``same`` and ``ahead`` are good."""

    same: int = 0
    ahead: int = 0
    """The other store has a different record that this one's does not outrank."""
    behind: int = 0
    """The other store has an older record."""
    missing: int = 0
    damaged: int = 0
    """The other store's record is damaged."""
    damage: Damage = field(default_factory=Damage)
    """Damaged records of this store."""
    examples: list[str] = field(default_factory=list)
    """Ids of the first records that are older, missing or damaged in the other store."""

    @property
    def is_good(self) -> bool:
        """Whether the other store has all records of this one, or newer ones."""
        return not (self.behind or self.missing or self.damaged or self.damage.count)


def compare(source: StoreAdmin, target: StoreAdmin, advance: Advance = lambda *_: None) -> CompareReport:
    """Look for each record of ``source`` in ``target``; records that only the target has are ignored."""
    report = CompareReport()
    done, total = 0, source.count()
    for page in source.scan():
        if page.restarted:
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
    """What deleting a model would remove."""

    clips: int = 0
    tombstones: int = 0
    newest: dt.datetime | None = None
    """The upload time of its newest clip."""


def survey(store: StoreAdmin, prefix: bytes, advance: Advance = lambda *_: None) -> ModelSurvey:
    """Count a model's records by their headers."""
    found = ModelSurvey()
    newest_us: int | None = None
    done, total = 0, store.count()
    for page in store.scan(prefix=prefix, heads=True):
        if page.restarted:
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
        with suppress(OverflowError):  # a damaged record may have any time
            found.newest = EPOCH + dt.timedelta(microseconds=newest_us)
    return found


def drop(store: StoreAdmin, prefix: bytes, advance: Advance = lambda *_: None) -> tuple[int, bool]:
    """Remove a model's records, tombstones included, page by page, and then unregister the model.

    Returns the number of removed records and whether the model is gone: it is not if a service wrote records of it
    meanwhile; then it stays registered. If killed, the remaining records and the registration are left for the next
    run.
    """
    removed, total = 0, store.count()
    for page in store.scan(prefix=prefix, heads=True):
        store.remove([raw.key for raw in page.records])
        removed += len(page.records)
        advance("remove", removed, total)
    return removed, store.forget(prefix)
