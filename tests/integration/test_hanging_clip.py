"""Fifty good clips and one that decodes for minutes, through the running embedder: it holds none of them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.store import open_store
from tests.support.driver import EMBEDDED, UPLOADED, Bus, Service, apply_topics, environment
from tests.support.endless import write_endless_clip
from tests.support.footage import tiny_footage
from tests.support.load import Metrics, stored_dim, upload
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streamer.local_kafka.broker import LocalKafka

GOOD = 50


def test_fifty_clips_are_embedded_before_one_that_hangs_is_given_up(
    kafka: LocalKafka, topic_prefix: str, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    good = [video.path for video in tiny_footage(clips)]
    hanging = write_endless_clip(clips / "endless.mp4")
    bus = Bus(kafka.bootstrap_servers, topic_prefix)
    variables = environment(bus, tmp_path / "store", [clips], STREAMER_DECODE_TIMEOUT="10")
    apply_topics(variables, tmp_path)
    uploads = [upload("hanging", hanging), *(upload(f"good-{n}", good[n % len(good)]) for n in range(GOOD))]
    wanted = {f"good-{n}" for n in range(GOOD)}

    with Service("embed", variables, tmp_path) as embedder:
        model_id = Metrics(embedder.await_ready(seconds=150)).label("streamer_build_info", "model_id")
        store = open_store(variables["STREAMER_STORE"], model_id=model_id, dim=stored_dim(), read_only=True)
        sent = bus.publish(UPLOADED, uploads)
        assert any(each.partition == sent[0].partition for each in sent[1:]), (
            "no clip is in the hanging one's partition"
        )
        good_keys = {each.key or b"" for each in sent[1:]}
        wait_until(lambda: wanted <= set(store.clip_ids()), "50 records", seconds=120, alive=[embedder])
        wait_until(lambda: len(bus.read(EMBEDDED)) >= GOOD, "their events", seconds=60, alive=[embedder])
        assert bus.read(f"{UPLOADED}.dlq") == [], "the good clips did not come before the end of the hanging one"
        bus.await_group("streamer-embed", UPLOADED, seconds=120, alive=[embedder])
        embedder.stop()
        store.close()

    assert sorted(record.key or b"" for record in bus.read(EMBEDDED)) == sorted(good_keys)
    [letter] = bus.read(f"{UPLOADED}.dlq")
    assert letter.key == b"hanging"
    assert letter.header("dlq.reason") == "decode_timeout"
    assert letter.header("dlq.error") == "not decoded after 10 s"
    assert letter.header("dlq.attempts") == "2"
