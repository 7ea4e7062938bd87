"""What a server says about itself in ``INFO``.

Managed services answer it, too, where they often refuse ``CONFIG GET``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEVER = -1
"""The seconds that a replica reports while it has never been connected to its primary."""

Info = dict[str, str]
"""The fields of an answer, by name."""


def parsed(answer: Any) -> Info:
    """Return the fields of an answer to INFO, none where the user may not ask for it."""
    if not isinstance(answer, bytes):
        return {}
    return dict(line.split(":", 1) for line in answer.decode(errors="replace").splitlines() if ":" in line)


def is_replica(info: Mapping[str, str]) -> bool:
    """Return whether the server is a replica; one that does not say so is none."""
    return info.get("role") == "slave"


def staleness_s(info: Mapping[str, str]) -> float | None:
    """Return how old a replica's data can be, None if it does not say so."""
    is_up = info.get("master_link_status") == "up"
    age = int(info.get("master_last_io_seconds_ago" if is_up else "master_link_down_since_seconds", _NEVER))
    return None if age < 0 else float(age)


def replica_lag_s(info: Mapping[str, str]) -> float:
    """Return for how many seconds a replica has heard nothing of its primary, or a primary of one of its replicas."""
    if is_replica(info):
        stale_s = staleness_s(info)
        if stale_s is None and info.get("master_link_status") != "up":
            return float(info.get("uptime_in_seconds", 0))  # it has never heard of it
        return stale_s or 0.0
    each = [dict(pair.split("=", 1) for pair in replica.split(",") if "=" in pair) for replica in _replicas(info)]
    return max([0.0, *(float(replica.get("lag", 0)) for replica in each)])


def memory_share(info: Mapping[str, str]) -> float:
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


def _replicas(info: Mapping[str, str]) -> list[str]:
    return [info.get(f"slave{number}", "") for number in range(int(info.get("connected_slaves", 0)))]
