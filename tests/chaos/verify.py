"""What came out against what went in: one finding for each guarantee."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from streamer.codec import JSON
from streamer.events import ClipEmbedded, InvalidEvent, QueryReranked
from streamer.store import StoreOptions, open_existing
from tests.chaos.inputs import CE_CAUSE, Delete, Query, Refused, Unreadable, Upload
from tests.chaos.oracle import living
from tests.support.driver import EMBEDDED, RERANKED, RESULTS, UPLOADED, check_dead_letter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from tests.chaos.inputs import Input
    from tests.chaos.ledger import Ledger
    from tests.support.driver import Record

M = TypeVar("M")
E = TypeVar("E", ClipEmbedded, QueryReranked)

DEAD_LETTERS = {UPLOADED: f"{UPLOADED}.dlq", RESULTS: f"{RESULTS}.dlq"}
OUTPUTS = (EMBEDDED, RERANKED, *DEAD_LETTERS.values())
TOLERANCE = 2e-3
"""Between vectors of one file: they are stored as float16, and the sums of a batch depend on its size."""

_READ_S = 60.0
_BEHIND_S = 120.0
"""How long a record may have waited for an embedder."""


@dataclass(frozen=True, slots=True)
class StoredClip:
    """What a store holds of one clip; ``vectors`` (n, d) float32."""

    vectors: npt.NDArray[np.float32]
    times_ms: tuple[int, ...]
    duration_ms: int
    uploaded_us: int

    def distance(self, other: StoredClip) -> float:
        """Return the largest difference between components, infinite where the shapes differ."""
        if self.vectors.shape != other.vectors.shape:
            return float("inf")
        return float(np.abs(self.vectors - other.vectors).max())


def read_store(url: str, model_id: str) -> dict[str, StoredClip]:
    """Return all live clips of a store by their ids."""
    store = open_existing(url, model_id=model_id, options=StoreOptions(timeout_s=_READ_S))
    try:
        clip_ids = sorted({*store.clip_ids()})
        with store.read(clip_ids) as embeddings:
            found = {
                clip_id: StoredClip(
                    np.asarray(each.matrix, np.float32),
                    tuple(each.times_ms.tolist()),
                    each.duration_ms,
                    each.uploaded_us,
                )
                for clip_id, each in zip(clip_ids, embeddings, strict=True)
                if each is not None
            }
        assert len(found) == len(clip_ids), f"{len(clip_ids) - len(found)} records are damaged"
        return found
    finally:
        store.close()


@dataclass(slots=True)
class Finding:
    """One guarantee, what was counted, and what broke it."""

    guarantee: str
    counted: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Whether nothing broke the guarantee."""
        return not self.problems


class Verdict:
    """Compares the outputs of a run with its inputs."""

    def __init__(self, inputs: Sequence[Input], outputs: Mapping[str, Sequence[Record]], ledger: Ledger) -> None:
        """`outputs` holds what read_committed consumers see of each topic of :data:`OUTPUTS`."""
        self._inputs = inputs
        self._outputs = outputs
        self._ledger = ledger
        self._by_mark = {each.mark: each for each in inputs}
        self._unreadable = {
            (each.record.topic, each.record.partition, each.record.offset): each
            for each in inputs
            if isinstance(each.meaning, Unreadable)
        }
        self._beyond_restoring = {
            each.meaning.clip_id
            for each in inputs
            if isinstance(each.meaning, Upload | Delete) and self._is_beyond_restoring(each, each.meaning.clip_id)
        }
        self._seen: dict[str, Counter[str]] = {}

    def _is_beyond_restoring(self, each: Input, clip_id: str) -> bool:
        """Whether a clip that the store has lost need not come back when the log is read again, because of this input.

        It may stand in a log that is not there any more. A delete of a clip that the store does not know counts from
        its own time, which is later than that of all uploads here.
        """
        lost_at = self._ledger.forgotten.get(clip_id)
        if lost_at is None:
            return False
        if isinstance(each.meaning, Delete):
            return each.published_at > lost_at - _BEHIND_S
        return each.generation < self._ledger.generation(each.record.topic, each.record.partition)

    def answers(self) -> list[tuple[Input, QueryReranked]]:
        """Return the answers that are valid events, with what they answer."""
        return [
            (cause, answer)
            for cause, _, answer in self._caused(RERANKED, Query, QueryReranked)
            if not isinstance(answer, InvalidEvent)
        ]

    def files(self) -> dict[str, set[str]]:
        """Return the files that each clip was ever uploaded with."""
        found: dict[str, set[str]] = defaultdict(set)
        for each in self._meant(Upload):
            assert isinstance(each.meaning, Upload)
            found[each.meaning.clip_id].add(each.meaning.file)
        return found

    def embedded_since(self) -> dict[str, float]:
        """Return when each clip was first announced, in seconds after 1970 by the embedders' clocks.

        Clips that were ever deleted, or lost by the store, are left out: they may have been gone again.
        """
        found: dict[str, float] = {}
        for _, upload, event in self._caused(EMBEDDED, Upload, ClipEmbedded):
            if not isinstance(event, InvalidEvent):
                at = event.embedded_at.timestamp()
                found[upload.clip_id] = min(at, found.get(upload.clip_id, at))
        gone = {each.meaning.clip_id for each in self._inputs if isinstance(each.meaning, Delete)}
        return {clip_id: at for clip_id, at in found.items() if clip_id not in gone | self._ledger.forgotten.keys()}

    def seen(self) -> dict[str, Counter[str]]:
        """Return how many inputs of each kind a reader from outside sees come out how; after :meth:`findings`."""
        return self._seen

    def findings(self, store: Mapping[str, StoredClip], clean: Mapping[str, StoredClip]) -> list[Finding]:
        """Judge every guarantee; `clean` is what a run without faults stored of each file."""
        return [
            self._answered(),
            self._permuted(),
            self._not_degraded(),
            self._announced(),
            self._announcements_fit(clean),
            self._alive(store),
            self._as_in_a_clean_run(store, clean),
            self._dead_letters(),
            self._nothing_else(),
        ]

    # -- the reranker --------------------------------------------------------------------------------------

    def _answered(self) -> Finding:
        queries = self._meant(Query)
        finding = Finding("every query event is answered exactly once", f"{len(queries)} events")
        refused = [
            letter
            for letter in self._outputs[DEAD_LETTERS[RESULTS]]
            if (cause := self._cause(letter)) is not None and self._is_refused_answer(cause, letter)
        ]
        self._seen["answers too large, dead letters instead"] = Counter({"once": len(refused)})
        self._account(finding, "queries", queries, self._marks(RERANKED) + Counter(map(_mark, refused)))
        return finding

    def _is_refused_answer(self, cause: Input, letter: Record) -> bool:
        """Whether a dead letter stands for an answer that was too large for its topic, when that was made small."""
        return (
            isinstance(cause.meaning, Query)
            and letter.header("dlq.reason") == "too_large"
            and self._ledger.may_be_too_large(cause, len(cause.meaning.candidates))
        )

    def _permuted(self) -> Finding:
        finding = Finding("every answer is a permutation of its candidates", f"{len(self._outputs[RERANKED])} answers")
        for _, query, answer in self._caused(RERANKED, Query, QueryReranked):
            if isinstance(answer, InvalidEvent):
                finding.problems.append(f"{query.query_id}: {answer}")
                continue
            ids = [each.clip_id for each in answer.results]
            initial = {each.initial_rank: each.clip_id for each in answer.results}
            if (
                answer.query_id != query.query_id
                or sorted(ids) != sorted(query.candidates)
                or [initial.get(rank) for rank in range(1, len(ids) + 1)] != list(query.candidates)
                or [each.rank for each in answer.results] != list(range(1, len(ids) + 1))
            ):
                finding.problems.append(query.query_id)
        return finding

    def _not_degraded(self) -> Finding:
        reasons: Counter[str] = Counter()
        excused = 0
        for cause, _, answer in self._caused(RERANKED, Query, QueryReranked):
            if isinstance(answer, InvalidEvent) or answer.degraded is None:
                continue
            if answer.degraded == "store_unavailable" and self._ledger.may_be_degraded(cause):
                excused += 1
            else:
                reasons[answer.degraded] += 1
        finding = Finding(
            "no answer is degraded while the store can be read",
            f"{reasons.total()} degraded, and {excused} while it could not be read",
        )
        finding.problems = [f"{count} x {reason}" for reason, count in reasons.items()]
        return finding

    # -- the embedder --------------------------------------------------------------------------------------

    def _announced(self) -> Finding:
        uploads = self._meant(Upload)
        finding = Finding("every upload is announced exactly once", f"{len(uploads)} uploads")
        self._account(finding, "uploads", uploads, self._marks(EMBEDDED))
        return finding

    def _announcements_fit(self, clean: Mapping[str, StoredClip]) -> Finding:
        finding = Finding("every announcement fits its upload", f"{len(self._outputs[EMBEDDED])} announcements")
        for _, upload, event in self._caused(EMBEDDED, Upload, ClipEmbedded):
            if isinstance(event, InvalidEvent):
                finding.problems.append(f"{upload.clip_id}: {event}")
                continue
            reference = clean[upload.file]
            expected = (upload.clip_id, upload.uploaded_at, len(reference.times_ms), reference.duration_ms)
            if (event.clip_id, event.uploaded_at, event.frames, event.duration_ms) != expected:
                finding.problems.append(f"{event} is not {expected}")
        return finding

    def _alive(self, store: Mapping[str, StoredClip]) -> Finding:
        expected = living(self._inputs)
        missing = sorted(expected.keys() - store.keys() - self._beyond_restoring)
        # A late upload lives where the store has lost the tombstone that would have refused it.
        alive = sorted(store.keys() - expected.keys() - self._ledger.forgotten.keys())
        finding = Finding(
            "the store holds exactly the clips that the log says are alive",
            f"{len(expected)} clips alive, {len(self._ledger.forgotten)} lost by the store meanwhile",
        )
        finding.problems = [
            *(f"{clip_id} is missing" for clip_id in missing),
            *(f"{clip_id} should be gone" for clip_id in alive),
        ]
        return finding

    def _as_in_a_clean_run(self, store: Mapping[str, StoredClip], clean: Mapping[str, StoredClip]) -> Finding:
        finding = Finding("each clip is stored as a clean run stores it, in the right version")
        largest = 0.0
        for clip_id, upload in living(self._inputs).items():
            stored, reference = store.get(clip_id), clean[upload.file]
            if stored is None or clip_id in self._beyond_restoring:
                continue
            if stored.uploaded_us != round(upload.uploaded_at.timestamp() * 1e6):
                finding.problems.append(f"{clip_id} is not the version of {upload.uploaded_at}")
            elif (stored.times_ms, stored.duration_ms) != (reference.times_ms, reference.duration_ms):
                finding.problems.append(f"{clip_id} has other times than {upload.file}")
            elif (distance := stored.distance(reference)) > TOLERANCE:
                finding.problems.append(f"{clip_id} differs by {distance:.4f} from {upload.file}")
            else:
                largest = max(largest, distance)
        finding.counted = f"largest difference {largest:.1e}"
        return finding

    # -- both ----------------------------------------------------------------------------------------------

    def _dead_letters(self) -> Finding:
        refused = self._meant(Refused)
        finding = Finding("dead letters are exactly those that the inputs explain", f"{len(refused)} dead letters")
        causes = [cause for topic in DEAD_LETTERS.values() for cause in map(self._cause, self._outputs[topic]) if cause]
        found = Counter(cause.mark for cause in causes)
        self._account(finding, "records to refuse", refused, found)
        self._account(finding, "batches hard to decompress", self._meant(Unreadable), found)
        for source, topic in DEAD_LETTERS.items():
            for letter in self._outputs[topic]:
                original = self._cause(letter)
                if original is None or not isinstance(original.meaning, Refused):
                    continue
                try:
                    check_dead_letter(letter, original.record)
                    place = (int(letter.header("dlq.partition")), int(letter.header("dlq.offset")))
                    assert letter.header("dlq.topic").endswith(source), "another topic"
                    assert place == (original.record.partition, original.record.offset), f"another place: {place}"
                    assert letter.header("dlq.reason") == original.meaning.reason, letter.header("dlq.reason")
                except (AssertionError, ValueError) as error:
                    finding.problems.append(f"{original.mark} ({original.meaning.reason}): {error}")
        return finding

    def _nothing_else(self) -> Finding:
        """Show that no output came from nowhere, or from a record that should not cause it."""
        meanings = {EMBEDDED: Upload, RERANKED: Query} | dict.fromkeys(DEAD_LETTERS.values(), Refused | Unreadable)
        total = sum(len(records) for records in self._outputs.values())
        finding = Finding("nothing else is in the output topics", f"{total} records")
        for topic, meaning in meanings.items():
            for record in self._outputs[topic]:
                cause = self._cause(record)
                if cause is None:
                    finding.problems.append(f"{topic}: {record.key!r} comes from nowhere")
                elif not isinstance(cause.meaning, meaning) and not (
                    topic == DEAD_LETTERS[RESULTS] and self._is_refused_answer(cause, record)
                ):
                    why = dict(record.headers).get("dlq.error", b"").decode(errors="replace")
                    finding.problems.append(f"{topic}: {cause.mark} {cause.meaning} {why}")
        return finding

    def _meant(self, meaning: type[M]) -> list[Input]:
        return [each for each in self._inputs if isinstance(each.meaning, meaning)]

    def _cause(self, record: Record) -> Input | None:
        """Return the input that a record of an output topic came from: by its mark, or by the place that it names."""
        cause = self._by_mark.get(_mark(record))
        headers = dict(record.headers)
        if cause is not None or "dlq.offset" not in headers:
            return cause
        topic = headers["dlq.topic"].decode()
        place = (int(headers["dlq.partition"]), int(headers["dlq.offset"]))
        return next(
            (each for (own, *rest), each in self._unreadable.items() if topic.endswith(own) and place == tuple(rest)),
            None,
        )

    def _account(self, finding: Finding, name: str, inputs: Iterable[Input], found: Mapping[str, int]) -> None:
        """Compare how often inputs came out with how often they may."""
        seen: Counter[str] = Counter()
        by_count: dict[tuple[str, int], list[str]] = defaultdict(list)
        for each in inputs:
            count = found[each.mark]
            fewest, most = self._ledger.bounds(each)
            if count < fewest:
                kind = "lost"
            elif count > most:
                kind = "doubled"
            else:
                kind = "once" if count == 1 else "again, as told" if count else "deleted unread"
            seen[kind] += 1
            if kind in {"lost", "doubled"}:
                by_count[kind, count].append(f"{each.mark} at {each.order}")
        self._seen[name] = seen
        if seen:
            finding.counted = ", ".join(f"{count} {kind}" for kind, count in seen.items())
        finding.problems += [
            f"{place} came out {count} times" for (_, count), places in by_count.items() for place in places
        ]

    def _marks(self, topic: str) -> Counter[str]:
        return Counter(_mark(record) for record in self._outputs[topic])

    def _caused(self, topic: str, meaning: type[M], model: type[E]) -> Iterator[tuple[Input, M, E | InvalidEvent]]:
        """Go through the outputs of a topic that come from inputs of one meaning."""
        for record in self._outputs[topic]:
            cause = self._cause(record)
            if cause is None or not isinstance(cause.meaning, meaning):
                continue
            try:
                yield cause, cause.meaning, JSON.decode(model, record.value, record.key)
            except InvalidEvent as error:
                yield cause, cause.meaning, error


def _mark(record: Record) -> str:
    return dict(record.headers).get(CE_CAUSE, b"").decode()
