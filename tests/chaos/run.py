"""The whole story of a run: set up, break, heal, compare, report."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.chaos.brokers import SESSION_S, Brokers
from tests.chaos.client_faults import DECODE_WORKERS
from tests.chaos.clock import Clock
from tests.chaos.faults import Saboteur
from tests.chaos.groups import await_committed
from tests.chaos.inputs import (
    EPOCH,
    Delete,
    Query,
    Refused,
    Unreadable,
    Upload,
    last_queries,
    make_footage,
    make_inputs,
)
from tests.chaos.kinds import CLUSTER, EMBED, Fault
from tests.chaos.ledger import Ledger
from tests.chaos.machine import small_disk
from tests.chaos.plan import make_plan
from tests.chaos.publisher import Publisher
from tests.chaos.report import Report
from tests.chaos.scene import GROUPS, INPUTS, Scene
from tests.chaos.scores import Judge
from tests.chaos.services import Cause, Instance, await_at_work
from tests.chaos.sources import NETWORKS, Sources
from tests.chaos.stores import ClusterStore
from tests.chaos.uncommitted import count_all
from tests.chaos.verify import OUTPUTS, TOLERANCE, Finding, StoredClip, Verdict, read_store
from tests.chaos.watch import Watch, named
from tests.support.driver import UPLOADED, Bus, Record, Service, apply_topics, environment, model_dir
from tests.support.recompute import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from tests.chaos.faults import Strike
    from tests.chaos.inputs import Input
    from tests.chaos.plan import Scale

PREFIX, CLEAN_PREFIX = "chaos.", "clean."
_START_S = 240.0
_SPARE_S = 60.0
_CATCH_UP_S = 180.0
_STOP_S = 10.0
"""Seconds that a service may take from SIGTERM to its end."""


class Run:
    """One run in a folder of its own."""

    def __init__(self, seed: int, scale: Scale, folder: Path) -> None:
        self.seed = seed
        self.scale = scale
        self.folder = folder
        self.plan = make_plan(seed, scale)
        self.clips = folder / "clips"
        self.clips.mkdir(parents=True)
        self.files = make_footage(self.clips, scale.files, seed)
        self.sources = Sources(self.clips, self.files)
        self.inputs = make_inputs(seed, scale, self.clips, self.files, self.sources.fast)
        self.seconds: dict[str, float] = {}

    def run(self) -> Report:
        """Break everything, and judge what is left."""
        with ExitStack() as stack:
            with self._timed("start"):
                brokers = Brokers(self.folder / "kafka")
                stack.enter_context(brokers.kafka)
                stack.enter_context(self.sources)
                disk = stack.enter_context(small_disk()) if self.plan.holds(Fault.DISK_FULL) else None
                bus = Bus(brokers.kafka.bootstrap_servers, PREFIX)
                variables = self._variables(bus, "store")
                store: Path | ClusterStore = self.folder / "store" / "data.mdb"
                if self.scale.store == CLUSTER:
                    store = stack.enter_context(ClusterStore(self.folder / "store"))
                    variables |= store.variables()
                apply_topics(variables, self.folder)
                temporary = {"TMPDIR": str(disk)} if disk is not None else {}
                services = self._start_services(variables | temporary | _settings(brokers.client()))
                stack.callback(_end, services.values())
                model_id, clean = self._clean_run(brokers.kafka.bootstrap_servers)
                await_at_work(list(services.values()), seconds=_START_S)
            with self._timed("faults"):
                clock, ledger = Clock(), Ledger()
                publisher = Publisher(bus.bootstrap_servers, PREFIX, self.inputs, clock, ledger)
                scene = Scene(
                    services,
                    brokers,
                    bus,
                    clock,
                    publisher,
                    ledger,
                    self.plan.protocols,
                    self.sources,
                    store,
                    disk,
                )
                watch = Watch(services.values(), clock)
                watch.start()
                publisher.start()
                saboteur = Saboteur(
                    self.plan, scene, self.folder / "strikes.log", limit_s=1.25 * self.scale.seconds + _SPARE_S
                )
                saboteur.run()
                publisher.join()
            with self._timed("catch up"):
                brokers.await_in_sync()
                if ledger.forgotten:
                    # What an operator does where a store has lost records (docs/store.md).
                    scene.read_again(EMBED)
                caught_up = [_catch_up(bus)]
                await_at_work(list(services.values()), seconds=_START_S)
                last = last_queries(self.seed, _clip_ids(publisher.published()))
                for each in last:
                    publisher.add(each)
                published = publisher.published() + scene.extra
                caught_up.append(_catch_up(bus, "both groups commit what comes then"))
            with self._timed("stop"):
                watch.stop()
                _end(services.values())
            with self._timed("verify"):
                there = {topic: bus.read(topic) for topic in OUTPUTS}
                outputs = {topic: ledger.kept(topic) + records for topic, records in there.items()}
                verdict = Verdict(published, outputs, ledger)
                url = store.cluster.url if isinstance(store, ClusterStore) else self._store("store")
                stored = read_store(url, model_id)
                findings = [
                    *caught_up,
                    *verdict.findings(stored, clean),
                    *self._judged(verdict, {each.mark for each in last}, stored, clean, ledger),
                    _ended_well(services.values()),
                    _harmless(saboteur.strikes),
                ]
            return Report(
                seed=self.seed,
                plan=self.plan,
                strikes=sorted(saboteur.strikes, key=lambda strike: strike.at),
                exits=[each for service in services.values() for each in service.exits],
                said=_said(services.values()),
                findings=findings,
                seen=verdict.seen(),
                named=named(saboteur.strikes, watch.sightings),
                counts={
                    **_counts(published),
                    **_aborted(bus, there),
                    "faults after the last input": sum(strike.at > publisher.ended_at for strike in saboteur.strikes),
                },
                seconds=self.seconds,
            )

    def _judged(
        self,
        verdict: Verdict,
        last: AbstractSet[str],
        stored: Mapping[str, StoredClip],
        clean: Mapping[str, StoredClip],
        ledger: Ledger,
    ) -> list[Finding]:
        """Work the answers' scores out again: of the ``last`` ones by what the store holds, of others by all it had."""
        judge = Judge(Oracle(model_dir()).text)
        answers = verdict.answers()
        possible = {clip_id: [clean[file] for file in sorted(files)] for clip_id, files in verdict.files().items()}
        # The embedders' clocks tell nothing where some of them are shifted.
        since = {} if self.plan.holds(Fault.CLOCK) else verdict.embedded_since()
        return [
            judge.while_broken([each for each in answers if each[0].mark not in last], possible, ledger, since),
            judge.in_the_end([each for each in answers if each[0].mark in last], stored, len(last)),
        ]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - began

    def _store(self, name: str) -> str:
        return f"lmdb:{self.folder / name}"

    def _variables(self, bus: Bus, store: str) -> dict[str, str]:
        variables = environment(
            bus,
            self.folder / store,
            [self.clips],
            STREAMER_ALLOWED_URIS=json.dumps([self.clips.as_uri(), self.sources.fast, self.sources.slow]),
            STREAMER_ALLOWED_NETWORKS=json.dumps(NETWORKS),
            # What the small disk holds.
            STREAMER_MAX_CLIP_BYTES=str(4 << 20),
            STREAMER_DOWNLOAD_BYTES=str(8 << 20),
            STREAMER_DECODE_WORKERS=str(DECODE_WORKERS),
            STREAMER_FETCH_RETRY_TIMEOUT="5",
            # Processes that start take most of two cores: a model with threads of its own would only wait for them.
            OMP_NUM_THREADS="1",
        )
        # Compiling torch anew takes two thirds of a start, and there are dozens of starts.
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        return variables

    def _start_services(self, variables: Mapping[str, str]) -> dict[str, Instance]:
        folder = self.folder / "logs"
        folder.mkdir()
        services = {
            name: Instance(role, name, {**variables, **_group_settings(self.plan.protocols[role])}, folder)
            for role in GROUPS
            for name in self.scale.names(role)
        }
        for service in services.values():
            service.start()
        return services

    def _clean_run(self, bootstrap_servers: str) -> tuple[str, dict[str, StoredClip]]:
        """Embed each file once, in peace, under topics and in a store of its own; return model and clips."""
        bus = Bus(bootstrap_servers, CLEAN_PREFIX)
        variables = self._variables(bus, "clean-store")
        apply_topics(variables, self.folder)
        events = [
            {"clip_id": name, "uri": (self.clips / name).as_uri(), "uploaded_at": EPOCH.isoformat()}
            for name in self.files
        ]
        with Service(EMBED, variables, self.folder) as embedder:
            embedder.await_ready(seconds=_START_S)
            bus.publish(UPLOADED, [Record.of(event["clip_id"], event) for event in events])
            bus.await_group(GROUPS[EMBED], UPLOADED, seconds=_START_S, alive=[embedder])
            model_id = bus.read("clips.embedded")[0].event["model_id"]
            embedder.stop()
        clean = read_store(self._store("clean-store"), model_id)
        assert clean.keys() == set(self.files), "the clean run has not embedded every file"
        for one, other in itertools.combinations(clean.values(), 2):
            assert one.distance(other) > 10 * TOLERANCE, "two files look alike: no mix-up could be seen"
        return model_id, clean


def _settings(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give a service these properties of the Kafka client."""
    variables = {"STREAMER_BOOTSTRAP_SERVERS": properties["bootstrap.servers"]}
    return variables | {
        f"STREAMER_KAFKA__{name.upper().replace('.', '_')}": value
        for name, value in properties.items()
        if name != "bootstrap.servers"
    }


def _group_settings(protocol: str) -> dict[str, str]:
    """Return the settings of a group's members; under the newer protocol the timeouts are the brokers'."""
    settings = {"GROUP_PROTOCOL": protocol, "MAX_POLL_INTERVAL_MS": "20000"}
    if protocol == "classic":
        settings |= {"SESSION_TIMEOUT_MS": str(SESSION_S * 1000), "HEARTBEAT_INTERVAL_MS": "1500"}
    return {f"STREAMER_KAFKA__{name}": value for name, value in settings.items()}


def _clip_ids(published: Iterable[Input]) -> list[str]:
    """Return the clips that were ever uploaded or deleted."""
    return sorted({each.meaning.clip_id for each in published if isinstance(each.meaning, Upload | Delete)})


def _catch_up(bus: Bus, what: str = "both groups commit everything once the faults are over") -> Finding:
    """Wait until both groups have committed all that there is."""
    finding = Finding(what, f"within {_CATCH_UP_S:.0f} s")
    for role, group in GROUPS.items():
        try:
            await_committed(bus, group, INPUTS[role], seconds=_CATCH_UP_S)
        except TimeoutError as error:
            finding.problems.append(str(error))
    return finding


def _end(services: Iterable[Instance]) -> None:
    for service in services:
        service.stop()
    for service in services:
        service.join(_STOP_S)


def _ended_well(services: Iterable[Instance]) -> Finding:
    finding = Finding("a process ends only when it is made to, and with exit code 0 on SIGTERM")
    ends = Counter(each.cause for service in services for each in service.exits)
    finding.counted = ", ".join(f"{count} {cause}" for cause, count in ends.items())
    for service in services:
        finding.problems += [
            f"{each.name} ended with {each.code} at {each.at}: {each.log_tail[-1:]}"
            for each in service.exits
            if each.cause is Cause.UNEXPECTED
        ]
        if not service.exits or service.exits[-1].cause is not Cause.STOPPED:
            finding.problems.append(f"{service.name} did not stop in order")
    return finding


def _harmless(strikes: Iterable[Strike]) -> Finding:
    finding = Finding("a fault harms nothing beside what it is said to harm")
    finding.problems = [
        f"{strike.step.victim}: {strike.step.fault}: {each}" for strike in strikes for each in strike.harm
    ]
    return finding


def _said(services: Iterable[Instance]) -> dict[str, Counter[str]]:
    return {role: sum((service.said for service in services if service.command == role), Counter()) for role in GROUPS}


def _counts(published: Sequence[Input]) -> dict[str, int]:
    kinds = Counter(type(each.meaning) for each in published)
    names = {
        Upload: "valid uploads",
        Delete: "deletes",
        Query: "valid query events",
        Refused: "records to refuse",
        Unreadable: "batches hard to decompress",
    }
    return {name: kinds[kind] for kind, name in names.items()}


def _aborted(bus: Bus, outputs: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Count the outputs that were produced and never became visible: so often a transaction was cut short."""
    return {f"aborted records in {topic}": count_all(bus, topic) - len(records) for topic, records in outputs.items()}
