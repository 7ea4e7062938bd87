"""What becomes of uploads and deletes: on real files and a real store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamer import faults
from streamer.codec import JSON
from streamer.events import ClipEmbedded, ClipUploaded
from streamer.kafka import InFlightRecord
from streamer.store import Position
from streamer.synthetic.write import write_h264
from tests.support.embedding import DIM, T0, Harness, Recording, clip, dominant, reason
from tests.support.in_process import InProcessDecoder

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from streamer.store import Store


def test_an_upload_is_stored_with_each_vectors_time_and_announced(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    ((output,),) = harness.run(harness.upload("c1", red))
    event = JSON.decode(ClipEmbedded, output.value, output.key)
    assert (event.clip_id, event.model_id, event.frames, event.duration_ms) == ("c1", "colour", 4, 2000)
    assert event.uploaded_at == T0
    headers = dict(output.headers)
    assert headers["content-type"] == b"application/json"
    assert (headers["ce_id"], headers["ce_subject"]) == (b"embed-uploads-0-1", b"c1")
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.times_ms.tolist() == [0, 0, 500, 500, 1000, 1000, 1500, 1500]
        assert embedding.matrix.shape == (8, DIM)


def test_duplicates_are_encoded_once_and_stored_with_all_their_times(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    harness.embedder._decoder = InProcessDecoder(harness.encoder.prepare_square, duplicate_threshold=2)
    ((output,),) = harness.run(harness.upload("c1", red))
    assert JSON.decode(ClipEmbedded, output.value, output.key).frames == 4
    assert harness.encoder.batches == [1]
    value = harness.metrics.registry.get_sample_value
    assert (value("streamer_frames_encoded_total"), value("streamer_frames_duplicate_total")) == (1, 3)
    with store.read(["c1"]) as (embedding,):
        assert embedding is not None
        assert embedding.times_ms.tolist() == [0, 0, 500, 500, 1000, 1000, 1500, 1500]
        assert (embedding.matrix[:2] != embedding.matrix[1]).any()
        assert all((embedding.matrix[2 * n : 2 * n + 2] == embedding.matrix[:2]).all() for n in range(4))


def test_frames_of_clips_that_wait_share_batches(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store, image_batch=6)
    harness.run(*(harness.upload(f"c{number}", red) for number in range(12)))
    assert sum(harness.encoder.batches) == 48
    assert max(harness.encoder.batches) <= 6


def test_events_of_one_clip_take_turns_in_the_order_of_the_log(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    harness = Harness(tmp_path, store)
    harness.run(
        harness.upload("c1", red),
        harness.work("c1", None),
        harness.upload("c1", blue, seconds=1),
        harness.upload("c2", red),
        harness.upload("c2", blue, seconds=1),
        harness.work("c2", None),
        harness.upload("c3", blue, seconds=2),
        harness.upload("c3", red, seconds=1),
    )
    assert dominant(store, "c1") == 2
    assert dominant(store, "c2") is None
    assert dominant(store, "c3") == 2


def test_a_redelivery_does_not_undo_a_delete_and_is_announced_all_the_same(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    harness.run(harness.upload("c1", red))
    assert harness.run(harness.work("c1", None)) == [()]
    ((output,),) = harness.run(harness.upload("c1", red))
    assert output.topic == "clips.embedded"
    assert dominant(store, "c1") is None
    assert harness.metrics.registry.get_sample_value("streamer_uploads_superseded_total") == 1


def test_what_cannot_be_embedded_is_dead_lettered_with_its_reason(tmp_path: Path, store: Store, red: Path) -> None:
    harness = Harness(tmp_path, store)
    garbage = tmp_path / "garbage.mp4"
    garbage.write_bytes(b"no video " * 100)
    outside = JSON.encode(ClipUploaded(clip_id="o", uri="file:///etc/hostname", uploaded_at=T0))
    outputs = harness.run(
        harness.work("c1", b"{"),
        harness.work(None, None),
        harness.work("", None),
        harness.upload("c2", tmp_path / "none.mp4"),
        harness.upload("c3", garbage),
        harness.work("o", outside),
        harness.work("other", JSON.encode(ClipUploaded(clip_id="c4", uri=red.as_uri(), uploaded_at=T0))),
        harness.upload("good", red),
    )
    assert [reason(each) for each in outputs[:-1]] == [
        "not_json",
        "empty",
        "limit_exceeded",
        "not_found",
        "decode_failed",
        "uri_refused",
        "key_mismatch",
    ]
    assert outputs[-1][0].topic == "clips.embedded"


def test_a_clip_that_the_model_refuses_costs_the_others_of_its_batch_nothing(
    tmp_path: Path, store: Store, red: Path
) -> None:
    harness = Harness(tmp_path, store)
    black = clip(tmp_path / "black.mp4", (0, 0, 0))
    outputs = harness.run(
        *(harness.upload(f"c{number}", red) for number in range(4)),
        harness.upload("black", black),
        *(harness.upload(f"d{number}", red) for number in range(4)),
    )
    assert reason(outputs[4]) == "encode_failed"
    assert all(each[0].topic == "clips.embedded" for position, each in enumerate(outputs) if position != 4)


def test_a_clip_that_decodes_in_part_says_so_and_is_counted(tmp_path: Path, store: Store) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    noise = np.random.default_rng(0)
    write_h264(whole, (noise.integers(40, 256, (64, 64, 3), np.uint8) for _ in range(40)), fps=10)
    damaged = bytearray(whole.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    cut.write_bytes(damaged)
    harness = Harness(tmp_path, store)
    outputs = harness.run(harness.upload("whole", whole), harness.upload("cut", cut))
    events = [JSON.decode(ClipEmbedded, each[0].value, each[0].key) for each in outputs]
    assert [event.partial for event in events] == [False, True]
    assert harness.metrics.registry.get_sample_value("streamer_clips_partial_total") == 1


def test_writes_carry_the_place_of_their_records_in_the_log(tmp_path: Path, store: Store, red: Path) -> None:
    recording = Recording(store)
    harness = Harness(tmp_path, recording)
    harness.run(harness.upload("c1", red))
    harness.run(harness.work("c1", None))
    assert recording.puts == [[("c1", Position.of("uploads-0", 1))]]
    assert recording.deletes == [("c1", Position.of("uploads-0", 2))]


def test_a_replay_of_the_log_leaves_the_store_as_it_is_and_announces_each_upload_again(
    tmp_path: Path, store: Store, red: Path, blue: Path
) -> None:
    harness = Harness(tmp_path, store)
    log = [harness.upload("c1", red), harness.work("c1", None), harness.upload("c1", blue, seconds=1)]
    first = harness.run(*log)
    again = harness.run(*(InFlightRecord(work.record, harness.done.release) for work in log))
    assert [len(outputs) for outputs in first] == [len(outputs) for outputs in again] == [1, 0, 1]
    assert dominant(store, "c1") == 2


def test_the_fault_point_is_reached_right_after_each_durable_write(
    tmp_path: Path, store: Store, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[faults.FaultPoint, int | None]] = []
    works: list[InFlightRecord] = []

    def reach(point: faults.FaultPoint) -> None:
        if point is faults.FaultPoint.STORED:
            assert works[-1].outputs is None
            seen.append((point, dominant(store, "c1")))

    monkeypatch.setattr(faults, "reach", reach)
    harness = Harness(tmp_path, store)
    for work in (harness.upload("c1", red), harness.work("c1", None)):
        works.append(work)
        harness.run(work)
    assert seen == [(faults.FaultPoint.STORED, 0), (faults.FaultPoint.STORED, None)]


def test_a_record_passes_each_stage_once_also_where_it_waits_for_its_source(store: Store, tmp_path: Path) -> None:
    harness = Harness(tmp_path, store, decode_workers=1)
    red = clip(tmp_path / "red.mp4", (200, 10, 10))
    works = [harness.upload(f"c{number}", red) for number in range(30)]  # 9 of one source are loaded at the same time
    outputs = harness.run(*works, harness.work("c0", None), harness.work("c1", b"{"), harness.work("\x00" * 600, None))
    assert [output.topic for each in outputs for output in each] == [
        *["clips.embedded"] * 30,
        *["clips.uploaded.dlq"] * 2,
    ]
    passed = {
        stage: harness.metrics.registry.get_sample_value("streamer_batch_size_sum", {"stage": stage})
        for stage in ("read", "load", "store", "delete")
    }
    assert passed == {"read": 33, "load": 30, "store": 30, "delete": 1}
    with store.read(["c0", "c1"]) as found:
        assert [each is None for each in found] == [True, False]
