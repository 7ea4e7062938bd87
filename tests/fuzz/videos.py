"""Mutated video files through a running embedder: none crashes or hangs it, each is accounted for, no memory stays.

    python -m fuzz.videos --count 5000 --seed 1        (make fuzz-video)

The same seed makes the same files. Each exists from its upload to its outcome. Exits with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from streamer.events import Reason
from streamer.local_kafka.broker import LocalKafka
from tests.fuzz.video_bases import write_bases
from tests.fuzz.video_mutations import mutated_video
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Record, Service, apply_topics, environment
from tests.support.load import MIB, Memory
from tests.support.processes import children

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_FLIGHT = 192
"""Files that wait for their outcome at a time; enough that the embedder never waits for the next ones."""
BATCH = 32
STALLED_SECONDS = 120
WARM_UP = 600
"""Files until which the service has taken what it keeps for good: the model's buffers, its threads' heaps."""
SETTINGS = {
    "STREAMER_DECODE_WORKERS": "2",
    "STREAMER_DECODE_TIMEOUT": "20",
    "STREAMER_MAX_FRAMES": "8",
    "STREAMER_FETCH_RETRY_TIMEOUT": "1",
}
MAX_GROWTH = 1.1
OF_THE_FILE = {Reason.NO_VIDEO, Reason.DECODE_FAILED, Reason.CLIP_TOO_LARGE}
OF_THE_DECODER = {Reason.DECODE_TIMEOUT, Reason.DECODER_CRASHED}


@dataclass(slots=True)
class Tally:
    """What became of the files, by number, and of the service.

    ``kinds``: the mutation. ``outcomes``: embedded, partial or a dead letter's reason. ``again``: files that came to
    an outcome more than once. ``resident``: bytes after the warm-up and at the end. ``left``: processes of the
    embedder's that still decoded at the end.
    """

    kinds: dict[int, str] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    resident: tuple[int, int] = (0, 0)
    left: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def missed(self) -> list[str]:
        """Return the bars that were missed; memory is judged only where a warm-up came before."""
        missed = []
        if self.kinds.keys() != self.outcomes.keys():
            missed.append(f"files without an outcome: {sorted(self.kinds.keys() - self.outcomes.keys())[:20]}")
        if self.again:
            missed.append(f"files with more than one outcome: {self.again[:20]}")
        known = {"embedded", "partial"} | OF_THE_FILE | OF_THE_DECODER
        ours = {number: outcome for number, outcome in self.outcomes.items() if outcome not in known}
        if ours:
            missed.append(f"files that were no fault of theirs: {ours}")
        damaged = [n for n, kind in self.kinds.items() if kind == "whole" and self.outcomes.get(n) != "embedded"]
        if damaged:
            missed.append(f"whole files that were not embedded: {damaged[:20]}")
        if self.left:
            missed.append(f"decoders that were left over: {self.left}")
        before, after = self.resident
        if after > before * MAX_GROWTH:
            missed.append(f"memory: {after / MIB:.0f} MiB, {before / MIB:.0f} MiB after the warm-up")
        return missed

    def table(self) -> str:
        """Return the counts of outcomes, altogether and for each mutation."""
        columns = [name for name, _ in Counter(self.outcomes.values()).most_common()]
        rows = {kind: Counter[str]() for kind in sorted(set(self.kinds.values()))}
        for number, outcome in self.outcomes.items():
            rows[self.kinds[number]][outcome] += 1
        rows["all"] = sum(rows.values(), Counter[str]())
        lines = ["".join([f"{'mutation':20}", *(f"{name:>17}" for name in columns)])]
        lines += ["".join([f"{kind:20}", *(f"{row[name]:17}" for name in columns)]) for kind, row in rows.items()]
        return "\n".join(lines)


class Outcomes:
    """Reads what becomes of uploads, as it is committed."""

    def __init__(self, bus: Bus) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bus.bootstrap_servers,
                "group.id": f"{bus.prefix}fuzz",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        names = [bus.prefix + EMBEDDED, f"{bus.prefix}{UPLOADED}.dlq"]
        topics = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign([TopicPartition(n, p, OFFSET_BEGINNING) for n in names for p in topics[n].partitions])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self) -> Iterator[tuple[int, str]]:
        """Give the numbers of files and their outcomes that have come since, after a moment's wait."""
        for message in self._consumer.consume(BATCH, 0.05):
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            record = Record.read(message)
            assert record.key is not None
            if record.topic.endswith(".dlq"):
                yield int(record.key), record.header("dlq.reason")
            else:
                yield int(record.key), "partial" if record.event.get("partial") else "embedded"


class Fuzz:
    """One run: the same embedder from the first file to the last."""

    def __init__(self, bus: Bus, folder: Path, seed: int, *, save: Path | None = None) -> None:
        self.tally = Tally()
        self._bus = bus
        self._folder = folder / "files"
        self._folder.mkdir()
        self._bases = write_bases(self._folder)
        self._seed = seed
        self._save = save
        self._paths: dict[int, Path] = {}
        self._last = time.monotonic()

    @contextmanager
    def serve(self) -> Iterator[Service]:
        """Run the embedder, and show in the end that it is the same one, has committed all, and stops cleanly."""
        folder = self._folder.parent
        variables = environment(self._bus, folder / "store", [self._folder], **SETTINGS)
        apply_topics(variables, folder)
        with Service("embed", variables, folder) as service:
            service.await_ready(seconds=150)
            yield service
            self._bus.await_group("streamer-embed", UPLOADED, seconds=60, alive=[service])
            service.stop()

    def upload(self, count: int, service: Service, outcomes: Outcomes) -> None:
        """Make and upload so many more files, and wait until each has come to its outcome."""
        first = len(self.tally.kinds)
        numbers = iter(range(first, first + count))
        to_come = count
        self._last = time.monotonic()
        while to_come or self._paths:
            if to_come and len(self._paths) <= IN_FLIGHT - BATCH:
                batch = [self._make(next(numbers)) for _ in range(min(BATCH, to_come))]
                to_come -= len(batch)
                self._bus.publish(UPLOADED, batch)
            self._settle(outcomes)
            service.check_alive()
            waits = {number: self.tally.kinds[number] for number in self._paths}
            assert time.monotonic() - self._last < STALLED_SECONDS, f"no outcome for these: {waits}\n{service.tail()}"

    def _make(self, number: int) -> Record:
        kind, ending, content = mutated_video(Random(f"{self._seed}-{number}"), self._bases)  # noqa: S311 - no secret
        path = self._folder / f"{number}.{ending}"
        path.write_bytes(content)
        self._paths[number], self.tally.kinds[number] = path, kind
        event = {"clip_id": str(number), "uri": path.as_uri(), "uploaded_at": datetime.now(UTC).isoformat()}
        return Record.of(str(number), event)

    def _settle(self, outcomes: Outcomes) -> None:
        for number, outcome in outcomes.read():
            self._last = time.monotonic()
            if number in self.tally.outcomes:
                self.tally.again.append(number)
                continue
            self.tally.outcomes[number] = outcome
            path = self._paths.pop(number)
            if self._save and outcome in OF_THE_DECODER:
                path.rename(self._save / f"{outcome}-{path.name}")
            else:
                path.unlink()


def resident(service: Service) -> int:
    """Return the memory of the embedder's own process once it rests, in bytes."""
    readings = []
    for _ in range(5):
        time.sleep(0.5)
        readings.append(Memory(service.pid).rss)
    return min(readings)


def fuzz(bus: Bus, folder: Path, *, count: int, warm_up: int, seed: int, save: Path | None = None) -> Tally:
    """Run so many files through an embedder, the first ``warm_up`` of them before memory is looked at."""
    run = Fuzz(bus, folder, seed, save=save)
    began = time.monotonic()
    with run.serve() as service, Outcomes(bus) as outcomes:
        run.upload(warm_up, service, outcomes)
        before = resident(service)
        run.upload(count - warm_up, service, outcomes)
        run.tally.resident = before, resident(service)
        run.tally.left = [decoder for template in children(service.pid) for decoder in children(template)]
        # A second outcome would have followed the first by now, with the offset that it commits.
        run.tally.again += [number for number, _ in outcomes.read()]
    run.tally.seconds = time.monotonic() - began
    return run.tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5_000, help=f"files, of which {WARM_UP} come before memory counts")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="of the files")
    parser.add_argument("--save", type=Path, help="a folder for the files that crashed a decoder or ran out of time")
    options = parser.parse_args()
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
    print(f"{options.count} files, seed {options.seed}", flush=True)  # noqa: T201 - the report is what this is run for
    with tempfile.TemporaryDirectory(prefix="fuzz-video-") as folder, LocalKafka() as kafka:
        tally = fuzz(
            Bus(kafka.bootstrap_servers, ""),
            Path(folder),
            count=options.count,
            warm_up=min(WARM_UP, options.count // 2),
            seed=options.seed,
            save=options.save,
        )
    before, after = (size / MIB for size in tally.resident)
    missed = tally.missed()
    print(  # noqa: T201
        tally.table(),
        f"{len(tally.outcomes)} files in {tally.seconds:.0f} s",
        f"resident memory {before:.0f} MiB after the warm-up, {after:.0f} MiB at the end ({after / before - 1:+.1%})",
        *(f"MISSED: {each}" for each in missed),
        sep="\n",
    )
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
