"""What the answers of a server mean: the one table of those that pass and those that are final.

An answer is final if only an operator can change it, by other settings or another configuration of the servers. It ends
a service that starts with it, with the server's words. All other errors pass, also unknown ones: what a server says
while it loads, is busy, full or hands over its slots is no reason to stop. A service that runs waits in either case,
since no answer of a server is the fault of an event.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

FAULTS: Final = (RedisError, RedisClusterException, OSError)
"""What redis-py raises for faults of servers and of connections."""


class Meaning(StrEnum):
    """What to do after an answer."""

    FOLLOW = "follow"
    """Another node has the slot: ask that one, from now on."""
    ASK = "ask"
    """Another node has the key while the slot migrates: ask that one, this time."""
    AGAIN = "again"
    """Ask the same node again in a moment."""
    ELSEWHERE = "elsewhere"
    """The node has lost its role: its connections are closed and the topology is read again."""
    LATER = "later"
    """The node refuses for some time, all or only writes."""
    LOST = "lost"
    """There is no connection to the node."""
    SLOW = "slow"
    """The node has not answered by the deadline."""
    FINAL = "final"
    """The server will go on refusing."""


ANSWERS: Final = {
    "MOVED": Meaning.FOLLOW,
    "ASK ": Meaning.ASK,
    "TRYAGAIN": Meaning.AGAIN,
    "READONLY": Meaning.ELSEWHERE,
    "MASTERDOWN": Meaning.ELSEWHERE,
    "CLUSTERDOWN": Meaning.ELSEWHERE,
    "LOADING": Meaning.LATER,
    "BUSY": Meaning.LATER,
    "OOM": Meaning.LATER,
    "MISCONF": Meaning.LATER,
    "NOREPLICAS": Meaning.LATER,
    "ERR max number of clients": Meaning.LATER,
    "NOAUTH": Meaning.FINAL,
    "WRONGPASS": Meaning.FINAL,
    "NOPERM": Meaning.FINAL,
    "WRONGTYPE": Meaning.FINAL,
    "DENIED": Meaning.FINAL,
    "CROSSSLOT": Meaning.FINAL,
    "NOPROTO": Meaning.FINAL,
    "ERR invalid password": Meaning.FINAL,
    "ERR AUTH": Meaning.FINAL,
    "ERR Client sent AUTH": Meaning.FINAL,
    "ERR DB index": Meaning.FINAL,
    "ERR SELECT": Meaning.FINAL,
    "ERR This instance has cluster support disabled": Meaning.FINAL,
    "ERR unknown": Meaning.FINAL,
    "ERR Unknown": Meaning.FINAL,
    "ERR wrong number of arguments": Meaning.FINAL,
    "ERR syntax error": Meaning.FINAL,
}
"""The meaning of an answer by its first words; any other answer means :attr:`Meaning.LATER`."""


def words(error: BaseException) -> str:
    """Return a server's own words in one line, its code included, or what is known of a failed connection."""
    text = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "status_code", None)
    return text if code is None or text.startswith(code) else f"{code} {text}"


def is_answer(error: BaseException) -> bool:
    """Tell whether a server has said this; else its connection has failed."""
    return isinstance(error, ResponseError) or getattr(error, "status_code", None) is not None


def meaning(error: BaseException) -> Meaning:
    """Look an error up."""
    if not is_answer(error):
        return Meaning.SLOW if isinstance(error, RedisTimeoutError) else Meaning.LOST
    said = words(error)
    return next((found for begin, found in ANSWERS.items() if said.startswith(begin)), Meaning.LATER)
