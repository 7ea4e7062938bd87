"""Two sets of services on the same topics: rerankers with models and group suffixes of their own, on a real Kafka."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from streamer.encoders import DEMO
from streamer.events import now
from streamer.topology import RERANK
from tests.support.driver import (
    RERANKED,
    RESULTS,
    STREAMER,
    Bus,
    Record,
    Service,
    apply_topics,
    environment,
    left,
)
from tests.support.load import Metrics
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

BLUE, GREEN = "-blue", "-green"
EVENTS = 600
INVALID = 3
DEAD = f"{RESULTS}.dlq"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_model(directory: Path) -> str:
    """Write an open_clip model with random weights and return how a setting names it."""
    directory.mkdir()
    preprocessing = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"}
    document = {"model_cfg": TINY, "preprocess_cfg": preprocessing}
    (directory / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(0)
    network = open_clip.create_model(f"local-dir:{directory}")
    save_file(network.state_dict(), directory / "open_clip_model.safetensors")
    return f"local-dir:{directory}"


def query(number: int) -> Record:
    results = [{"clip_id": f"c{n}", "score": float(20 - n)} for n in range(20)]
    event = {
        "query_id": f"q{number}",
        "query": f"a query of number {number % 50}",
        "engine": "e",
        "issued_at": now().isoformat(),
        "results": results,
    }
    return Record.of(f"q{number}", event)


class Sets:
    """A reranker of each of two sets of services, which share brokers, topics and instance ids."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self._folder = folder
        models = {BLUE: DEMO, GREEN: tiny_model(folder / "tiny")}
        self.variables = {
            suffix: environment(
                bus, folder / "store", [], STREAMER_GROUP_SUFFIX=suffix, STREAMER_MODEL=model, STREAMER_DTYPE="float32"
            )
            for suffix, model in models.items()
        }
        apply_topics(self.variables[BLUE], folder)

    def start(self, suffix: str) -> Service:
        return Service(RERANK.role, self.variables[suffix], self._folder)

    def group(self, suffix: str) -> str:
        return RERANK.group + suffix

    def await_done(self, services: Sequence[Service], *suffixes: str) -> None:
        for suffix in suffixes:
            self.bus.await_group(self.group(suffix), RESULTS, seconds=120, alive=services)

    def run(self, *arguments: str, suffix: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command, with the settings of one set or, without ``suffix``, of none of them."""
        variables = {name: value for name, value in self.variables[BLUE].items() if name != "STREAMER_GROUP_SUFFIX"}
        return subprocess.run(
            [STREAMER, *arguments],
            env=self.variables[suffix] if suffix else variables,
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def dlq(self, command: str, *arguments: str, suffix: str | None = None) -> list[dict[str, Any]]:
        done = self.run("dlq", command, RESULTS, "--json", *arguments, suffix=suffix)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def dead_letters(self) -> Counter[tuple[str, str]]:
        """Count the dead letters by group and key; markers of a redrive are none."""
        return Counter(
            (record.header("dlq.group").removeprefix(self.bus.prefix), (record.key or b"").decode())
            for record in self.bus.read(DEAD)
            if any(name == "dlq.reason" for name, _ in record.headers)
        )


def lag(service: Service, group: str) -> float | None:
    """Return the lag in records that a service shows of its group; None where it shows none."""
    name = "streamer_consumer_lag_records"
    figures = Metrics(service)
    return figures.total(name, group=group) if figures.labels(name, "group") == {group} else None


def assert_answers_are_never_mixed(sets: Sets, models: Sequence[str]) -> None:
    """``models``: the blue group's and the green one's, which have answered the same queries."""
    mixed = sets.run("pilot", "--answers-from-topic", "--json", "-")
    assert mixed.returncode == 2, mixed.stdout
    assert "group_suffix (--group-suffix, STREAMER_GROUP_SUFFIX): several consumer groups have answered" in mixed.stderr
    assert all(sets.bus.prefix + sets.group(suffix) in mixed.stderr for suffix in (BLUE, GREEN))
    chosen = sets.run("pilot", "--answers-from-topic", "--json", "-", suffix=GREEN)
    assert chosen.returncode == 0, chosen.stderr
    assert json.loads(chosen.stdout)["queries"] == EVENTS
    asked = ("replay", "--from-topic", "--limit", "5", "--through-kafka", "--out", "run")
    replayed = sets.run(*asked, suffix=GREEN)
    # The store is empty; the message names the model of all five answers.
    assert f"none of the candidates is embedded (alpha 0.4, depth 100, minmax, model {models[1]})" in replayed.stderr


@pytest.fixture
def sets(kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> Sets:
    return Sets(Bus(kafka.bootstrap_servers, topic_prefix), tmp_path)


def test_two_groups_answer_everything_exactly_once_and_are_distinguished(sets: Sets) -> None:
    bus = sets.bus
    blue_group, green_group = sets.group(BLUE), sets.group(GREEN)
    blue_name, green_name = bus.prefix + blue_group, bus.prefix + green_group
    with sets.start(BLUE) as blue, sets.start(GREEN) as green:
        ready = [Metrics(each.await_ready(seconds=150)) for each in (blue, green)]
        models = [each.label("streamer_build_info", "model_id") for each in ready]
        assert len(set(models)) == 2
        bus.publish(RESULTS, map(query, range(EVENTS // 2)))
        green.process.kill()  # in the middle of its work, perhaps of a transaction
        green.process.wait()
        bus.publish(RESULTS, map(query, range(EVENTS // 2, EVENTS)))
        bus.publish(RESULTS, [Record(f"bad{n}".encode(), b"{") for n in range(INVALID)])
        sets.await_done([blue], BLUE)

        # Lag is each group's own: what the one has done the other has yet to do.
        wait_until(lambda: lag(blue, blue_name) == 0, "the blue lag to be 0", seconds=30, alive=[blue])
        asker = bus.asker(green_group)
        assert left(asker, bus.ends(RESULTS))
        asker.close()
        with sets.start(GREEN) as again:
            again.await_ready(seconds=150)
            sets.await_done([blue, again], BLUE, GREEN)
            wait_until(lambda: lag(again, green_name) == 0, "the green lag to be 0", seconds=30, alive=[again])

            answered = Counter((record.event["query_id"], record.event["model_id"]) for record in bus.read(RERANKED))
            assert answered == Counter({(f"q{n}", model): 1 for n in range(EVENTS) for model in models})
            assert all(record.event["degraded"] is None for record in bus.read(RERANKED))

            invalid = [f"bad{n}" for n in range(INVALID)]
            wanted = Counter({(group, key): 1 for group in (blue_group, green_group) for key in invalid})
            assert sets.dead_letters() == wanted
            (listed,) = sets.dlq("list")
            assert {(row["group"], row["count"]) for row in listed["reasons"]} == {
                (blue_name, INVALID),
                (green_name, INVALID),
            }
            shown = sets.dlq("show", "--group", green_name)
            assert sorted(each["key"] for each in shown) == invalid
            (listed,) = sets.dlq("list", suffix=GREEN)
            assert [(row["group"], row["count"]) for row in listed["reasons"]] == [(green_name, INVALID)]

            assert_answers_are_never_mixed(sets, models)

            # What is put back for one group is processed by that group alone; here it fails again.
            (report,) = sets.dlq("redrive", "--group", green_name)
            assert report["redriven"] == INVALID
            sets.await_done([blue, again], BLUE, GREEN)
            wait_until(
                lambda: sets.dead_letters() == wanted + Counter({(green_group, key): 1 for key in invalid}),
                "the green group's dead letters to come again",
                seconds=30,
                alive=[blue, again],
            )
            again.stop()
        blue.stop()
