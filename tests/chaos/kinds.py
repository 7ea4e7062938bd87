"""The kinds of faults: what is done, for how long, and what must not happen meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EMBED, RERANK, BROKER, TOPIC, STORE = "embed", "rerank", "broker", "topic", "store"
LANES = (EMBED, RERANK, BROKER, TOPIC, STORE)
"""Faults of one lane come one after the other; those of different lanes meet as chance has it. That of topics is also
that of groups, and the last one that of the nodes of a store beyond one host."""
LMDB, CLUSTER = "lmdb", "cluster"
"""The stores that a run may have: one file, or three primaries with a replica each."""


class Fault(StrEnum):
    """What is done to the system."""

    KILL = "kill -9 of a service"
    STOP = "restart of a service by SIGTERM"
    FREEZE = "SIGSTOP beyond the session timeout"
    UNWRITABLE = "store not writable"
    CLOCK = "a service's clock two hours ahead and behind"
    FLAPPING = "a member that joins and leaves the group"
    DISK_FULL = "temporary folder full"
    FEW_DESCRIPTORS = "file descriptors scarce"
    FEW_PROCESSES = "processes scarce"
    DECODER_KILLED = "a decoder killed, as for memory"
    STORE_CUT = "the store's file truncated under its readers"
    IDLE_CLIENTS = "2,000 idle clients on the metrics port"
    SLOW_SOURCE = "a slow source of many spellings"

    BROKER_KILL = "kill -9 of a broker"
    BROKER_RESTART = "restart of a broker"
    BROKER_HANG = "SIGSTOP of a broker within its session"
    BROKER_FROZEN = "SIGSTOP of a broker until the in-sync replicas shrink"
    TWO_FROZEN = "SIGSTOP of two brokers: below min.insync.replicas"
    ROLLING_RESTART = "rolling restart of all brokers"
    ALL_KILLED = "kill -9 of all brokers at once"
    DISK_LOST = "a replica's disk lost"
    TRUNCATED = "the end of a partition lost on all replicas"

    REASSIGNED = "partitions reassigned and leaders moved"
    PARTITIONS_ADDED = "partitions added"
    THROTTLED = "client quotas"
    TIMESTAMPS_REFUSED = "timestamps refused by the output topic"
    TOO_FEW_IN_SYNC = "min.insync.replicas above the in-sync replicas"
    OUTPUT_LIMITED = "max.message.bytes of the output lowered"
    DENIED = "a privilege revoked"
    HUNG_TRANSACTION = "an upstream transaction left open"
    UNREADABLE = "a batch larger than the client can decompress"
    EXPIRED = "records deleted before they are read"
    OFFSETS_BACK = "the group's offsets set back"
    OFFSETS_BEYOND = "the group's offset set beyond the end"
    OUTPUT_RECREATED = "the output topic deleted and created again"
    INPUT_RECREATED = "the input topic deleted and created again"

    NODE_HANG = "SIGSTOP of a store node"
    NODE_KILL = "kill -9 of a store node"
    NODE_PROMOTED = "a replica of the store promoted"
    SLOTS_MOVED = "slots of the store moved"
    EVICTING = "an evicting policy at a store node"
    NODE_FULL = "a store node full"
    NODE_FLUSHED = "a store node flushed"
    PASSWORD_ROTATED = "the password of the store rotated"  # noqa: S105 - a description
    READDRESSED = "all nodes of the store at other addresses"


@dataclass(frozen=True, slots=True)
class Traits:
    """What a plan must know of a kind.

    Attributes:
        lasts: Seconds for which it lasts, where a plan does not say otherwise.
        room: Seconds that it needs besides.
        excludes: Lanes in which nothing may happen meanwhile.
        stops_group: Whether all instances of the role are stopped for it: offsets can only be set for a group without
            members.
        hits_all: Whether it hits all brokers, all instances of its role, or all nodes of the store.
        store: The only store to which it can happen; empty where it is all one.

    """

    lasts: float = 0.0
    room: float = 8.0
    excludes: tuple[str, ...] = ()
    stops_group: bool = False
    hits_all: bool = False
    store: str = ""


TRAITS = {
    Fault.KILL: Traits(),
    Fault.STOP: Traits(room=10),
    Fault.FREEZE: Traits(lasts=9, room=10),
    Fault.UNWRITABLE: Traits(lasts=12, hits_all=True, store=LMDB),
    Fault.CLOCK: Traits(lasts=8, room=22),
    Fault.FLAPPING: Traits(lasts=6, hits_all=True),
    Fault.DISK_FULL: Traits(lasts=5, hits_all=True),
    # These are seen by an upload that fails, and without brokers none comes. A process that can open nothing does not
    # even find a broker again that was killed meanwhile.
    Fault.FEW_DESCRIPTORS: Traits(lasts=4, excludes=(BROKER,)),
    Fault.FEW_PROCESSES: Traits(lasts=4, excludes=(BROKER,)),
    Fault.DECODER_KILLED: Traits(excludes=(BROKER,)),
    Fault.STORE_CUT: Traits(lasts=4, room=12, excludes=(EMBED, TOPIC), hits_all=True, store=LMDB),
    Fault.IDLE_CLIENTS: Traits(lasts=8, room=10),
    Fault.SLOW_SOURCE: Traits(lasts=5, room=15, excludes=(BROKER, TOPIC), hits_all=True),
    Fault.BROKER_KILL: Traits(room=15),
    Fault.BROKER_RESTART: Traits(room=15),
    Fault.BROKER_HANG: Traits(lasts=2),
    Fault.BROKER_FROZEN: Traits(lasts=6, room=12),
    Fault.TWO_FROZEN: Traits(lasts=4, room=14),
    Fault.ROLLING_RESTART: Traits(room=45, hits_all=True),
    Fault.ALL_KILLED: Traits(room=30, hits_all=True),
    Fault.DISK_LOST: Traits(room=20, excludes=(TOPIC,)),
    Fault.TRUNCATED: Traits(room=40, excludes=(TOPIC,), hits_all=True),
    Fault.REASSIGNED: Traits(room=14, excludes=(BROKER,)),
    Fault.PARTITIONS_ADDED: Traits(room=6),
    Fault.THROTTLED: Traits(lasts=8, room=10),
    Fault.TIMESTAMPS_REFUSED: Traits(lasts=5, room=6),
    Fault.TOO_FEW_IN_SYNC: Traits(lasts=5, room=25, excludes=(BROKER,)),
    Fault.OUTPUT_LIMITED: Traits(lasts=6, room=6),
    Fault.DENIED: Traits(lasts=5, room=6),
    Fault.HUNG_TRANSACTION: Traits(lasts=8, room=6),
    Fault.UNREADABLE: Traits(room=12),
    Fault.EXPIRED: Traits(lasts=2),
    Fault.OFFSETS_BACK: Traits(room=22, stops_group=True),
    Fault.OFFSETS_BEYOND: Traits(room=22, stops_group=True),
    Fault.OUTPUT_RECREATED: Traits(lasts=3, room=12, excludes=(BROKER,)),
    Fault.INPUT_RECREATED: Traits(lasts=1, room=20, excludes=(BROKER,)),
    # Queries may be answered without some records meanwhile. Which ones is told by their offsets, and so none of these
    # may meet a fault that replaces the log or sets offsets.
    Fault.NODE_HANG: Traits(lasts=4, room=16, excludes=(TOPIC,), store=CLUSTER),
    Fault.NODE_KILL: Traits(lasts=2, room=22, excludes=(TOPIC,), store=CLUSTER),
    Fault.NODE_PROMOTED: Traits(room=12, excludes=(TOPIC,), store=CLUSTER),
    Fault.SLOTS_MOVED: Traits(room=14, excludes=(TOPIC,), store=CLUSTER),
    Fault.EVICTING: Traits(lasts=3, room=20, store=CLUSTER),
    Fault.NODE_FULL: Traits(lasts=4, room=16, store=CLUSTER),
    Fault.NODE_FLUSHED: Traits(room=8, store=CLUSTER),
    Fault.PASSWORD_ROTATED: Traits(lasts=3, room=20, excludes=(TOPIC,), hits_all=True, store=CLUSTER),
    Fault.READDRESSED: Traits(room=28, excludes=(TOPIC,), hits_all=True, store=CLUSTER),
}


def kinds_for(store: str) -> set[Fault]:
    """Return the kinds that can happen to a run with this store."""
    return {fault for fault, traits in TRAITS.items() if traits.store in {"", store}}
