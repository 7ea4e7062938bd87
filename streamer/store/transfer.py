"""Copies a whole store into another one while services run.

Guarantee. When a copy ends, every readable record and tombstone that was in the source when the copy was first started
is in the target unchanged, or as a record that outranks it (:func:`record_format.outranks`): newer by version, or by
its position in the same partition. Records written to the source meanwhile may be in the target or not; once nobody
writes to the source, another copy transfers the rest. Existing records are only compared, so a copy can be repeated at
any time. The target may be written meanwhile, too.

Algorithm. Two passes over the source; each page is put together with a progress note, so that a killed copy is resumed.
The note is kept in the target: if the target is emptied or restored from a backup, the note is gone or as old as the
data.

1. *copy*: a page is read, each record's checksum is verified, and the undamaged records are put. Killed before the put:
   the page is read again. Killed between put and note (in LMDB they are one transaction): it is put again, which
   changes nothing.
2. *verify*: each record is read once more from both and compared, byte by byte. Records that are missing (a server lost
   acknowledged writes, the first pass's cursor missed them) or older are put and read again.
3. The note is removed. Killed before: the last page is compared again.

A scan returns every record that exists during the whole scan, regardless of concurrent writes
(:meth:`StoreAdmin.scan`). Unreadable records are counted and skipped; the target's records in their place are kept.

If a tombstone has expired in the source or was never there, the copy does not delete the clip in the target. So a
target should be empty, or its last copy more recent than the lifetime of the source's tombstones.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import orjson
import structlog

from streamer.store import record_format
from streamer.store.admin import Merged
from streamer.store.protocol import StoreError, StoreUnavailableError
from streamer.store.upkeep import Advance, Damage, pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.store.admin import Page, Raw, StoreAdmin

log = structlog.get_logger()

PATIENCE_S = 120.0
"""Seconds for which an unreachable store is retried: longer than a cluster takes to replace a server."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass(slots=True)
class CopyReport:
    """The report of a copy, summed over all its runs; also its progress note."""

    source: str
    begun_at: dt.datetime
    stage: str = "copy"
    cursor: str = ""
    resumed: int = 0
    """How often the copy was resumed."""
    read: int = 0
    written: int = 0
    present: int = 0
    kept: int = 0
    """Records of the target that the source's records do not outrank."""
    bytes: int = 0
    """The size of the written records."""
    compared: int = 0
    mended: int = 0
    """Records that the second pass found missing or older, and put."""
    damage: Damage = field(default_factory=Damage)
    """Damaged records of the source, as found in the second pass."""


def copy(
    source: StoreAdmin,
    target: StoreAdmin,
    *,
    restart: bool = False,
    advance: Advance = lambda *_: None,
    patience_s: float = PATIENCE_S,
) -> CopyReport:
    """Copy all of ``source`` into ``target``; resumes a copy of the same source unless ``restart``.

    An unreachable store is retried for ``patience_s`` after the last successful page. Raises :class:`StoreError` if the
    target does not keep the records put into it.
    """
    if source.identity == target.identity:
        raise StoreError("a store cannot be copied to itself")
    report = None if restart else _noted(target, source.identity)
    if report is None:
        report = CopyReport(source.identity, dt.datetime.now(dt.UTC))
    else:
        report = replace(report, resumed=report.resumed + 1)
    return _Copy(source, target, report, advance).run(patience_s)


class _Copy:
    """One run of a copy; each step makes the next report, from which a later run resumes."""

    def __init__(self, source: StoreAdmin, target: StoreAdmin, report: CopyReport, advance: Advance) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._advance = advance
        self._known: set[bytes] = set()

    def run(self, patience_s: float) -> CopyReport:
        """Make both passes, retrying each as often as necessary."""
        last, pause_s = "", _SHORTEST_PAUSE_S
        waits_until = time.monotonic() + patience_s
        while self._report.stage != "done":
            try:
                self._pass()
            except StoreUnavailableError as error:
                now = time.monotonic()
                if self._report.cursor != last:
                    last, pause_s, waits_until = self._report.cursor, _SHORTEST_PAUSE_S, now + patience_s
                if now > waits_until:
                    raise
                log.warning("store unavailable, copy waits", error=str(error), pause_s=pause_s)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return self._report

    def _pass(self) -> None:
        report = self._report
        if report.stage == "copy":
            work, next_stage, done = self._copied, "verify", report.read
        else:
            work, next_stage, done = self._verified, "done", report.compared
        total = self._source.count()
        for page in self._source.scan(report.cursor):
            if page.restarted:
                done = 0
                is_first = report.stage == "copy"
                self._report = replace(
                    self._report, **({"read": 0} if is_first else {"compared": 0, "damage": Damage()})
                )
            self._report = work(page)
            done += len(page.records)
            self._advance(report.stage, done, total)
        if next_stage == "done":
            self._target.clear_note()
        self._report = replace(self._report, stage=next_stage, cursor="")

    def _copied(self, page: Page) -> CopyReport:
        whole = [raw for raw, _ in Damage().sort(page.records)]
        sizes = [len(raw.value) for raw in whole]

        def after(outcomes: list[Merged]) -> CopyReport:
            counts = Counter(outcomes)
            report = self._report
            return replace(
                report,
                cursor=page.cursor,
                read=report.read + len(page.records),
                written=report.written + counts[Merged.WRITTEN],
                present=report.present + counts[Merged.PRESENT],
                kept=report.kept + counts[Merged.KEPT],
                bytes=report.bytes
                + sum(size for size, outcome in zip(sizes, outcomes, strict=True) if outcome is Merged.WRITTEN),
            )

        return self._put(whole, after)

    def _verified(self, page: Page) -> CopyReport:
        damage = Damage(self._report.damage.count, [*self._report.damage.examples])
        behind = [raw for raw, there in pairs(self._target, damage.sort(page.records)) if there.is_behind]

        def after(outcomes: list[Merged]) -> CopyReport:
            report = self._report
            return replace(
                report,
                cursor=page.cursor,
                compared=report.compared + len(page.records),
                mended=report.mended + outcomes.count(Merged.WRITTEN),
                damage=damage,
            )

        report = self._put(behind, after)
        again = [raw for raw, there in pairs(self._target, Damage().sort(behind)) if there.is_behind]
        if again:
            raise StoreError(
                f"the target has not kept the records put into it, first {record_format.named(again[0].key)}"
            )
        return report

    def _put(self, records: list[Raw], after: Callable[[list[Merged]], CopyReport]) -> CopyReport:
        if not {raw.key[: record_format.PREFIX_BYTES] for raw in records} <= self._known:
            models = self._source.models()
            self._target.register(models)
            self._known.update(models)
        return after(self._target.put(records, lambda outcomes: orjson.dumps(after(outcomes))))


def _noted(target: StoreAdmin, source: str) -> CopyReport | None:
    """Return the progress of a copy of ``source``; None for a note of another source or release."""
    try:
        noted = orjson.loads(target.note() or b"")
        begun_at, damage = dt.datetime.fromisoformat(noted.pop("begun_at")), Damage(**noted.pop("damage"))
        report = CopyReport(**noted, begun_at=begun_at, damage=damage)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return report if report.source == source else None
