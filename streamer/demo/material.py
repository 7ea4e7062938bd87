"""The demo's input: clips and queries, rendered or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.synthetic.clips import make_queries, render_clips

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from streamer.terminal import Terminal

VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
MAX_CLIPS, MAX_QUERIES = 10_000, 1_000

_RENDERED_CLIPS, _RENDERED_QUERIES, _SEED = 120, 60, 7


class DemoError(Exception):
    """The demo failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query; ``relevant``: the clips that contain the moment, None without judgments."""

    query_id: str
    text: str
    relevant: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Material:
    """The demo's input: clip files by id, and queries."""

    folder: Path
    clips: Mapping[str, Path]
    queries: Sequence[Query]


def own_material(clips: Path, queries: Path) -> Material:
    """Use the videos of a folder and the queries of a file. Raises :class:`DemoError`."""
    try:
        files = sorted(path for path in clips.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        lines = [line.strip() for line in queries.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(str(error)) from None
    texts = list(dict.fromkeys(line for line in lines if line))
    if not 0 < len(files) <= MAX_CLIPS:
        raise DemoError(
            f"{clips} has {len(files)} videos ({', '.join(sorted(VIDEO_SUFFIXES))}); the demo takes 1 to {MAX_CLIPS}"
        )
    if not 0 < len(texts) <= MAX_QUERIES:
        raise DemoError(f"{queries} has {len(texts)} queries; the demo takes 1 to {MAX_QUERIES}")
    return Material(
        clips,
        {path.relative_to(clips).as_posix(): path for path in files},
        [Query(f"q{number:03d}", text, None) for number, text in enumerate(texts, start=1)],
    )


def rendered_material(console: Terminal, work: Path) -> Material:
    """Render the demo's own clips below ``work``."""
    folder = work / "clips"
    with console.status(f"Rendering {_RENDERED_CLIPS} clips"):
        rendered = render_clips(folder, count=_RENDERED_CLIPS, seed=_SEED)
    queries = make_queries(rendered, count=_RENDERED_QUERIES, seed=_SEED)
    console.print(f"{len(rendered)} clips rendered, {len(queries)} queries, each for one moment of some clips")
    return Material(
        folder,
        {clip.clip_id: clip.path for clip in rendered},
        [Query(query.query_id, query.text, frozenset(query.relevant)) for query in queries],
    )
