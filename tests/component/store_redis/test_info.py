"""What is read from a server's answer to INFO: roles, lag, memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.store.redis import info

_NAMES = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"], include_characters="_"), min_size=1)
_VALUES = st.text(st.characters(codec="utf-8", categories=["L", "N"], include_characters=":=,. "))


@given(st.dictionaries(_NAMES, _VALUES))
def test_fields_are_read_whatever_sections_are_between_them(fields: dict[str, str]) -> None:
    lines = [line for name, value in fields.items() for line in ("# Section", f"{name}:{value}", "")]
    assert info.parsed("\r\n".join(lines).encode()) == fields


@pytest.mark.parametrize("answer", [None, PermissionError("INFO is refused"), 1])
def test_an_answer_that_is_none_has_no_fields_and_is_no_replica(answer: object) -> None:
    assert info.parsed(answer) == {}
    assert not info.is_replica({})
    assert info.staleness_s({}) is None
    assert info.replica_lag_s({}) == info.memory_share({}) == 0


UP = {"role": "slave", "master_link_status": "up", "master_last_io_seconds_ago": "3"}
DOWN = {
    "role": "slave",
    "master_link_status": "down",
    "master_link_down_since_seconds": "40",
    "uptime_in_seconds": "90",
}
NEVER = DOWN | {"master_link_down_since_seconds": "-1"}
PRIMARY = {
    "role": "master",
    "connected_slaves": "2",
    "slave0": "ip=10.0.0.1,port=6379,state=online,offset=7,lag=1",
    "slave1": "ip=10.0.0.2,port=6379,state=wait_bgsave,offset=0,lag=12",
}


@pytest.mark.parametrize(
    ("said", "stale_s", "lag_s"), [(UP, 3, 3), (DOWN, 40, 40), (NEVER, None, 90), (PRIMARY, None, 12)]
)
def test_how_old_the_data_of_a_replica_are(said: dict[str, str], stale_s: float | None, lag_s: float) -> None:
    assert info.staleness_s(said) == stale_s
    assert info.replica_lag_s(said) == lag_s


def test_the_larger_share_of_its_limit_and_of_the_machine_counts() -> None:
    machine = {"total_system_memory": "1000", "used_memory_rss": "400", "used_memory": "390"}
    assert info.memory_share(machine | {"maxmemory": "0"}) == pytest.approx(0.4)
    limited = machine | {"maxmemory": "500", "mem_not_counted_for_evict": "40"}
    assert info.memory_share(limited) == pytest.approx(0.7)
