"""How much of everything there is in a run: the whole of it and a slice for the tests, for each kind of store."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.kinds import BROKER, CLUSTER, EMBED, LMDB, RERANK, STORE, TOPIC, TRAITS, Fault, kinds_for
from tests.chaos.plan import Scale

FULL = Scale(
    seconds=1_260,
    services={EMBED: 2, RERANK: 2},
    uploads=2_500,
    queries=7_000,
    refused=120,
    clips=1_200,
    files=50,
    faults={
        EMBED: {
            Fault.KILL: 14,
            Fault.STOP: 4,
            Fault.FREEZE: 4,
            Fault.UNWRITABLE: 4,
            Fault.CLOCK: 2,
            Fault.FLAPPING: 4,
            Fault.DISK_FULL: 3,
            Fault.FEW_DESCRIPTORS: 3,
            Fault.FEW_PROCESSES: 3,
            Fault.DECODER_KILLED: 5,
            Fault.IDLE_CLIENTS: 2,
            Fault.SLOW_SOURCE: 2,
        },
        RERANK: {
            Fault.KILL: 18,
            Fault.STOP: 5,
            Fault.FREEZE: 5,
            Fault.CLOCK: 2,
            Fault.FLAPPING: 5,
            Fault.STORE_CUT: 2,
            Fault.IDLE_CLIENTS: 4,
        },
        BROKER: {
            Fault.BROKER_KILL: 7,
            Fault.BROKER_RESTART: 4,
            Fault.BROKER_HANG: 12,
            Fault.BROKER_FROZEN: 6,
            Fault.TWO_FROZEN: 3,
            Fault.ROLLING_RESTART: 2,
            Fault.ALL_KILLED: 2,
            Fault.DISK_LOST: 3,
            Fault.TRUNCATED: 3,
        },
        f"{TOPIC}-{EMBED}": {
            Fault.REASSIGNED: 2,
            Fault.PARTITIONS_ADDED: 2,
            Fault.THROTTLED: 2,
            Fault.TIMESTAMPS_REFUSED: 2,
            Fault.TOO_FEW_IN_SYNC: 1,
            Fault.DENIED: 4,
            Fault.HUNG_TRANSACTION: 2,
            Fault.OFFSETS_BACK: 2,
            Fault.OFFSETS_BEYOND: 2,
            Fault.OUTPUT_RECREATED: 2,
            Fault.INPUT_RECREATED: 1,
        },
        f"{TOPIC}-{RERANK}": {
            Fault.REASSIGNED: 2,
            Fault.PARTITIONS_ADDED: 3,
            Fault.THROTTLED: 3,
            Fault.TIMESTAMPS_REFUSED: 3,
            Fault.TOO_FEW_IN_SYNC: 2,
            Fault.OUTPUT_LIMITED: 5,
            Fault.DENIED: 5,
            Fault.HUNG_TRANSACTION: 3,
            Fault.UNREADABLE: 5,
            Fault.EXPIRED: 6,
            Fault.OFFSETS_BACK: 2,
            Fault.OFFSETS_BEYOND: 2,
            Fault.OUTPUT_RECREATED: 2,
            Fault.INPUT_RECREATED: 2,
        },
    },
    points={EMBED: 7, RERANK: 6},
)
"""200 faults."""
SMALL = Scale(
    seconds=40,
    services={EMBED: 1, RERANK: 2},
    uploads=200,
    queries=500,
    refused=16,
    clips=80,
    files=12,
    faults={
        EMBED: {Fault.KILL: 1, Fault.UNWRITABLE: 1, Fault.FEW_DESCRIPTORS: 1, Fault.DECODER_KILLED: 1},
        RERANK: {Fault.KILL: 2, Fault.FREEZE: 1},
        BROKER: {Fault.BROKER_KILL: 1},
    },
    points={EMBED: 0, RERANK: 0},
    durations={Fault.UNWRITABLE: 4.0, Fault.FEW_DESCRIPTORS: 2.0},
)
"""Fault points are left to the tests that kill at each of them."""

_OF_TOPICS_ON_A_CLUSTER = 2
"""Of a kind that needs the lane of topics: many faults of the store's nodes keep that lane for themselves."""
_CLUSTER_KINDS = kinds_for(CLUSTER)
ON_A_CLUSTER = replace(
    FULL,
    store=CLUSTER,
    faults={
        lane: {
            fault: min(count, _OF_TOPICS_ON_A_CLUSTER)
            if TOPIC in {lane.partition("-")[0], *TRAITS[fault].excludes}
            else count
            for fault, count in faults.items()
            if fault in _CLUSTER_KINDS
        }
        for lane, faults in FULL.faults.items()
    }
    | {
        STORE: {
            Fault.NODE_HANG: 3,
            Fault.NODE_KILL: 3,
            Fault.NODE_PROMOTED: 3,
            Fault.SLOTS_MOVED: 3,
            Fault.EVICTING: 4,
            Fault.NODE_FULL: 4,
            Fault.NODE_FLUSHED: 3,
            Fault.PASSWORD_ROTATED: 2,
            Fault.READDRESSED: 2,
        }
    },
)
"""The same faults but those of a file, somewhat fewer of topics, and those of the store's nodes: 200 as well."""
SMALL_ON_A_CLUSTER = replace(
    SMALL,
    seconds=190,
    uploads=500,
    queries=1_500,
    store=CLUSTER,
    faults={
        EMBED: {Fault.KILL: 2},
        RERANK: {Fault.KILL: 2},
        BROKER: {Fault.BROKER_KILL: 1},
        STORE: dict.fromkeys((fault for fault in Fault if fault in _CLUSTER_KINDS - kinds_for(LMDB)), 1),
    },
)
"""Each fault of the store's nodes once."""
SCALES = {LMDB: (FULL, SMALL), CLUSTER: (ON_A_CLUSTER, SMALL_ON_A_CLUSTER)}
