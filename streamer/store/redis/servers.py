"""What the servers of a store say about themselves: eviction, memory, replicas.

Replicas are asked as well as primaries, because any of them may take over with its own configuration; a replica that
does not answer is skipped, since nothing is read from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from redis.exceptions import NoPermissionError

from streamer.store.protocol import NO_EVICTION, EvictingStoreError, StoreServer
from streamer.store.redis import info
from streamer.store.redis.answers import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streamer.store.redis.deadline import Deadline
    from streamer.store.redis.link import Link
    from streamer.store.redis.nodes import Node

log = structlog.get_logger()


def ask(link: Link, deadline: Deadline, *, is_cluster: bool, patient: bool = True) -> list[StoreServer]:
    """Ask all primaries at once, then all replicas, until the deadline.

    A server that refuses INFO to this user is not in the list, nor is a replica that does not answer. Raises
    :class:`~streamer.store.protocol.StoreUnavailableError` if a primary does not answer; an impatient caller takes the
    list without it.
    """
    told, faults = _told(link, link.primaries(), deadline)
    if patient and faults:
        raise link.fault(faults[0])
    replicas = sum(int(said.get("connected_slaves", 0)) for _, said in told)
    if is_cluster and not faults and replicas > len(link.replicas()):
        link.primaries(fresh=True)  # a cluster does not list replicas that have just joined
    told += _told(link, link.replicas(), deadline)[0]
    policies = _policies(link, told, deadline)
    return [
        StoreServer(
            name=node.name,
            process=said.get("run_id", node.name),
            is_primary=not info.is_replica(said),
            policy=policy,
            evicted_keys=int(said.get("evicted_keys", 0)),
            memory_share=info.memory_share(said),
            replica_lag_s=info.replica_lag_s(said),
        )
        for (node, said), policy in zip(told, policies, strict=True)
    ]


def refuse_eviction(name: str, servers: Iterable[StoreServer]) -> None:
    """Raise :class:`EvictingStoreError` if a server may evict keys; one that does not tell its policy is accepted."""
    evicting = [each for each in servers if each.evicts]
    if not evicting:
        return
    which = ", ".join(
        f"{each.name}{'' if each.is_primary else ' (a replica)'} has maxmemory-policy {each.policy}"
        for each in evicting[:3]
    )
    more = f" and {len(evicting) - 3} more" if len(evicting) > 3 else ""  # noqa: PLR2004 - as many as are named
    raise EvictingStoreError(
        f"{name}: {which}{more}: evicted tombstones would bring deleted clips back; set maxmemory-policy {NO_EVICTION}"
    )


def _told(
    link: Link, nodes: Sequence[Node], deadline: Deadline
) -> tuple[list[tuple[Node, info.Info]], list[Exception]]:
    """Return what nodes say about themselves, and the faults of those that do not answer by the deadline."""
    answers = link.ask(nodes, ("INFO",), deadline)
    told = [(node, info.parsed(answer)) for node, answer in zip(nodes, answers, strict=True) if _is_told(answer)]
    return told, [each for each in answers if isinstance(each, Exception) and not isinstance(each, NoPermissionError)]


def _is_told(answer: object) -> bool:
    return not isinstance(answer, Exception)


def _policies(link: Link, told: Sequence[tuple[Node, info.Info]], deadline: Deadline) -> list[str | None]:
    """Return the servers' policies; where INFO does not have one, the configuration is asked for it."""
    silent = [node for node, said in told if "maxmemory_policy" not in said]
    answers = dict(zip(silent, link.ask(silent, ("CONFIG", "GET", "maxmemory-policy"), deadline), strict=True))
    for answer in answers.values():
        if isinstance(answer, Exception):
            log.debug("a server does not tell its eviction policy", error=words(answer))
    return [said.get("maxmemory_policy") or _configured(answers.get(node)) for node, said in told]


def _configured(answer: object) -> str | None:
    """Return the value of an answer to CONFIG GET: a name and its value, or nothing."""
    return answer[1].decode() if isinstance(answer, list) and len(answer) > 1 else None
