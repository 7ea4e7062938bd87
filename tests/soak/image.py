"""The image, `make image-test`: run by podman without root, restricted as deploy/kubernetes/base restricts its pods.

Not collected by `make test`: building the image takes minutes. A pod's user is any, its volume is prepared as kubelet
does for an fsGroup, and its broker is the tests' own, on this host.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import random
import secrets
import subprocess
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.support.driver import EMBEDDED, RERANKED, RESULTS, UPLOADED, Bus, Record, model_dir
from tests.support.footage import tiny_footage
from tests.support.manifests import BASE, objects, pods, size
from tests.support.ordinary import open_folder
from tests.support.recompute import Method, Oracle, Ranking
from tests.support.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from streamer.local_kafka.broker import LocalKafka
    from tests.support.recompute import Video

pytestmark = pytest.mark.timeout(900)

IMAGE_SH = Path(__file__).parents[2] / "scripts" / "image.sh"
IMAGE = os.environ.get("IMAGE", "localhost/cliprerank-streamer:latest")
PODS = {name: (pod, container) for name, pod, container in pods(objects(BASE))}
STORE, CLIPS = "/var/lib/streamer/store", "/clips"
TEMPORARY = "/tmp"  # noqa: S108 - the containers' own


def podman(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([IMAGE_SH, "podman", *arguments], capture_output=True, text=True, timeout=120, check=check)


def any_user() -> int:
    return random.randrange(20_000, 60_000)  # noqa: S311 - no secret


def restrictions(name: str) -> list[str]:
    """Return podman's flags for what a pod of the manifests may do, but for its user."""
    pod, container = PODS[name]
    rules = container["securityContext"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}  # as podman has it by itself
    flags = ["--network=host", "--passwd=false", "--cgroups=disabled", "--read-only-tmpfs=false"]
    flags += ["--read-only"] if rules["readOnlyRootFilesystem"] else []
    flags += [f"--cap-drop={each.lower()}" for each in rules["capabilities"]["drop"]]
    flags += [] if rules["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]
    return flags


def empty_folders(name: str) -> dict[str, str]:
    """Return podman's flags for the volumes of a pod of the manifests, by where they are mounted."""
    pod, container = PODS[name]
    sizes = {volume["name"]: size(volume["emptyDir"]["sizeLimit"]) for volume in pod["volumes"]}
    return {
        mount["mountPath"]: f"--tmpfs={mount['mountPath']}:rw,nosuid,nodev,mode=1777,size={sizes[mount['name']]}"
        for mount in container["volumeMounts"]
    }


class Container:
    """A command that runs in a container of the image, as its pod of the manifests says, but as any ``user``."""

    def __init__(self, of: str, variables: dict[str, str], folder: Path, *, user: int, flags: Iterable[str]) -> None:
        pod, container = PODS[of]
        self.port = free_port()
        self.name = f"{of}-{secrets.token_hex(3)}"
        self.grace = pod.get("terminationGracePeriodSeconds", 30)
        self._log = folder / f"{self.name}.log"
        group = pod["securityContext"]["runAsGroup"]
        environment = {"STREAMER_INSTANCE_ID": self.name, "STREAMER_METRICS_PORT": str(self.port)} | variables
        command = [
            IMAGE_SH, "podman", "run", "--rm", f"--name={self.name}", f"--user={user}:{group}", *restrictions(of),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *flags, IMAGE, *container["args"],
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            podman("kill", self.name, check=False)
        self._process.wait(60)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def tail(self) -> str:
        return "\n".join(self.log.splitlines()[-40:])

    def check_alive(self) -> None:
        code = self._process.poll()
        assert code is None, f"{self.name} exited with {code}\n{self.tail()}"

    def ended(self) -> int:
        """Wait for its end and return the exit code."""
        return self._process.wait(180)

    def get(self, path: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except (OSError, http.client.HTTPException) as error:
                return 0, repr(error)

    def await_ready(self) -> Self:
        wait_until(
            lambda: self.get("/readyz")[0] == http.client.OK,
            lambda: f"{self.name} to be ready: {self.get('/readyz')}",
            seconds=90,
            alive=[self],
        )
        return self

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return podman("exec", self.name, *command, check=False)

    @property
    def pid(self) -> int:
        """Its process 1, as this host numbers it."""
        return int(podman("inspect", "--format", "{{.State.Pid}}", self.name).stdout)

    def stop(self) -> float:
        """Show that it ends cleanly when it is asked to, and return the seconds that this took."""
        self.check_alive()
        began = time.monotonic()
        podman("stop", f"--time={self.grace}", self.name)
        code = self.ended()
        took = time.monotonic() - began
        assert code == 0, f"{self.name} exited with {code} on SIGTERM\n{self.tail()}"
        assert took < self.grace, self.tail()
        return took


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below a process, and the state of each."""
    found: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        found[int(path.parent.name)] = (int(parent), state)
    below: dict[int, str] = {}
    look = [pid]
    while look:
        over = look.pop()
        of_it = {each: state for each, (parent, state) in found.items() if parent == over}
        below |= of_it
        look += of_it
    return below


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@dataclass
class Site:
    """Where the containers run: their topics, their clips and their volume."""

    bus: Bus
    folder: Path
    variables: dict[str, str]
    clips: dict[str, Video] = field(default_factory=dict)

    def prepare_volume(self) -> None:
        """Do what kubelet does to a volume before a pod with an fsGroup starts."""
        group = PODS["streamer-embed"][0]["securityContext"]["fsGroup"]
        store = self.folder / "store"
        steps = f"mkdir -p {store}; chgrp -R {group} {store}; chmod -R g+rwX {store}; chmod g+s {store}"
        podman("unshare", "sh", "-ec", steps)

    def run(
        self, of: str, *, user: int, mounts: Mapping[str, str] = {}, flags: Sequence[str] = (), **settings: str
    ) -> Container:
        """Start a container; ``mounts``: flags that mount something else at a place than usual, or nothing."""
        usual = {STORE: self.volume("store"), CLIPS: self.volume("clips", "ro")}
        mounted = [flag for flag in (empty_folders(of) | usual | dict(mounts)).values() if flag]
        return Container(of, self.variables | settings, self.folder, user=user, flags=[*mounted, *flags])

    def volume(self, name: str, access: str = "rw") -> str:
        return f"--volume={self.folder / name}:{STORE if name == 'store' else CLIPS}:{access}"

    def upload(self, clips: dict[str, Video], embedder: Container) -> None:
        now = datetime.now(UTC).isoformat()
        events = {
            clip_id: {"clip_id": clip_id, "uri": f"file:{CLIPS}/{video.path.name}", "uploaded_at": now}
            for clip_id, video in clips.items()
        }
        self.bus.publish(UPLOADED, [Record.of(clip_id, event) for clip_id, event in events.items()])
        self.bus.await_group("streamer-embed", UPLOADED, seconds=90, alive=[embedder])
        self.clips |= clips

    def check_reranked(self, query: str, oracle: Oracle, reranker: Container) -> None:
        """Ask for all clips, and recompute every number of the answer from their files."""
        query_id = secrets.token_hex(8)
        results = [{"clip_id": clip_id, "score": float(-n)} for n, clip_id in enumerate(self.clips)]
        now = datetime.now(UTC).isoformat()
        event = {"query_id": query_id, "query": query, "engine": "e", "issued_at": now, "results": results}
        self.bus.publish(RESULTS, [Record.of(query_id, event)])
        self.bus.await_group("streamer-rerank", RESULTS, seconds=60, alive=[reranker])
        [answer] = [record.event for record in self.bus.read(RERANKED) if record.event["query_id"] == query_id]
        assert answer["degraded"] is None
        videos = {clip_id: oracle.video(video) for clip_id, video in self.clips.items()}
        Ranking(oracle.text(query), results, videos, Method()).check(answer["results"])


@contextmanager
def site(kafka: LocalKafka) -> Iterator[Site]:
    bus = Bus(kafka.bootstrap_servers, f"t{secrets.token_hex(3)}.")
    variables = {
        "STREAMER_BOOTSTRAP_SERVERS": bus.bootstrap_servers,
        "STREAMER_TOPIC_PREFIX": bus.prefix,
        "STREAMER_MODEL": "demo",
        "STREAMER_STORE": f"lmdb:{STORE}",
        "STREAMER_ALLOWED_URIS": json.dumps([f"file:{CLIPS}"]),
    }
    with open_folder() as folder:
        made = Site(bus, folder, variables)
        (folder / "clips").mkdir()
        made.prepare_volume()
        with made.run("streamer-topics", user=any_user()) as job:
            assert job.ended() == 0, job.log
        yield made
        podman("unshare", "rm", "-rf", folder / "store")


@pytest.fixture(scope="module", autouse=True)
def _image() -> Iterator[None]:
    assert podman("image", "exists", IMAGE, check=False).returncode == 0, f"{IMAGE} is missing: make image"
    yield
    podman("system", "migrate")  # ends the process that keeps the user's namespace


def test_both_services_embed_and_rerank_from_the_image_without_privileges(kafka: LocalKafka) -> None:
    oracle = Oracle(model_dir())
    with site(kafka) as made:
        films = tiny_footage(made.folder / "clips")
        user = any_user()
        with made.run("streamer-embed", user=user) as embedder:
            embedder.await_ready()
            # LMDB tells its processes by their ids, so they share the namespace of these, as in one pod.
            with made.run("streamer-rerank", user=user, flags=[beside(embedder)]) as reranker:
                reranker.await_ready()
                assert "decoder sandbox: seccomp+landlock" in embedder.get("/readyz")[1]
                for each in (embedder, reranker):
                    check_unprivileged(each, user)
                made.upload({f"clip-{n}": film for n, film in enumerate(films[:6])}, embedder)
                made.check_reranked("a red disc on white", oracle, reranker)
                check_no_zombie(embedder)
                print(f"stopped: rerank {reranker.stop():.1f} s, embed {embedder.stop():.1f} s")  # noqa: T201
        # Another pod on the same volume: whoever it is, kubelet has given the volume to its group.
        other = user + 1
        made.prepare_volume()
        with made.run("streamer-embed", user=other) as embedder:
            embedder.await_ready()
            with made.run("streamer-rerank", user=other, flags=[beside(embedder)]) as reranker:
                reranker.await_ready()
                made.upload({"clip-6": films[6], "clip-0": films[7]}, embedder)
                made.check_reranked("a blue square", oracle, reranker)
                reranker.stop()
            # Without that, the reranker has the embedder's process id, and LMDB cannot tell them apart.
            with made.run("streamer-rerank", user=other) as reranker:
                assert reranker.ended() == 2, reranker.log
                assert "a process of the same id in another container uses it" in reranker.log
            embedder.stop()
        assert len(made.bus.read(EMBEDDED)) == 8
        assert not made.bus.read(f"{UPLOADED}.dlq")


def beside(other: Container) -> str:
    """Return the flag by which a container shares the process ids of another."""
    return f"--pid=ns:/proc/{other.pid}/ns/pid"  # podman refuses container:NAME without cgroups


def check_unprivileged(service: Container, user: int) -> None:
    for pid in (service.pid, *descendants(service.pid)):
        of_it = status(pid)
        assert int(of_it["CapEff"], 16) == int(of_it["CapPrm"], 16) == int(of_it["CapBnd"], 16) == 0
        assert (of_it["NoNewPrivs"], of_it["Seccomp"]) == ("1", "2")
        assert "0" not in of_it["Uid"].split()
    assert service.inside("id", "-u").stdout.strip() == str(user)
    assert "Read-only file system" in service.inside("touch", "/var/lib/streamer/new").stderr
    assert "Read-only file system" in service.inside("touch", "/opt/streamer/new").stderr


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def check_no_zombie(embedder: Container) -> None:
    """Leave processes to process 1, and take the decoders' template away; show that nobody stays unwaited for."""
    before = len(descendants(embedder.pid))
    assert embedder.inside("sh", "-c", "for n in 1 2 3 4 5; do sleep 1 & done").returncode == 0
    wait_until(lambda: len(descendants(embedder.pid)) == before + 5, "the orphans to be children of process 1")
    wait_until(lambda: len(descendants(embedder.pid)) == before, "the orphans to be gone", alive=[embedder])
    [template] = [pid for pid in descendants(embedder.pid) if "worker import main" in cmdline(pid)]
    os.kill(template, 9)
    wait_until(lambda: template not in descendants(embedder.pid), "the template to be gone", alive=[embedder])
    assert "Z" not in descendants(embedder.pid).values()


# -- machines that are not as they should be ---------------------------------------------------------------------

LANDLOCK = ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self")
_PR_SET_SECCOMP = 22


def profile(folder: Path, *, without: str) -> str:
    """Write podman's own seccomp profile without Landlock, as an older kernel is, or without a further filter."""
    usual = json.loads(Path("/usr/share/containers/seccomp.json").read_bytes())
    refused = LANDLOCK if without == "landlock" else ("seccomp", "prctl")
    for rule in usual["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in refused]
    usual["syscalls"] = [rule for rule in usual["syscalls"] if rule["names"]]
    if without == "landlock":
        unknown = {"names": list(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}
        usual["syscalls"].append(unknown)
    else:
        other = {"index": 0, "value": _PR_SET_SECCOMP, "op": "SCMP_CMP_NE"}
        usual["syscalls"].append({"names": ["prctl"], "action": "SCMP_ACT_ALLOW", "args": [other]})
    path = folder / f"without-{without}.json"
    path.write_text(json.dumps(usual))
    return f"--security-opt=seccomp={path}"


@pytest.fixture(scope="module")
def somewhere(kafka: LocalKafka) -> Iterator[Site]:
    with site(kafka) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is not as it should be, and the words by which that is told.

    ``flags`` and ``mounts``: of podman, ``{folder}`` is the site's; ``without``: what its seccomp profile refuses.
    """

    told: str
    mounts: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    without: str = ""
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, site: Site) -> Container:
        mounts = {path: flag.format(folder=site.folder) for path, flag in self.mounts.items()}
        flags = [*self.flags, *([profile(site.folder, without=self.without)] if self.without else [])]
        return site.run("streamer-embed", user=any_user(), mounts=mounts, flags=flags, **self.settings)


CONFINED = "decoder sandbox: seccomp+landlock\n"
REFUSED = {
    "a volume that is read-only": Trouble(
        "store (--store, STREAMER_STORE): ", {STORE: f"--volume={{folder}}/store:{STORE}:ro"}
    ),
    "a volume of somebody else": Trouble(
        "store (--store, STREAMER_STORE): ", {STORE: f"--volume={{folder}}/clips:{STORE}"}
    ),
    "no volume": Trouble("store (--store, STREAMER_STORE): ", {STORE: ""}),
    "no filter of system calls": Trouble(
        "decoder_sandbox (--decoder-sandbox, STREAMER_DECODER_SANDBOX): ", without="seccomp"
    ),
}
"""With these, a service does not start: exit code 2, and one line that names the setting."""
TOLD = {
    "a small temporary folder": Trouble(
        "the temporary folder (TMPDIR) has 1 MiB free", {TEMPORARY: "--tmpfs=/tmp:rw,mode=1777,size=1m"}
    ),
    "no temporary folder": Trouble("there is no temporary folder", {TEMPORARY: ""}),
    "no landlock": Trouble("decoder sandbox: seccomp\n", without="landlock"),
    "no filter of system calls, which is accepted": Trouble(
        "decoder sandbox: landlock\n", without="seccomp", settings={"STREAMER_DECODER_SANDBOX": "permissive"}
    ),
    "nothing is executed from the temporary folder": Trouble(
        CONFINED, {TEMPORARY: "--tmpfs=/tmp:rw,noexec,nosuid,nodev,mode=1777,size=8g"}
    ),
    "others' processes are hidden": Trouble(CONFINED, flags=("--security-opt=proc-opts=hidepid=2",)),
    "no shared memory": Trouble(CONFINED, flags=("--ipc=none",)),
}
"""With these, it does: it says so in its log or its readiness probe where that changes something, and embeds."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_service_cannot_run_with_ends_it_in_one_line(name: str, somewhere: Site) -> None:
    trouble = REFUSED[name]
    with trouble.run(somewhere) as embedder:
        assert embedder.ended() == 2, embedder.log
        told = [line for line in embedder.log.splitlines() if line.startswith("streamer: ")]
        assert len(told) == 1
        assert trouble.told in told[0]
        assert "Traceback" not in embedder.log


@pytest.mark.parametrize("name", TOLD)
def test_what_it_can_run_with_is_told_and_clips_are_embedded(name: str, somewhere: Site) -> None:
    trouble = TOLD[name]
    [film, *_] = tiny_footage(somewhere.folder / "clips")
    with trouble.run(somewhere) as embedder:
        embedder.await_ready()
        assert trouble.told in embedder.log + embedder.get("/readyz")[1]
        somewhere.upload({name: film}, embedder)
        embedder.stop()
    assert name in {record.event["clip_id"] for record in somewhere.bus.read(EMBEDDED)}
    assert "Traceback" not in embedder.log
