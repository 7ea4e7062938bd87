"""Follow one record through a running service on a real broker: `python scripts/walk.py query|upload`.

Prints the modules of ours in the order in which the record first enters them, a line each, and the pairs of modules
that call each other. A module is entered when one of its functions runs, on whatever thread, because of this record:
one that does not run while the service has nothing to do. Importing a module does not count, nor does the use of its
classes and constants without a call of its functions.

The service is the real command in a process of its own, with a profiler that notes each call:

1. Until the service is ready nothing is noted: modules that only its start needs do not count.
2. Then it is left idle for a few seconds. What it calls now (to poll, to look after its topics, to beat) it calls
   without a record, so those functions do not count either.
3. One record is published. What is called from now on, until the group has committed the record's offset, is its walk.
   What the thread calls that looks after the store is none of it: it counts the clips once a minute, whoever comes.

The process that decodes an upload is followed, too. The query's text is encoded, since no query has had it before, and
of its two candidates one has a record. Tracing is off, and the store is LMDB, as by default.

With ``--write`` both walks are stored in docs/walk.json and written as the file map into docs/design.md; ``--check``
only compares the page with what is stored, without a broker.
"""

from __future__ import annotations

import argparse
import ast
import json
import mmap
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streamer.topology import EMBED, RERANK

if TYPE_CHECKING:
    from types import FrameType

    from streamer.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "walk.json"
PAGE = ROOT / "docs" / "design.md"
START, END = "<!-- file map: written by scripts/walk.py -->", "<!-- end -->"
MODEL = "demo"
SERVICES = {"query": RERANK, "upload": EMBED}
LIMITS = {"query": 22, "upload": 34}
"""Most modules that a record may enter."""
_IDLE_S = 7.0
"""Longer than the longest pause of what a service does by itself, but for counting the store's clips."""
_BACKGROUND = {"store-watch"}
"""Threads that no record passes through."""
_READY_S = 300.0
_WALK_S = 120.0
_DECODER_BYTES = 1 << 16
_PACKAGE = "streamer"


_Function = tuple[str, str]
"""A function's module and qualified name."""


class Walk(NamedTuple):
    """Which modules a record enters, first ones first, and which pairs of them call each other.

    ``callbacks``: the second of such a pair does not import the first, so that it was handed what it calls.
    ``calls``: each caller and callee. ``functions``: each function of the service's own process, by module and name.
    """

    modules: list[str]
    back_and_forth: list[tuple[str, str]]
    callbacks: list[tuple[str, str]]
    calls: list[tuple[str, str]]
    functions: list[tuple[str, str]]


# -- inside the service --------------------------------------------------------------------------------------


class _Profiler:
    """Notes calls by phase: ``start`` (none), ``idle`` (functions), ``record`` (functions and their callers)."""

    def __init__(self) -> None:
        self.phase = "start"
        self.idle: set[_Function] = set()
        self.calls: dict[tuple[_Function, str | None], None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or self.phase == "start":
            return
        module = _module_of(frame)
        if module is None or frame.f_code.co_name == "<module>":
            return
        function = module, frame.f_code.co_qualname
        if self.phase == "idle":
            self.idle.add(function)
        elif threading.current_thread().name not in _BACKGROUND:
            caller = frame.f_back
            while caller is not None and _module_of(caller) is None:
                caller = caller.f_back
            by = _module_of(caller) if caller is not None else None
            self.calls.setdefault((function, by))

    def found(self, decoder: list[str]) -> Walk:
        """Return what has been noted; the decoder's modules come after those of the service that starts it."""
        made = [(function[0], by) for function, by in self.calls if function not in self.idle]
        calls = {(by, module): None for module, by in made if by is not None and by != module}
        modules = list(dict.fromkeys(module for module, _ in made))
        place = max((number for number, name in enumerate(modules, 1) if ".isolation." in name), default=len(modules))
        modules[place:place] = [name for name in decoder if name not in modules]
        both = [(one, other) for one, other in calls if (other, one) in calls]
        pairs = sorted({(one, other) for one, other in both if one < other})
        callbacks = [pair for pair in pairs if not (_imports(*pair) and _imports(*reversed(pair)))]
        functions = list(dict.fromkeys(function for function, _ in self.calls if function not in self.idle))
        return Walk(modules, [pair for pair in pairs if pair not in callbacks], callbacks, list(calls), functions)


def _module_of(frame: FrameType) -> str | None:
    if frame.f_code.co_filename == "<string>":  # a method that dataclasses generate, which is no function of a module
        return None
    name = frame.f_globals.get("__name__")
    return name if isinstance(name, str) and name.partition(".")[0] == _PACKAGE else None


def _imports(one: str, other: str) -> bool:
    """Tell whether the module ``one`` has imported something of ``other``."""
    found = vars(sys.modules[one]).values()
    return any(getattr(each, "__module__", None) == other or getattr(each, "__name__", None) == other for each in found)


def serve(what: str, folder: Path) -> None:
    """Be the service: the real command, profiled; the file ``phase`` in ``folder`` says in which phase it is."""
    profiler = _Profiler()
    decoder = folder / "decoder"
    decoder.write_bytes(bytes(_DECODER_BYTES))

    def follow() -> None:
        phase = folder / "phase"
        while profiler.phase != "end":
            time.sleep(0.02)
            if phase.exists():
                entered = phase.read_text(encoding="utf-8")
                if entered == "record" != profiler.phase:
                    with decoder.open("r+b") as file:  # what was forked before decoded no clip
                        file.write(bytes(_DECODER_BYTES))
                profiler.phase = entered
        decoded = decoder.read_bytes().rstrip(b"\0").decode().splitlines()
        part = folder / "walk.part"
        part.write_text(json.dumps(profiler.found(decoded)._asdict()), encoding="utf-8")
        part.rename(folder / "walk.json")

    threading.Thread(target=follow, name="walk", daemon=True).start()
    threading.setprofile(profiler)
    sys.setprofile(profiler)
    from streamer.cli import main as command  # noqa: PLC0415 - profiled from here on
    from streamer.video.isolation import process  # noqa: PLC0415

    follows = f"import walk; walk.profile_decoder({str(decoder)!r}); from streamer"
    process._TEMPLATE = process._TEMPLATE.replace("from streamer", follows, 1)
    sys.argv = ["streamer", SERVICES[what].role]
    command()


def profile_decoder(path: str) -> None:
    """Note the modules that a process enters which is forked from this one, in a file.

    Such a process may open no file, and make few system calls; it can write to memory that is a file.
    """
    with Path(path).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), _DECODER_BYTES)
    seen: set[str] = set()
    end = 0

    def note(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal end
        if event != "call" or frame.f_code.co_name == "<module>":
            return
        module = _module_of(frame)
        if module is not None and module not in seen:
            seen.add(module)
            line = f"{module}\n".encode()
            memory[end : end + len(line)] = line
            end += len(line)

    os.register_at_fork(after_in_child=lambda: sys.setprofile(note))


# -- beside it -----------------------------------------------------------------------------------------------


def walk(what: str, bootstrap_servers: str) -> Walk:
    """Let one record walk through a service on these brokers."""
    from streamer.local_kafka.broker import free_ports  # noqa: PLC0415 - not where the decoder is profiled
    from streamer.settings import as_variables, load  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="walk-") as name:
        folder = Path(name)
        settings = load(
            {
                "bootstrap_servers": bootstrap_servers,
                "topic_prefix": f"walk-{secrets.token_hex(3)}.",
                "model": MODEL,
                "store": f"lmdb:{folder / 'store'}",
                "allowed_uris": (folder.as_uri(),),
                "metrics_port": free_ports(1)[0],
                "metrics_host": "127.0.0.1",
                "instance_id": "walk",
            }
        )
        _make_topics(settings)
        if what == "query":
            _store_clip(settings)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("STREAMER_")}
        paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - this interpreter and this file
                [sys.executable, __file__, what, "--serve", str(folder)],
                env={**inherited, **as_variables(settings), "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            return _lead(what, settings, folder, process)
        finally:
            process.kill()
            process.wait()


def _lead(what: str, settings: Settings, folder: Path, process: subprocess.Popen[bytes]) -> Walk:
    """Take the service through its phases, and the record through the service."""
    from streamer.kafka.readers.publish import publish  # noqa: PLC0415

    def wait(condition: Any, seconds: float, name: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"waited for {name}, exit code {process.poll()}: {log}")
            time.sleep(0.1)

    def enter(phase: str) -> None:
        part = folder / "phase.part"
        part.write_text(phase, encoding="utf-8")
        part.rename(folder / "phase")
        time.sleep(0.2)

    wait(lambda: _is_ready(settings), _READY_S, "the service to be ready")
    enter("idle")
    time.sleep(_IDLE_S)
    enter("record")
    publish(settings, [_record(what, settings, folder)])
    with ExitStack() as opened:
        committed = _committed(what, settings, opened)
        wait(committed, _WALK_S, "the record's offset to be committed")
    time.sleep(0.5)  # what follows the commit in the same call
    enter("end")
    wait((folder / "walk.json").exists, _WALK_S, "the walk")
    found = json.loads((folder / "walk.json").read_bytes())
    pairs = {name: [(one, other) for one, other in found[name]] for name in Walk._fields[1:]}
    return Walk(found["modules"], **pairs)


def _make_topics(settings: Settings) -> None:
    from streamer.kafka.admin.topic_files import load_specs  # noqa: PLC0415
    from streamer.kafka.admin.topics import apply  # noqa: PLC0415

    list(apply(settings, load_specs()))


def _store_clip(settings: Settings) -> None:
    """Store one clip that the query finds."""
    import datetime as dt  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from streamer.encoders import load_encoder  # noqa: PLC0415
    from streamer.store import Clip, Position, open_store  # noqa: PLC0415

    encoder = load_encoder(MODEL)
    store = open_store(settings.store, model_id=encoder.model_id, dim=encoder.dim)
    vectors = np.eye(2, encoder.dim, dtype=np.float32)
    times = np.array([0, 500], np.uint32)
    store.put([Clip("c1", dt.datetime.now(dt.UTC), Position.of("walk", 0), 1000, vectors, times)])
    store.close()


def _record(what: str, settings: Settings, folder: Path) -> Any:
    import numpy as np  # noqa: PLC0415

    from streamer.codec import JSON  # noqa: PLC0415
    from streamer.events import Candidate, ClipUploaded, QueryResults, now  # noqa: PLC0415
    from streamer.kafka import Output  # noqa: PLC0415
    from streamer.synthetic.write import write_h264  # noqa: PLC0415

    topic = settings.topic(SERVICES[what].input)
    if what == "query":
        results = [Candidate(clip_id=clip_id, score=score) for clip_id, score in (("new", 2.0), ("c1", 1.0))]
        query = QueryResults(query_id="q1", query="a red circle", engine="walk", issued_at=now(), results=results)
        return Output(topic, b"q1", JSON.encode(query), ())
    path = folder / "clip.mp4"
    write_h264(path, (np.full((64, 64, 3), 9 * number, np.uint8) for number in range(20)), fps=10)
    upload = ClipUploaded(clip_id="c1", uri=path.as_uri(), uploaded_at=now())
    return Output(topic, b"c1", JSON.encode(upload), ())


def _committed(what: str, settings: Settings, opened: ExitStack) -> Any:
    """Return a function that tells whether the service's group has committed an offset."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition  # noqa: PLC0415

    group = settings.group(SERVICES[what].group)
    client = {"bootstrap.servers": settings.bootstrap_servers, "group.id": group, "enable.auto.commit": False}
    consumer = Consumer(client)
    opened.callback(consumer.close)
    name = settings.topic(SERVICES[what].input)
    partitions = consumer.list_topics(name, timeout=30).topics[name].partitions

    def committed() -> bool:
        try:
            found = consumer.committed([TopicPartition(name, number) for number in partitions], timeout=10)
        except KafkaException:
            return False
        return any(each.offset > 0 for each in found)

    return committed


def _is_ready(settings: Settings) -> bool:
    import urllib.request  # noqa: PLC0415

    url = f"http://127.0.0.1:{settings.metrics_port}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)  # noqa: PLR2004
    except OSError:
        return False


# -- the file map --------------------------------------------------------------------------------------------


def purpose(module: str) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def lines(modules: list[str]) -> list[str]:
    """Return a numbered line for each module."""
    return [f"{number}. `{name}`: {purpose(name)}." for number, name in enumerate(modules, 1)]


def markdown(walks: dict[str, list[str]]) -> str:
    """Return the file map: what each record enters, in its order."""
    titles = {"query": "A query", "upload": "An upload"}
    parts = [
        f"**{titles[what]}** enters {len(modules)} modules, in this order:\n\n" + "\n".join(lines(modules)) + "\n"
        for what, modules in walks.items()
    ]
    return "\n".join(parts)


def rewritten(page: str, walks: dict[str, list[str]]) -> str:
    """Return the page with the file map in its place."""
    before, rest = page.split(START)
    return f"{before}{START}\n{markdown(walks)}{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", nargs="?", choices=[*SERVICES], help="which record to follow")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--functions", action="store_true", help="print each function that is called, too")
    parser.add_argument("--write", action="store_true", help="store both walks and write the file map")
    parser.add_argument("--check", action="store_true", help="exit 1 where the file map is not what is stored")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.record, options.serve)
    elif options.check:
        page = PAGE.read_text(encoding="utf-8")
        if page != rewritten(page, json.loads(STORED.read_bytes())):
            sys.exit("docs/design.md has another file map than docs/walk.json: python scripts/walk.py --write")
    else:
        _follow(
            [*SERVICES] if options.write else [options.record or "query"],
            write=options.write,
            functions=options.functions,
        )


def _follow(records: list[str], *, write: bool, functions: bool) -> None:
    from streamer.local_kafka.broker import LocalKafka  # noqa: PLC0415

    walks = {}
    with LocalKafka() as broker:
        for what in records:
            found = walk(what, broker.bootstrap_servers)
            walks[what] = found.modules
            print(f"{what}: {len(found.modules)} modules, at most {LIMITS[what]}")  # noqa: T201
            print("\n".join(lines(found.modules)))  # noqa: T201
            if functions:
                print("\n".join(f"calls {name} of {module}" for module, name in found.functions))  # noqa: T201
            for one, other in found.back_and_forth:
                print(f"calls back and forth: {one}, {other}")  # noqa: T201
            for one, other in found.callbacks:
                print(f"call each other by what one hands over: {one}, {other}")  # noqa: T201
    if write:
        STORED.write_text(json.dumps(walks, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), walks), encoding="utf-8")


if __name__ == "__main__":
    main()
