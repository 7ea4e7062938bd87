"""What is done to topics, and to what clients may do with them."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import ElectionType, IsolationLevel, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.chaos.brokers import USER
from tests.chaos.inputs import extra_query, unreadable
from tests.chaos.kinds import EMBED, RERANK
from tests.chaos.plan import BROKERS
from tests.chaos.scene import GROUPS, INPUTS, OUTPUTS, Outcome
from tests.chaos.signs import Signs
from tests.support.driver import LATEST, place_of
from tests.support.kafka_tools import run_tool
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka import KafkaError, Message

    from tests.chaos.inputs import Input
    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene

_REQUEST_S = 10.0
_SIGN_S = 60.0
_SETTLE_S = 90.0
_QUOTA = 30_000
"""Bytes a second that all clients of a user may produce, and consume."""
_SMALL_OUTPUT = 6_000
_LARGE_VALUE = 90 << 20


def reassign(scene: Scene, step: Step) -> Outcome:
    """Take a replica of each partition away, bring it back in another place, and let the first ones lead."""
    topics = [scene.full(INPUTS[step.role]), scene.full(OUTPUTS[step.role])]
    before = {topic: scene.admin.list_topics(timeout=_REQUEST_S).topics[topic].partitions for topic in topics}
    rotated = {
        (topic, number): [*each.replicas[1:], each.replicas[0]]
        for topic, partitions in before.items()
        for number, each in partitions.items()
    }
    for most in (2, 3):
        plan = {place: replicas[:most] for place, replicas in rotated.items()}
        _move(scene, plan)
    leaders = {(topic, number): each.leader for topic, found in before.items() for number, each in found.items()}
    scene.retried(
        # With request_timeout it raises SystemError (confluent-kafka 2.16).
        lambda: scene.admin.elect_leaders(ElectionType.PREFERRED, [TopicPartition(*place) for place in rotated]).result(
            _REQUEST_S
        )
    )
    found = scene.admin.list_topics(timeout=_REQUEST_S).topics
    moved = sum(found[topic].partitions[number].leader != leader for (topic, number), leader in leaders.items())
    return Outcome(moved > 0, f"{moved} of {len(leaders)} leaders moved")


def _move(scene: Scene, plan: dict[tuple[str, int], list[int]]) -> None:
    """Give partitions other replicas, and wait until they are in sync. Raises TimeoutError."""
    entries = [
        {"topic": topic, "partition": number, "replicas": replicas} for (topic, number), replicas in plan.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(json.dumps({"version": 1, "partitions": entries}))
        run_tool(
            "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
            "--bootstrap-server",
            scene.bus.bootstrap_servers,
            "--reassignment-json-file",
            str(file),
            "--execute",
        )

    def is_done() -> bool:
        found = scene.admin.list_topics(timeout=_REQUEST_S).topics
        return all(
            found[topic].partitions[number].replicas == replicas
            and set(found[topic].partitions[number].isrs) == set(replicas)
            for (topic, number), replicas in plan.items()
        )

    wait_until(is_done, seconds=_SETTLE_S, what="the replicas to move")


def add_partitions(scene: Scene, step: Step) -> Outcome:
    """Add a partition to the output; to the queries too, whose order does not matter."""
    topics = [OUTPUTS[step.role], *([INPUTS[RERANK]] if step.role == RERANK else [])]
    before = {topic: len(scene.partitions(topic)) for topic in topics}
    for topic, count in before.items():
        _grow(scene, topic, count + 1)
    wait_until(
        lambda: all(len(scene.partitions(topic)) == count + 1 for topic, count in before.items()),
        seconds=_REQUEST_S,
        what="the partition to be there",
    )
    return Outcome(fired=True, note=str({topic: count + 1 for topic, count in before.items()}))


def _grow(scene: Scene, topic: str, partitions: int) -> None:
    new = NewPartitions(scene.full(topic), partitions)
    scene.retried(lambda: scene.admin.create_partitions([new])[new.topic].result(_REQUEST_S))


def throttle(scene: Scene, step: Step) -> Outcome:
    """Give the services' user a quota, and see that another client of that user is throttled."""
    quotas = f"producer_byte_rate={_QUOTA},consumer_byte_rate={_QUOTA}"
    throttled: list[float] = []
    topic = scene.full("quota")
    scene.brokers.await_in_sync()  # a client that reaches no broker is not throttled
    with suppress(KafkaException):  # it is there already
        scene.admin.create_topics([NewTopic(topic, 1, BROKERS)])[topic].result(_SIGN_S)
    probe = Producer(
        {
            **scene.brokers.client(),
            "acks": 1,
            "linger.ms": 0,
            "throttle_cb": lambda event: throttled.append(event.throttle_time),
        }
    )
    _alter_quotas(scene, "--add-config", quotas)
    try:
        deadline = time.monotonic() + step.seconds
        while time.monotonic() < deadline or (not any(throttled) and time.monotonic() < deadline + _SIGN_S):
            probe.produce(topic, bytes(_QUOTA))
            probe.flush(1)
    finally:
        _alter_quotas(scene, "--delete-config", "producer_byte_rate,consumer_byte_rate")
        probe.purge()
    return Outcome(any(throttled), f"throttled for {sum(throttled):.1f} s")


def _alter_quotas(scene: Scene, how: str, quotas: str) -> None:
    run_tool(
        "org.apache.kafka.tools.ConfigCommand",
        "--bootstrap-server",
        scene.bus.bootstrap_servers,
        "--alter",
        how,
        quotas,
        "--entity-type",
        "users",
        "--entity-name",
        USER,
    )


def refuse_timestamps(scene: Scene, step: Step) -> Outcome:
    """Let the output refuse every timestamp that is not of this millisecond, as one far off the broker's clock."""
    with scene.configured(OUTPUTS[step.role], "message.timestamp.before.max.ms", "0"):
        return _show(scene, step)


def limit_output(scene: Scene, step: Step) -> Outcome:
    """Let the output topic take small records only: what is larger becomes a dead letter."""
    scene.ledger.limit(OUTPUTS[step.role], _SMALL_OUTPUT)
    with scene.configured(OUTPUTS[step.role], "max.message.bytes", str(_SMALL_OUTPUT)):
        return _show(scene, step)


def deny(scene: Scene, step: Step) -> Outcome:
    """Take one of the privileges away that the services' user needs."""
    topic, prefixed = ResourceType.TOPIC, ResourcePatternType.PREFIXED
    choices = [
        (topic, scene.full(OUTPUTS[step.role]), AclOperation.WRITE),
        (topic, scene.full(INPUTS[step.role]), AclOperation.READ),
        (ResourceType.GROUP, scene.full(GROUPS[step.role]), AclOperation.READ),
        (ResourceType.TRANSACTIONAL_ID, scene.full(GROUPS[step.role]), AclOperation.WRITE),
    ]
    resource, name, operation = scene.draw(step).choice(choices)
    allowed = AclBinding(resource, name, prefixed, "User:*", "*", AclOperation.ALL, AclPermissionType.ALLOW)
    denied = AclBinding(resource, name, prefixed, f"User:{USER}", "*", operation, AclPermissionType.DENY)
    with _bound(scene, allowed), _bound(scene, denied):
        shown = _show(scene, step)
    return Outcome(shown.fired, f"{operation.name} {name}: {shown.note}")


@contextmanager
def _bound(scene: Scene, binding: AclBinding) -> Iterator[None]:
    scene.retried(lambda: scene.admin.create_acls([binding])[binding].result(_REQUEST_S))
    same = AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )
    try:
        yield
    finally:
        scene.retried(lambda: scene.admin.delete_acls([same])[same].result(_REQUEST_S))


def require_all_replicas(scene: Scene, step: Step) -> Outcome:
    """Let the output take no write: it requires all its replicas to be in sync, and one of them is cut off.

    A value above their number does nothing: brokers take the smaller one of both.
    """
    topic = scene.full(OUTPUTS[step.role])
    node_id = scene.draw(step).randrange(BROKERS)
    probe = Producer(
        {
            "bootstrap.servers": scene.bus.bootstrap_servers,
            "transactional.id": scene.full("probe"),
            "log_level": 0,
        }
    )
    scene.retried(lambda: probe.init_transactions(_REQUEST_S))
    with (
        scene.configured(OUTPUTS[step.role], "min.insync.replicas", str(BROKERS)),
        scene.brokers.frozen([node_id]),
    ):
        scene.brokers.await_out_of_sync(node_id)
        probe.begin_transaction()
        probe.produce(topic, b"never to be seen", partition=0)
        waiting = probe.flush(step.seconds)
    scene.brokers.await_in_sync()
    scene.retried(lambda: probe.abort_transaction(_REQUEST_S))
    return Outcome(waiting > 0, "a write was not acknowledged" if waiting else "a write was acknowledged")


def _show(scene: Scene, step: Step) -> Outcome:
    """Leave things as they are for a while, and until the role's services show that it hurts."""
    signs = Signs(scene.role(step.role))
    deadline = time.monotonic() + step.seconds
    while time.monotonic() < deadline or (not signs and time.monotonic() < deadline + _SIGN_S):
        signs.look()
        time.sleep(0.3)
    return Outcome(bool(signs), str(signs))


def leave_transaction_open(scene: Scene, step: Step) -> Outcome:
    """Write an input in a transaction that stays open: everything behind it in its partition waits."""
    draw = scene.draw(step)
    topic = INPUTS[step.role]
    each = extra_query(draw)
    upstream = Producer(
        {"bootstrap.servers": scene.bus.bootstrap_servers, "transactional.id": scene.full("upstream"), "log_level": 0}
    )
    scene.retried(lambda: upstream.init_transactions(_REQUEST_S))
    upstream.begin_transaction()
    placed = _write(scene, upstream, topic, each)
    time.sleep(step.seconds)
    partition = placed.record.partition
    held = _stable_end(scene, topic, partition) <= placed.record.offset < scene.ends(topic)[partition]
    commits = step.role == RERANK and draw.random() < 0.5
    end = upstream.commit_transaction if commits else upstream.abort_transaction
    scene.retried(lambda: end(_REQUEST_S))
    if commits:
        scene.extra.append(placed)
    return Outcome(held, "then committed" if commits else "then aborted")


def _write(scene: Scene, producer: Producer, topic: str, each: Input) -> Input:
    """Write an input at once; return it with its place. Raises KafkaException, TimeoutError."""
    placed: list[Input] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            _, partition, offset = place_of(message)
            placed.append(each.placed(partition, offset, scene.ledger.generation(topic, partition)))

    record = each.record
    producer.produce(
        scene.full(topic), key=record.key, value=record.value, headers=list(record.headers), on_delivery=delivered
    )
    producer.flush(_SETTLE_S)
    if not placed:
        raise TimeoutError(f"a record to {topic} is not acknowledged")
    return placed[0]


def _stable_end(scene: Scene, topic: str, partition: int) -> int:
    place = TopicPartition(scene.full(topic), partition)

    def end() -> int:
        [future] = scene.admin.list_offsets(
            {place: LATEST}, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=_REQUEST_S
        ).values()
        return int(future.result().offset)

    return scene.retried(end)  # a leader that has just changed is refused by its epoch


def write_unreadable(scene: Scene, step: Step) -> Outcome:
    """Write a record of which a few kilobytes become 90 MB, more than the client reads by default."""
    topic = INPUTS[step.role]
    producer = Producer(
        {
            "bootstrap.servers": scene.bus.bootstrap_servers,
            "compression.type": "zstd",
            "message.max.bytes": 2 * _LARGE_VALUE,
            "batch.size": 2 * _LARGE_VALUE,
        }
    )
    placed = _write(scene, producer, topic, unreadable(topic, f"unreadable-{step.at}", bytes(_LARGE_VALUE)))
    scene.extra.append(placed)
    return Outcome(fired=True, note=f"{topic}[{placed.record.partition}] at {placed.record.offset}")


def delete_unread(scene: Scene, step: Step) -> Outcome:
    """Stop the readers for a moment, and let retention take what is published meanwhile."""
    topic = INPUTS[step.role]
    with ExitStack() as stack:
        for instance in scene.role(step.role):
            stack.enter_context(instance.frozen())
        time.sleep(step.seconds)
        committed, ends = scene.committed(step.role), scene.ends(topic)
        partition = max(ends, key=lambda number: ends[number] - committed[number])
        end = ends[partition]
        unread = end - committed[partition]
        scene.ledger.allow_gone(topic, partition, committed[partition], end)
        place = TopicPartition(scene.full(topic), partition, end)
        scene.retried(lambda: scene.admin.delete_records([place])[place].result(_REQUEST_S))
    return Outcome(
        unread > 0 and scene.starts(topic)[partition] >= end, f"{topic}[{partition}]: {unread} records unread"
    )


def recreate_output(scene: Scene, step: Step) -> Outcome:
    """Delete the output once all was read that it held, and create it again while inputs come in."""
    topic = OUTPUTS[step.role]
    with ExitStack() as stack:
        stack.enter_context(scene.publisher.held())
        scene.await_quiet(step.role)
        records = scene.bus.read(topic)
        scene.ledger.keep(topic, records)
        fired = scene.recreate(topic, away_s=step.seconds, between=stack.close)
    return Outcome(fired, f"{len(records)} records were read before")


def recreate_input(scene: Scene, step: Step) -> Outcome:
    """Delete the input and create it again: what it holds then is other records at the same offsets.

    Queries that wait in it may be lost with it; of uploads none waits, so that the store's content is decided.
    """
    topic = INPUTS[step.role]
    is_quiet = step.role == EMBED or scene.draw(step).random() < 0.5
    with scene.publisher.held():
        if is_quiet:
            scene.await_quiet(step.role)
        committed, ends = scene.committed(step.role), scene.ends(topic)
        lost = defaultdict(int, {number: end - committed[number] for number, end in ends.items()})
        for number, end in ends.items():
            scene.ledger.allow_gone(topic, number, committed[number], end)
        fired = scene.recreate(topic, away_s=step.seconds, between=lambda: None)
        scene.ledger.replace_log(topic)
    return Outcome(fired, f"{sum(lost.values())} records were waiting")


def set_offsets_back(scene: Scene, step: Step) -> Outcome:
    """Set the group back by some records in two partitions, with nothing said of what is done beyond."""
    topic = INPUTS[step.role]
    draw = scene.draw(step)
    with scene.stopped(step.role):
        committed, starts = scene.committed(step.role), scene.starts(topic)
        candidates = sorted(number for number in committed if committed[number] > starts[number])
        targets = {
            number: max(starts[number], committed[number] - draw.randint(1, 40))
            for number in draw.sample(candidates, min(2, len(candidates)))
        }
        for number, target in targets.items():
            scene.ledger.allow_again(topic, number, target, scene.ends(topic)[number])
        scene.set_offsets(step.role, targets)
        found = scene.committed(step.role)
    return Outcome(
        bool(targets) and all(found[number] == target for number, target in targets.items()),
        ", ".join(f"[{number}] {committed[number]} to {target}" for number, target in targets.items()),
    )


def set_offset_beyond(scene: Scene, step: Step) -> Outcome:
    """Set the group's offset of a partition beyond the end: the client resets it to the first record that there is."""
    topic = INPUTS[step.role]
    with scene.stopped(step.role):
        ends = scene.ends(topic)
        partition = scene.draw(step).choice(sorted(ends))
        target = ends[partition] + 1_000
        scene.ledger.allow_again(topic, partition, 0, ends[partition])
        scene.set_offsets(step.role, {partition: target})
        found = scene.committed(step.role)[partition]
    return Outcome(found == target, f"[{partition}] ends at {ends[partition]}, set to {found}")
