"""What is done to the brokers: killed, restarted, frozen, robbed of their disks."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tests.chaos.kinds import EMBED, RERANK
from tests.chaos.plan import BROKERS
from tests.chaos.scene import INPUTS, OUTPUTS, Outcome
from tests.chaos.service_faults import state

if TYPE_CHECKING:
    from tests.chaos.plan import Step
    from tests.chaos.scene import Scene

_CUT_BATCHES = 3


def kill(scene: Scene, step: Step) -> Outcome:
    """Kill a broker."""
    return Outcome(scene.brokers.kill([_node(step)], away_s=step.seconds))


def kill_all(scene: Scene, _step: Step) -> Outcome:
    """Kill all brokers at once, as a power cut does."""
    return Outcome(scene.brokers.kill(range(BROKERS), away_s=1.0))


def restart(scene: Scene, step: Step) -> Outcome:
    """Restart a broker in order."""
    return Outcome(scene.brokers.restart(_node(step)))


def restart_in_turn(scene: Scene, _step: Step) -> Outcome:
    """Restart one broker after the other, as an upgrade does: the next one when all replicas are in sync."""
    fired = True
    for node_id in range(BROKERS):
        scene.brokers.await_in_sync()
        fired &= scene.brokers.restart(node_id)
    return Outcome(fired)


def freeze(scene: Scene, step: Step) -> Outcome:
    """Stop a broker for a moment: its connections hang, and nobody takes its place."""
    pid = scene.brokers.kafka.pid(_node(step))
    with scene.brokers.frozen([_node(step)]):
        time.sleep(step.seconds)
        return Outcome(state(pid) == "T")


def freeze_out_of_sync(scene: Scene, step: Step) -> Outcome:
    """Stop a broker until no partition counts it among its in-sync replicas."""
    with scene.brokers.frozen([_node(step)]):
        scene.brokers.await_out_of_sync(_node(step))
        time.sleep(step.seconds / 2)
    return Outcome(fired=True)


def freeze_two(scene: Scene, step: Step) -> Outcome:
    """Stop two brokers: fewer in-sync replicas than writes need, and no quorum of controllers."""
    victims = [_node(step), (_node(step) + 1) % BROKERS]
    pids = [scene.brokers.kafka.pid(node_id) for node_id in victims]
    with scene.brokers.frozen(victims):
        time.sleep(step.seconds)
        return Outcome(all(state(pid) == "T" for pid in pids))


def lose_disk(scene: Scene, step: Step) -> Outcome:
    """Kill a broker and delete its replicas of our topics: it copies them from the others."""
    node_id = _node(step)
    removed = 0
    with scene.brokers.killed([node_id]):
        # Until then it could come back as a leader, and its empty log would count.
        scene.brokers.await_out_of_sync(node_id)
        for topic in {*INPUTS.values(), *OUTPUTS.values()}:
            removed += scene.brokers.remove_logs(node_id, scene.full(topic))
    scene.brokers.await_in_sync()
    return Outcome(removed > 0, f"{removed} replicas")


def truncate(scene: Scene, step: Step) -> Outcome:
    """Let the end of a partition be lost on all replicas, after all of it was processed.

    The group's offset then lies beyond the end, as after an unclean election. What is published next gets offsets that
    were processed before, under other records. Everything from the reset on may be processed again.
    """
    draw = scene.draw(step)
    role = draw.choice((EMBED, RERANK))
    topic = INPUTS[role]
    with ExitStack() as stack:
        stack.enter_context(scene.publisher.held())
        scene.await_quiet(role)
        before = scene.ends(topic)
        partition = draw.choice([number for number, end in sorted(before.items()) if 2 * end > max(before.values())])
        with scene.brokers.killed(range(BROKERS)):
            end = scene.brokers.cut_logs(scene.full(topic), partition, draw.randint(1, _CUT_BATCHES))
        scene.brokers.await_in_sync()
        after = scene.ends(topic)[partition]
        scene.ledger.allow_again(topic, partition, 0, end)
        scene.ledger.replace_log(topic, partition)
    return Outcome(
        after == end < before[partition], f"{topic}[{partition}] ended at {before[partition]}, then at {after}"
    )


def _node(step: Step) -> int:
    """Return the broker that a step hits; where it hits all, the first one."""
    number = step.victim.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
