"""One exchange of commands and replies with several nodes at once, until one deadline.

Commands go out to all nodes, in one write each as far as their replies are small, and replies are taken in the order in
which they arrive. A node that has no open connection is asked on a thread of its own, since names are resolved and
certificates checked by calls that know no deadline: the caller does not wait for such a thread longer than for a reply.

What a node has yet to send of its replies takes its memory, beyond what is planned for records, and a server may close
a connection for which it keeps too much. So a node is asked for a bounded number of bytes at a time: the next commands
go out while it still sends the rest of the earlier ones, so that it never waits.
"""

from __future__ import annotations

import errno
import math
import select
import threading
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

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

WINDOW_BYTES: Final = 4 << 20
"""The bytes of replies that are due from a node at once: more than a fast link holds while a round trip passes."""
_DOUBT_SHARE: Final = 0.25
"""The share of the time until the deadline after which a doubting caller doubts."""


class Call(NamedTuple):
    """A command, and the slot of its keys, which determines its node.

    ``reply_bytes``: the size of its reply at most, 0 if that is small.
    """

    slot: int
    command: tuple[Any, ...]  # of bytes, str and int
    reply_bytes: int = 0


class Share:
    """The commands of an exchange for one node, in their order; ``numbers`` are theirs among the caller's.

    ``asking``: each command is preceded by ASKING. ``is_read``: a reader waits for it. ``is_of_replica``: it reads what
    a replica has. ``replies``: one for each command sent, errors of the server included. ``error``: what has befallen
    the node instead, then replies are missing. ``is_fresh``: the connection was made for this exchange.

    ``sizes``: of each command's reply at most; none if all are small. Commands beyond :data:`WINDOW_BYTES` are sent
    when most of the replies before theirs have arrived.
    """

    def __init__(
        self,
        node: Node,
        commands: Sequence[tuple[Any, ...]],
        numbers: Sequence[int] = (),
        sizes: Sequence[int] = (),
        *,
        asking: bool = False,
    ) -> None:
        self.node = node
        self.commands = [part for each in commands for part in (("ASKING",), each)] if asking else commands
        self.numbers = numbers
        self._sizes = [part for each in sizes for part in (0, each)] if asking else sizes
        self.asking = asking
        self.is_read = self.is_of_replica = False
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.is_fresh = False
        self._sent = self._due = 0  # commands, and the bytes of the replies that are due
        self._wire: Wire | TlsWire | None = None

    def again(self) -> Share:
        """Return a share of the same commands for the same node, which nothing has been done about."""
        return Share(self.node, self.commands, sizes=self._sizes)

    def begin(self, wire: Wire | TlsWire, deadline: Deadline) -> bool:
        """Send the first commands; returns False if that failed."""
        self._wire = wire
        try:
            self._send(wire, deadline)
        except FAULTS as error:
            self._fail(error)
        return self.error is None

    def fileno(self) -> int:
        """Return the file descriptor of the connection, -1 if there is none."""
        return -1 if self._wire is None else self._wire.fileno()

    def hear(self, deadline: Deadline) -> bool:
        """Take the replies that have arrived, and ask for more; returns True if nothing more is to be waited for."""
        wire, replies, count = self._wire, self.replies, len(self.commands)
        if wire is None:
            return True
        try:
            while len(replies) < count:
                reply = wire.arrived()
                if reply is INCOMPLETE:
                    return False
                replies.append(reply)
                if self._sent < count:
                    self._due -= self._sizes[len(replies) - 1]
                    if self._due <= WINDOW_BYTES // 2:
                        if not deadline.left():
                            return False
                        self._send(wire, deadline)
        except FAULTS as error:
            self._fail(error)
            return True
        self._wire = None
        self.node.give(wire)
        return True

    def is_answered(self) -> bool:
        """Return whether all replies have arrived."""
        return len(self.replies) == len(self.commands)

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

    def _send(self, wire: Wire | TlsWire, deadline: Deadline) -> None:
        """Send as many of the commands as there is room for, one at least if no reply is due."""
        begin, end = self._sent, len(self.commands)
        if self._sizes:
            end = begin
            for size in self._sizes[begin:]:
                if self._due and self._due + size > WINDOW_BYTES:
                    break
                self._due += size
                end += 1
        if end > begin:
            self._sent = end
            wire.send_within(b"".join([pack_command(each) for each in self.commands[begin:end]]), deadline.left())

    def _fail(self, error: Exception) -> None:
        self.error = error
        if self._wire is not None:
            self._wire.disconnect()
            self._wire = None


def exchange(shares: Sequence[Share], deadline: Deadline, *, doubting: bool = False) -> list[Share]:
    """Run all shares, each to its last reply, its error or the deadline.

    A failure of several nodes may strike between their answers. A ``doubting`` caller that has waited for some nodes
    for a while asks those that have answered for a sign of life, and gets the shares of those that give none by the
    deadline: the next read need not wait for them, too.
    """
    listening: list[Share] = []
    dialling: list[tuple[Share, Share, Future[None]]] = []
    for share in shares:
        wire = share.node.take()
        if wire is None:
            # The thread has a share of its own: it may outlive this call.
            apart = share.again()
            try:
                dialling.append((share, apart, in_thread(partial(apart.dial_and_talk, deadline))))
            except OSError as error:
                share.error = error
        elif share.begin(wire, deadline):
            listening.append(share)
    silent = _listen(listening, deadline, doubts_after_s=_DOUBT_SHARE * deadline.left() if doubting else None)
    if dialling:
        done, _ = wait_for([future for _, _, future in dialling], timeout=deadline.left())
        for share, apart, future in dialling:
            share.is_fresh = True
            if future in done:
                future.result()
                share.replies, share.error = apart.replies, apart.error
            else:
                share.give_up()
    return silent


class _Listening:
    """What an exchange waits for: ``waiting``, by file descriptor, and among it the probes of nodes in ``doubted``."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.waiting: dict[int, Share] = {}
        self.doubted: dict[int, Share] = {}
        self._poll = select.poll()
        for share in shares:
            self._add(share)

    def hear(self, until: Deadline, deadline: Deadline) -> bool:
        """Take what arrives until some moment; returns whether a share has ended."""
        ready = self._poll.poll(math.ceil(1000 * until.left()))
        heard = [fileno for fileno, _ in ready if self.waiting[fileno].hear(deadline)]
        for fileno in heard:
            self._poll.unregister(fileno)
            del self.waiting[fileno]
            self.doubted.pop(fileno, None)
        return bool(heard)

    def probe(self, share: Share, deadline: Deadline) -> None:
        """Ask a share's node for a sign of life, if it has an idle connection."""
        wire = share.node.take()
        probe = Share(share.node, (("PING",),))
        if wire is not None and probe.begin(wire, deadline):
            self.doubted[self._add(probe)] = share

    def _add(self, share: Share) -> int:
        fileno = share.fileno()
        self.waiting[fileno] = share
        self._poll.register(fileno, select.POLLIN)
        return fileno


def _listen(shares: Sequence[Share], deadline: Deadline, *, doubts_after_s: float | None = None) -> list[Share]:
    """Take replies until all shares have theirs, or until the deadline.

    Returns the shares whose nodes have answered, but are silent when asked again after ``doubts_after_s``.
    """
    listening = _Listening(shares)
    doubts = None if doubts_after_s is None else deadline.within(doubts_after_s)
    while len(listening.waiting) > len(listening.doubted):
        if listening.hear(doubts or deadline, deadline):
            continue
        # What has arrived by the deadline is taken, however late this thread was woken.
        if not deadline.left():
            break
        if doubts is not None and not doubts.left():
            doubts = None
            for share in shares:
                if share.is_answered():
                    listening.probe(share, deadline)
    for share in listening.waiting.values():
        share.give_up()
    return [] if deadline.left() else [*listening.doubted.values()]


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
