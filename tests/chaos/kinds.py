"""The kinds of faults: what is done, for how long, and what must not happen meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EMBED, RERANK, BROKER, TOPIC = "embed", "rerank", "broker", "topic"
LANES = (EMBED, RERANK, BROKER, TOPIC)
"""Faults of one lane come one after the other; those of different lanes meet as chance has it. The last one is that of
topics and of groups."""


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


@dataclass(frozen=True, slots=True)
class Traits:
    """What a plan must know of a kind.

    Attributes:
        lasts: Seconds for which it lasts, where a plan does not say otherwise.
        room: Seconds that it needs besides.
        excludes: Lanes in which nothing may happen meanwhile.
        stops_group: Whether all instances of the role are stopped for it: offsets can only be set for a group without
            members.
        hits_all: Whether it hits all brokers, or all instances of its role.

    """

    lasts: float = 0.0
    room: float = 8.0
    excludes: tuple[str, ...] = ()
    stops_group: bool = False
    hits_all: bool = False


TRAITS = {
    Fault.KILL: Traits(),
    Fault.STOP: Traits(room=10),
    Fault.FREEZE: Traits(lasts=9, room=10),
    Fault.UNWRITABLE: Traits(lasts=12, hits_all=True),
    Fault.CLOCK: Traits(lasts=8, room=22),
    Fault.FLAPPING: Traits(lasts=6, hits_all=True),
    Fault.DISK_FULL: Traits(lasts=5, hits_all=True),
    # These are seen by an upload that fails, and without brokers none comes. A process that can open nothing does not
    # even find a broker again that was killed meanwhile.
    Fault.FEW_DESCRIPTORS: Traits(lasts=4, excludes=(BROKER,)),
    Fault.FEW_PROCESSES: Traits(lasts=4, excludes=(BROKER,)),
    Fault.DECODER_KILLED: Traits(excludes=(BROKER,)),
    Fault.STORE_CUT: Traits(lasts=4, room=12, excludes=(EMBED, TOPIC), hits_all=True),
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
}
