"""What the servers of a store say about themselves: eviction, memory, replicas.

All of it is read from ``INFO``, which managed services answer too, where ``CONFIG GET`` is often refused. Replicas are
asked as well as primaries, because any of them may take over with its own configuration; a replica that does not answer
is skipped, since nothing is read from it.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from redis.exceptions import NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamer.store.protocol import NO_EVICTION, EvictingStoreError, StoreServer
from streamer.store.redis.answers import FAULTS
from streamer.store.redis.exchange import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis import Redis

    from streamer.store.redis.deadline import Deadline
    from streamer.store.redis.link import Link

log = structlog.get_logger()

_UNKNOWN = -1
"""The seconds that a replica reports while it has never been connected to its primary."""


def ask(link: Link, deadline: Deadline, *, is_cluster: bool, patient: bool = True) -> list[StoreServer]:
    """Ask all primaries at once, then all replicas, until the deadline.

    A server that refuses INFO to this user is not in the list, nor is a replica that does not answer. Raises
    :class:`~streamer.store.protocol.StoreUnavailableError` if a primary does not answer; an impatient caller takes the
    list without it.
    """
    told, faults = _told(link.nodes(), deadline)
    if patient and faults:
        with link.faults():
            raise faults[0]
    replicas = sum(int(info.get("connected_slaves", 0)) for _, info in told)
    if is_cluster and not faults and replicas > len(link.replicas()):
        link.nodes(fresh=True)  # a cluster does not list replicas that have just joined
    told += _told(link.replicas(), deadline)[0]
    return [_server(node, info) for node, info in told]


def _told(nodes: Sequence[Redis], deadline: Deadline) -> tuple[list[tuple[Redis, dict[str, Any]]], list[Exception]]:
    """Return what nodes say about themselves, and the faults of those that do not answer by the deadline."""
    told: list[tuple[Redis, dict[str, Any]]] = []
    faults: list[Exception] = []
    asked = []
    for node in nodes:
        try:
            asked.append((node, in_thread(partial(_info, node))))
        except OSError as error:
            faults.append(error)
    for node, answer in asked:
        try:
            told.append((node, answer.result(deadline.left())))
        except NoPermissionError:
            continue
        except FutureTimeoutError:
            faults.append(RedisTimeoutError(f"{_name(node)} has not answered in time"))
        except FAULTS as error:
            faults.append(error)
    return told, faults


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


def _info(node: Redis) -> dict[str, Any]:
    info: dict[str, Any] = node.info()
    return info


def _name(node: Redis) -> str:
    at = node.connection_pool.connection_kwargs
    return f"{at['host']}:{at['port']}"


def _server(node: Redis, info: Mapping[str, Any]) -> StoreServer:
    name = _name(node)
    policy = info.get("maxmemory_policy")
    if policy is None:
        policy = _configured_policy(node)
    return StoreServer(
        name=name,
        process=str(info.get("run_id", name)),
        is_primary=info.get("role", "master") == "master",
        policy=policy,
        evicted_keys=int(info.get("evicted_keys", 0)),
        memory_share=_memory_share(info),
        replica_lag_s=_replica_lag(info),
    )


def _configured_policy(node: Redis) -> str | None:
    """Return the policy of a server whose INFO does not have it; None if it does not tell."""
    try:
        found: Mapping[str, str] = node.config_get("maxmemory-policy")  # type: ignore[assignment]
    except RedisError as error:
        log.debug("a server does not tell its eviction policy", error=str(error))
        return None
    return found.get("maxmemory-policy")


def _memory_share(info: Mapping[str, Any]) -> float:
    """Return how much of its memory a server uses.

    That is the larger of two shares: of ``maxmemory``, as the server itself compares it, without the buffers for its
    replicas; and of the machine's memory, including what is lost to fragmentation.
    """
    shares = [0.0]
    if limit := int(info.get("maxmemory", 0)):
        shares.append((int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))) / limit)
    if machine := int(info.get("total_system_memory", 0)):
        shares.append(int(info.get("used_memory_rss", 0)) / machine)
    return max(shares)


def _replica_lag(info: Mapping[str, Any]) -> float:
    """Return for how many seconds a replica has heard nothing of its primary, or a primary of one of its replicas."""
    if info.get("role") == "slave":
        if info.get("master_link_status") == "up":
            return max(0.0, float(info.get("master_last_io_seconds_ago", 0)))
        away = float(info.get("master_link_down_since_seconds", _UNKNOWN))
        return float(info.get("uptime_in_seconds", 0)) if away == _UNKNOWN else away
    return max(_lags(info), default=0.0)


def _lags(info: Mapping[str, Any]) -> Sequence[float]:
    replicas = [info.get(f"slave{number}") for number in range(int(info.get("connected_slaves", 0)))]
    return [float(each["lag"]) for each in replicas if isinstance(each, dict) and float(each.get("lag", 0)) >= 0]
