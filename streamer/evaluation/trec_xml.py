"""NIST's XML: the topics of TRECVID's tasks, and the runs that are submitted to Ad-hoc Video Search.

    <videoAdhocSearchTopic num="1661"><textDescription text="Find shots of ..."/></videoAdhocSearchTopic>
    <videoAdhocSearchTopicResult tNum="1661"><item seqNum="1" shotId="shot00001_1"/>...</videoAdhocSearchTopicResult>

Entities are refused, because they can expand without bound.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING
from xml.etree import ElementTree as ET
from xml.sax.saxutils import quoteattr

from streamer.evaluation import files
from streamer.evaluation.trec_rows import TrecError, query, refuse, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_XML_BYTES = 16_777_216
DEPTH = 1000
"""Number of results per topic that NIST takes."""
_MAX_RUN_BYTES = 16 * MAX_XML_BYTES


def read_topics(path: Path, file: IO[bytes]) -> dict[str, str]:
    """Read the text of each topic."""
    topics: dict[str, str] = {}
    for element in _root(path, file, MAX_XML_BYTES, "topics").iter():
        number, description = element.get("num"), element.find("textDescription")
        if number is None or description is None:
            continue
        if number in topics:
            raise TrecError(f"{path}: expected each topic once, found topic {number} again")
        topics[number] = query(path, None, description.get("text") or description.text or "")
    if not topics:
        raise TrecError(f"{path}: expected elements with a num and a textDescription in them, found none")
    return topics


def read_run(path: Path, file: IO[bytes]) -> dict[str, list[tuple[str, float]]]:
    """Read the shots of each topic with their scores, which are the negative ``seqNum``."""
    topics: dict[str, list[tuple[str, float]]] = {}
    for element in _root(path, file, _MAX_RUN_BYTES, "a run").iter():
        number = element.get("tNum")
        if number is None:
            continue
        if number in topics:
            raise TrecError(f"{path}: expected each topic once, found topic {number} again")
        results: dict[str, float] = {}
        for item in element.iter("item"):
            place, shot = item.get("seqNum", ""), item.get("shotId", "")
            if not (place.isascii() and place.isdigit() and shot):
                raise TrecError(f"{path}: expected items with a seqNum and a shotId, found {place!r} and {shot!r}")
            if shot in results:
                raise TrecError(f"{path}: expected each shot once in topic {number}, found {shot} again")
            results[shot] = -float(place)
        topics[number] = list(results.items())
    if not topics:
        raise TrecError(f"{path}: expected elements with a tNum and items in them, found none")
    return topics


def write_run(path: Path, topics: Mapping[str, Sequence[str]], tag: str) -> None:
    """Write shots best first, the first thousand of each topic as NIST takes them.

    A submission also needs attributes of the run that only its author knows (``trType``, ``class``, ``task``,
    ``priority``).
    """

    def parts() -> Iterator[str]:
        yield f"<videoAdhocSearchResults>\n<videoAdhocSearchRunResult pid={quoteattr(tag)} desc={quoteattr(tag)}>\n"
        for topic, shots in topics.items():
            yield f"<videoAdhocSearchTopicResult tNum={quoteattr(topic)}>\n"
            for place, shot in enumerate(shots[:DEPTH], start=1):
                yield f'<item seqNum="{place}" shotId={quoteattr(shot)}/>\n'
            yield "</videoAdhocSearchTopicResult>\n"
        yield "</videoAdhocSearchRunResult>\n</videoAdhocSearchResults>\n"

    write(path, parts())


def _root(path: Path, file: IO[bytes], most: int, what: str) -> ET.Element:
    raw = file.read(most + 1)
    if len(raw) > most:
        raise TrecError(f"{path}: expected at most {most:,} bytes of XML, found more")
    try:
        text = files.decoded_xml(raw)
    except (UnicodeDecodeError, LookupError) as error:
        raise TrecError(f"{path}: expected text in the encoding that it declares, found {error}") from None
    if "<!ENTITY" in text:
        raise TrecError(f"{path}: expected {what}, found an entity declaration")
    try:
        return ET.fromstring(text)  # noqa: S314 - entities were refused
    except ET.ParseError as error:
        refuse(path, error.position[0], "XML", str(error))
