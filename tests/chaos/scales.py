"""How much of everything there is in a run: the whole of it and a slice for the tests, for each kind of store."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.kinds import BROKER, CLUSTER, EMBED, LMDB, RERANK, STORE, TOPIC, TRAITS, Fault, kinds_for
from tests.chaos.plan import Scale

FULL = Scale(
    seconds=1_260,
    services={EMBED: 2, RERANK: 2},
    uploads=3_500,
    queries=10_000,
    refused=120,
    clips=1_200,
    files=50,
    faults={
        EMBED: {
            Fault.KILL: 18,
            Fault.STOP: 5,
            Fault.FREEZE: 3,
            Fault.UNWRITABLE: 3,
            Fault.CLOCK: 3,
            Fault.FLAPPING: 3,
            Fault.DISK_FULL: 3,
            Fault.FEW_DESCRIPTORS: 3,
            Fault.FEW_PROCESSES: 3,
            Fault.DECODER_KILLED: 4,
            Fault.IDLE_CLIENTS: 2,
            Fault.SLOW_SOURCE: 2,
        },
        RERANK: {
            Fault.KILL: 26,
            Fault.STOP: 7,
            Fault.FREEZE: 5,
            Fault.CLOCK: 3,
            Fault.FLAPPING: 4,
            Fault.STORE_CUT: 2,
            Fault.IDLE_CLIENTS: 3,
        },
        BROKER: {
            Fault.BROKER_KILL: 9,
            Fault.BROKER_RESTART: 4,
            Fault.BROKER_HANG: 7,
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
            Fault.DENIED: 3,
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
            Fault.OUTPUT_LIMITED: 4,
            Fault.DENIED: 5,
            Fault.HUNG_TRANSACTION: 3,
            Fault.UNREADABLE: 4,
            Fault.EXPIRED: 4,
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
            Fault.NODE_PROMOTED: 2,
            Fault.SLOTS_MOVED: 2,
            Fault.EVICTING: 3,
            Fault.NODE_FULL: 3,
            Fault.NODE_FLUSHED: 2,
            Fault.PASSWORD_ROTATED: 2,
            Fault.READDRESSED: 2,
        }
    },
)
"""The same faults but those of a file, somewhat fewer of topics, and those of the store's nodes: over 200 in all."""
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
