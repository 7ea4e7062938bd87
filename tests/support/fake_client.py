"""What the clients of :mod:`tests.support.fake_kafka` have in common: requests that may fail, and the errors.

They behave as librdkafka does where the product depends on it: which calls are legal when (a wrong one fails with
``_STATE``), which errors are fatal, abortable or retriable, a commit that was not answered and is asked for again, a
batch that a broker refuses as a whole, partitions that stay paused over a rebalance, an offset fetch whose failure
leaves a partition unread. What a consumer is handed it asks for when it is polled: there is no prefetching.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from tests.support.fake_cluster import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.fake_cluster import Entry
    from tests.support.fake_kafka import FakeKafka

T = TypeVar("T")
_TURN_S = 0.0001
"""What a call costs that does not wait, so that who calls in vain without a pause gets on nevertheless."""
_ABORTABLE = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.OFFSET_METADATA_TOO_LARGE,
    KafkaError.INVALID_PRODUCER_ID_MAPPING,
)


class CrashError(BaseException):
    """The process was killed: nothing of it runs any more, and no ``except Exception`` sees it."""


class HangError(Exception):
    """The call does not end; what bounds it gives it up."""


@dataclass
class Process:
    """What dies together."""

    name: str
    is_alive: bool = True
    clients: list[Client] = field(default_factory=list)

    def crash(self) -> None:
        self.is_alive = False


@dataclass
class Fault:
    """What a call meets, ``times`` times after ``skip`` calls; with ``applied`` the broker has done it before."""

    call: str
    effect: KafkaError | BaseException | Callable[[], object]
    applied: bool = False
    skip: int = 0
    times: int = 1
    client: str = ""
    fired: int = 0

    def strikes(self, call: str, client: str) -> bool:
        if call != self.call or self.client not in client or self.fired == self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.fired += 1
        return True


def error(code: int, *, abortable: bool = False, fatal: bool = False, retriable: bool = False) -> KafkaError:
    """Make an error as librdkafka reports it."""
    return KafkaError(code, KafkaError(code).str(), fatal, retriable, abortable)


TIMED_OUT = error(KafkaError._TIMED_OUT, retriable=True)


class FakeMessage:
    """What a poll returns: a record, or an error."""

    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        entry: Entry | None = None,
        fault: KafkaError | None = None,
        offset: int = -1,
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._entry = entry
        self._error = fault
        self._offset = entry.offset if entry is not None else offset

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._entry.key if self._entry is not None else None

    def value(self) -> bytes | None:
        return self._entry.value if self._entry is not None else None

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self._entry.headers) if self._entry is not None else None

    def leader_epoch(self) -> int | None:
        return self._entry.leader_epoch if self._entry is not None else None

    def timestamp(self) -> tuple[int, int]:
        return 1, round((self._entry.at if self._entry is not None else 0.0) * 1000)


class Client:
    def __init__(self, kafka: FakeKafka, properties: dict[str, Any]) -> None:
        self.kafka = kafka
        self.cluster = kafka.cluster
        self.properties = properties
        self.name = str(properties.get("client.id", "admin"))
        self._process = kafka.process
        self.errors: deque[KafkaError] = deque()
        """For ``error_cb``, which is called at the next poll."""

    def _live(self) -> None:
        if not self._process.is_alive:
            raise CrashError
        self.cluster.clock.sleep(_TURN_S)

    def _request(self, call: str, action: Callable[[], T], timeout: float) -> T:
        """Let the broker do something, or meet the fault that waits for this call."""
        self._live()
        self.kafka.calls.append((self.name, call))
        fault = next((each for each in self.kafka.faults if each.strikes(call, self.name)), None)
        if fault is None:
            return self._answer(action, timeout)
        if callable(fault.effect):
            if not fault.applied:
                fault.effect()
            answer = self._answer(action, timeout)
            if fault.applied:
                fault.effect()
            return answer
        if fault.applied and not self.cluster.down:
            with suppress(RefusedError):  # the broker's answer does not reach the client
                action()
        if isinstance(fault.effect, CrashError):
            self._process.crash()
        if isinstance(fault.effect, BaseException):
            raise fault.effect
        if fault.effect.code() == KafkaError._TIMED_OUT:
            self.cluster.clock.sleep(timeout)
        raise KafkaException(fault.effect)

    def _answer(self, action: Callable[[], T], timeout: float) -> T:
        if self.cluster.down:
            self.cluster.clock.sleep(timeout)
            raise KafkaException(TIMED_OUT)
        try:
            return action()
        except RefusedError as refusal:
            if refusal.code == KafkaError.UNSTABLE_OFFSET_COMMIT:  # the client asks again until its time is over
                self.cluster.clock.sleep(timeout)
                raise KafkaException(TIMED_OUT) from None
            if refusal.code == KafkaError.PRODUCER_FENCED:
                raise KafkaException(error(KafkaError._FENCED, fatal=True)) from None
            raise KafkaException(
                error(
                    refusal.code,
                    abortable=refusal.code in _ABORTABLE,
                    fatal=refusal.code == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
                )
            ) from None

    def _serve_errors(self) -> None:
        while self.errors:
            self.properties.get("error_cb", lambda _: None)(self.errors.popleft())
