"""One exchange of commands and replies with several nodes at once, until one deadline.

Commands go out to all nodes in one write each, and replies are taken in the order in which they arrive. A node that
has no open connection is asked on a thread of its own, since names are resolved and certificates checked by calls that
know no deadline: the caller does not wait for such a thread longer than for a reply.
"""

from __future__ import annotations

import errno
import math
import select
import threading
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from hiredis import pack_command
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamer.machine import MachineError, start
from streamer.store.redis.answers import FAULTS
from streamer.store.redis.wire import INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamer.store.redis.deadline import Deadline
    from streamer.store.redis.nodes import Node
    from streamer.store.redis.wire import TlsWire, Wire


_Result = TypeVar("_Result")


class Call(NamedTuple):
    """A command, and the slot of its keys, which determines its node."""

    slot: int
    command: tuple[Any, ...]  # of bytes, str and int


class Share:
    """The commands of an exchange for one node, in their order; ``numbers`` are theirs among the caller's.

    ``asking``: each command is preceded by ASKING. ``is_read``: a reader waits for it. ``is_of_replica``: it reads what
    a replica has. ``replies``: one for each command sent, errors of the server included. ``error``: what has befallen
    the node instead, then replies are missing. ``is_fresh``: the connection was made for this exchange.
    """

    def __init__(
        self,
        node: Node,
        commands: Sequence[tuple[Any, ...]],
        numbers: Sequence[int] = (),
        *,
        asking: bool = False,
    ) -> None:
        self.node = node
        self.commands = [part for each in commands for part in (("ASKING",), each)] if asking else commands
        self.numbers = numbers
        self.asking = asking
        self.is_read = self.is_of_replica = False
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.is_fresh = False
        self._wire: Wire | TlsWire | None = None

    def begin(self, wire: Wire | TlsWire, deadline: Deadline) -> bool:
        """Send the commands; returns False if that failed."""
        self._wire = wire
        try:
            wire.send_within(b"".join([pack_command(command) for command in self.commands]), deadline.left())
        except FAULTS as error:
            self._fail(error)
        return self.error is None

    def fileno(self) -> int:
        """Return the file descriptor of the connection, -1 if there is none."""
        return -1 if self._wire is None else self._wire.fileno()

    def hear(self) -> bool:
        """Take the replies that have arrived; returns True if nothing more is to be waited for."""
        wire, replies, count = self._wire, self.replies, len(self.commands)
        if wire is None:
            return True
        try:
            while len(replies) < count:
                reply = wire.arrived()
                if reply is INCOMPLETE:
                    return False
                replies.append(reply)
        except FAULTS as error:
            self._fail(error)
            return True
        self._wire = None
        self.node.give(wire)
        return True

    def give_up(self) -> None:
        """End the share at its deadline; the connection is closed, since replies are due on it."""
        self._fail(RedisTimeoutError(f"{self.node.name} has not answered in time"))

    def dial_and_talk(self, deadline: Deadline) -> None:
        """Connect, then exchange: all that takes a thread of its own."""
        try:
            wire = self.node.dial()
        except FAULTS as error:
            self._fail(error)
            return
        if not deadline.left():
            self.node.give(wire)  # the caller has gone; the next one finds a connection
            self.give_up()
        elif self.begin(wire, deadline):
            _listen([self], deadline)

    def _fail(self, error: Exception) -> None:
        self.error = error
        if self._wire is not None:
            self._wire.disconnect()
            self._wire = None


def exchange(shares: Sequence[Share], deadline: Deadline) -> None:
    """Run all shares, each to its last reply, its error or the deadline."""
    listening: list[Share] = []
    dialling: list[tuple[Share, Share, Future[None]]] = []
    for share in shares:
        wire = share.node.take()
        if wire is None:
            # The thread has a share of its own: it may outlive this call.
            apart = Share(share.node, share.commands)
            try:
                dialling.append((share, apart, in_thread(partial(apart.dial_and_talk, deadline))))
            except OSError as error:
                share.error = error
        elif share.begin(wire, deadline):
            listening.append(share)
    _listen(listening, deadline)
    if dialling:
        done, _ = wait_for([future for _, _, future in dialling], timeout=deadline.left())
        for share, apart, future in dialling:
            share.is_fresh = True
            if future in done:
                future.result()
                share.replies, share.error = apart.replies, apart.error
            else:
                share.give_up()


def _listen(shares: Sequence[Share], deadline: Deadline) -> None:
    """Take replies until all shares have theirs, or until the deadline."""
    if not shares:
        return
    poll = select.poll()
    waiting = {}
    for share in shares:
        fileno = share.fileno()
        waiting[fileno] = share
        poll.register(fileno, select.POLLIN)
    while waiting:
        ready = poll.poll(math.ceil(1000 * deadline.left()))
        heard = [fileno for fileno, _ in ready if waiting[fileno].hear()]
        for fileno in heard:
            poll.unregister(fileno)
            del waiting[fileno]
        # What has arrived by the deadline is taken, however late this thread was woken.
        if not heard and not deadline.left():
            break
    for share in waiting.values():
        share.give_up()


def in_thread(work: Callable[[], _Result]) -> Future[_Result]:
    """Run ``work`` on a thread that keeps no process alive.

    Raises OSError if this machine has no thread for it: to the caller that is like a connection that it cannot have.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the result
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        start(threading.Thread(target=run, name="store-connect", daemon=True))
    except MachineError as lack:
        raise OSError(errno.EAGAIN, lack.detail) from None
    return future
