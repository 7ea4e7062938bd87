"""TREC's files: what is read, what is refused and in which words, and that what is written is read back."""

from __future__ import annotations

import gzip
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.evaluation import trec_rows
from streamer.evaluation.trec import (
    Judgments,
    Qrels,
    Ranking,
    Run,
    joined,
    read_qrels,
    read_run,
    read_topics,
    write_qrels,
    write_run,
    write_topics,
)
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = b"1501 Q0 shot1_2 1 0.5 engine\n1502 Q0 shot9_9 1 -1e3 engine\n\n1501\tQ0  shot3_4 7 7 other\r\n"
QRELS = b"1501 0 shot1_2 1 1\n1501 0 shot3_4 2 -1\n1502 0 shot1_2 1 0\n"
XML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE videoAdhocSearchTopics SYSTEM "https://example.org/topics.dtd">
<videoAdhocSearchTopics>
  <videoAdhocSearchTopic num="1501"><textDescription text="Find shots of a caf&#233;"/></videoAdhocSearchTopic>
  <videoAdhocSearchTopic num="1502"><textDescription>a man &amp; a dog</textDescription></videoAdhocSearchTopic>
</videoAdhocSearchTopics>
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def shown(run: Run) -> dict[str, list[tuple[str, float]]]:
    return {topic: list(zip(each.shots, each.scores.tolist(), strict=True)) for topic, each in run.topics.items()}


@pytest.mark.parametrize("packed", [bytes, gzip.compress, lambda raw: b"\xef\xbb\xbf" + raw])
def test_a_run_is_read_topic_by_topic_whatever_separates_its_fields(file: Path, packed: Callable[..., bytes]) -> None:
    file.write_bytes(packed(RUN))
    run = read_run(file)
    assert run.tag == "engine"
    assert shown(run) == {"1501": [("shot1_2", 0.5), ("shot3_4", 7.0)], "1502": [("shot9_9", -1000.0)]}
    assert run.topics["1501"].ranked().shots == ("shot3_4", "shot1_2")


def test_qrels_are_read_with_their_strata(file: Path) -> None:
    file.write_bytes(QRELS)
    qrels = read_qrels(file)
    first = qrels.topics["1501"]
    assert (first.shots, first.strata.tolist(), first.stratum_names, first.rels.tolist()) == (
        ("shot1_2", "shot3_4"),
        [0, 1],
        ("1", "2"),
        [1, -1],
    )
    assert list(qrels.topics) == ["1501", "1502"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"1 Q0 a 1 0.5\n", ":1: expected 6 columns (topic Q0 shot rank score tag), found 5: '1 Q0 a 1 0.5'"),
        (b"1 Q0 a 1 2 t\n1 Q0 b 1 2 t x\n", ":2: expected 6 columns (topic Q0 shot rank score tag), found 7: "),
        (b"1 Q0 a 1 nan t\n", ":1: expected a finite number as the score, found 'nan'"),
        (b"1 Q0 a 1 2 t\n\n1 Q0 b 1 -inf t\n", ":3: expected a finite number as the score, found '-inf'"),
        (b"1 Q0 a 1 1e999 t\n", ":1: expected a finite number as the score, found '1e999'"),
        (b"1 Q0 a 1 1_0 t\n", ":1: expected a finite number as the score, found '1_0'"),
        (b"1 Q0 a 1 0,5 t\n", ":1: expected a finite number as the score, found '0,5'"),
        ("1 Q0 a 1 \u0661 t\n".encode(), ":1: expected a finite number as the score, found '\\xd9\\xa1'"),
        (b"1 Q0 a 1 2 t\n2 Q0 a 1 2 t\n1 Q0 a 3 1 t\n", ":3: expected each shot once in topic 1, found a again, after"),
        (b"1 Q0 caf\xe9 1 2 t\n", ":1: expected UTF-8, found 'caf\\xe9'"),
        ("1 Q0 a 1 2 t\n".encode("utf-16-le"), ":1: expected "),
        ("1 Q0 a 1 2 t\n".encode("utf-16")[:-1] + b"\xd8\0x", ":1: expected "),
        (b"1 Q0 a\0b 1 2 t\n", ":1: expected text, found 'a\\x00b'"),
        (b"1 Q0 " + b"a" * 513 + b" 1 2 t\n", ":1: expected an id of at most 512 bytes, found 'aaa"),
        (b"1 Q0 a 1 2 " + b"t" * 20_000, ":1: expected a line of at most 16,384 bytes, found a longer one"),
        (b"", ": expected lines of topic Q0 shot rank score tag, found an empty file"),
        (b"\n \n", ": expected lines of topic Q0 shot rank score tag, found an empty file"),
        (gzip.compress(RUN, mtime=0)[:-9], ": expected a whole gzip file, found a damaged one"),
        (
            gzip.compress(RUN, mtime=0)[:12] + b"\xff\xff\xff\xff" * 9,
            ": expected a whole gzip file, found a damaged one",
        ),
    ],
)
def test_a_run_that_is_none_is_refused_in_one_line(file: Path, raw: bytes, message: str) -> None:
    file.write_bytes(raw)
    with pytest.raises(TrecError) as caught:
        read_run(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"1 0 a\n", ":1: expected 5 columns (topic 0 shot stratum rel), found 3: '1 0 a'"),
        (b"1 0 a 1 0\n1 0 a 1\n", ":2: expected 5 columns (topic 0 shot stratum rel), found 4: '1 0 a 1'"),
        (b"1 0 a 1\n1 0 b 1 0\n", ":2: expected 4 columns (topic 0 shot rel), found 5: '1 0 b 1 0'"),
        (b"1 0 a 1 0.5\n", ":1: expected a whole number as the relevance, found '0.5'"),
        (b"1 0 a 1 99999999\n", ":1: expected a whole number as the relevance, found '99999999'"),
        (b"1 0 a 1 1_0\n", ":1: expected a whole number as the relevance, found '1_0'"),
        (b"1 0 a 1 1\n1 0 a 2 0\n", ":2: expected each shot once in topic 1, found a again, after line 1"),
    ],
)
def test_qrels_that_are_none_are_refused_in_one_line(file: Path, raw: bytes, message: str) -> None:
    file.write_bytes(raw)
    with pytest.raises(TrecError) as caught:
        read_qrels(file)
    assert str(caught.value) == f"{file}{message}"


def test_a_file_that_cannot_be_read_or_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrecError, match=r"nothing: No such file or directory"):
        read_run(tmp_path / "nothing")
    with pytest.raises(TrecError, match=r"Is a directory"):
        read_topics(tmp_path)
    with pytest.raises(TrecError, match=r"No such file or directory"):
        write_run(tmp_path / "no" / "folder", Run({}))


def test_a_file_has_no_more_lines_than_the_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trec_rows, "MAX_ROWS", 2)
    file.write_bytes(RUN)
    with pytest.raises(TrecError, match=r":3: expected at most 2 lines, found more"):
        read_run(file)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0 \t\n\v\f\r#"), min_size=1, max_size=40)


@given(
    st.dictionaries(
        NAMES, st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), min_size=1), min_size=1
    ),
    st.sampled_from(["run", "run.gz"]),
)
def test_a_run_is_read_back_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, topics: dict[str, dict[str, float]], name: str
) -> None:
    path = tmp_path_factory.mktemp("runs") / name
    run = Run({topic: Ranking(tuple(each), np.array(list(each.values()))) for topic, each in topics.items()}, "t")
    write_run(path, run)
    # A name that begins with a byte order mark, or as XML does, is the one thing that the first line cannot hold.
    if not next(iter(topics)).startswith(("\ufeff", "<")):
        assert shown(read_run(path)) == shown(Run({t: each.ranked() for t, each in run.topics.items()}))


def test_a_run_is_written_best_first_with_ranks(file: Path) -> None:
    write_run(file, Run({"1": Ranking(("a", "b", "c"), np.array([0.1, 1 / 3, 0.1]))}, "mine"))
    assert file.read_text() == ("1 Q0 b 1 0.3333333333333333 mine\n1 Q0 c 2 0.1 mine\n1 Q0 a 3 0.1 mine\n")


def test_qrels_and_topics_are_read_back(file: Path) -> None:
    first = Judgments.of(["b", "a"], ["10", "9"], [-1, 2])
    write_qrels(file, Qrels({"1": first, "2": Judgments.of(["a"], ["1"], [0])}))
    assert file.read_text() == "1 0 b 10 -1\n1 0 a 9 2\n2 0 a 1 0\n"
    assert read_qrels(file).topics["1"].rels.tolist() == [-1, 2]
    write_topics(file, {"1": "a man\non a  bicycle", "2": "café"})
    assert read_topics(file) == {"1": "a man on a bicycle", "2": "café"}


@pytest.mark.parametrize("name", ["my clip", "", "a\tb", "a\nb"])
def test_a_name_with_white_space_cannot_be_written_to_a_run(file: Path, name: str) -> None:
    with pytest.raises(TrecError, match="expected a name without white space to write"):
        write_run(file, Run({"1": Ranking((name,), np.zeros(1))}))


def test_topics_are_lines_or_nist_xml(file: Path) -> None:
    file.write_text("1501\tFind shots of a café\n1502 a man & a dog\n")
    expected = {"1501": "a café", "1502": "a man & a dog"}
    assert read_topics(file) == expected
    for encoding in ("utf-8", "utf-8-sig"):
        file.write_text(XML, encoding=encoding)
        assert read_topics(file) == expected
    for encoding in ("ISO-8859-1", "UTF-16"):
        declared = XML.replace("UTF-8", encoding).replace("&#233;", "é")
        file.write_text(declared, encoding=encoding)
        assert read_topics(file) == expected
    file.write_bytes(gzip.compress(XML.encode()))
    assert read_topics(file) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1501\n", ":1: expected 2 columns (topic text of the query), found 1: '1501'"),
        ("1 a\n1 b\n", ":2: expected each topic once, found topic 1 again"),
        (f"1 {'a' * 2001}\n", ":1: expected a query of 1 to 2,000 characters, found 2,001"),
        ("<topics>\n<topic", ":2: expected XML, found "),
        ('<?xml version="1.0" encoding="rot13"?><a/>', ": expected text in the encoding that it declares, found "),
        ('<?xml version="1.0" encoding="ascii"?><a>é</a>', ": expected text in the encoding that it declares, found "),
        ("<topics/>", ": expected elements with a num and a textDescription in them, found none"),
        ('<a><t num="1"><textDescription text=" "/></t></a>', ": expected a query of 1 to 2,000 characters, found 0"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', ": expected topics, found an entity declaration"),
        (
            '<a><t num="1"><textDescription text="x"/></t><t num="1"><textDescription text="y"/></t></a>',
            ": expected each topic once, found topic 1 again",
        ),
    ],
)
def test_topics_that_are_none_are_refused_in_one_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(TrecError) as caught:
        read_topics(file)
    assert str(caught.value).startswith(f"{file}{message}")


@pytest.mark.parametrize("written", [RUN, gzip.compress(RUN, mtime=0), RUN.decode().encode("utf-16")])
def test_a_run_is_read_from_a_pipe(tmp_path: Path, written: bytes) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(pipe.write_bytes, written)
        assert list(read_run(pipe).topics) == ["1501", "1502"]
        done.result()


def test_topics_are_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(XML.encode()))))
    assert list(read_topics(Path("-"))) == ["1501", "1502"]


def test_lines_that_begin_with_a_hash_are_comments(file: Path) -> None:
    file.write_bytes(b"# topic Q0 shot rank score tag\n" + RUN + b"#the end\n")
    assert list(read_run(file).topics) == ["1501", "1502"]
    with pytest.raises(TrecError, match="expected a name that does not begin with # to write"):
        write_run(file, Run({"#1": Ranking(("a",), np.zeros(1))}))


@pytest.mark.parametrize("raw", [b"1 0 a 2\n1 0 b 0\n", b"query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n"])
def test_judgments_without_strata_are_in_one(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    judged = read_qrels(file).topics["1"]
    assert (judged.shots, judged.stratum_names, judged.rels.tolist()) == (("a", "b"), ("1",), [2, 0])


def test_topics_are_read_from_lines_of_json(file: Path) -> None:
    file.write_text('{"_id": "q1", "text": "a man", "metadata": {}}\n{"_id": "q2", "text": "find shots of a dog"}\n')
    assert read_topics(file) == {"q1": "a man", "q2": "a dog"}
    file.write_text('{"_id": "q1"}\n')
    with pytest.raises(TrecError, match=r":1: expected a JSON object with _id and text, found "):
        read_topics(file)


def test_a_run_in_xml_is_read_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "run.xml"
    write_run(
        path, Run({"661": Ranking(("a&b", "c"), np.array([1.0, 2.0])), "662": Ranking(("d",), np.zeros(1))}, "me")
    )
    read = read_run(path)
    assert read.tag == "run"
    assert shown(read) == {"661": [("c", -1.0), ("a&b", -2.0)], "662": [("d", -1.0)]}
    many = Run({"661": Ranking(tuple(f"s{number}" for number in range(1_200)), -np.arange(1_200.0))})
    write_run(path, many)
    assert len(read_run(path).topics["661"].shots) == 1_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<a/>", "expected elements with a tNum and items in them, found none"),
        (
            '<a><t tNum="1"><item seqNum="x" shotId="s"/></t></a>',
            "expected items with a seqNum and a shotId, found 'x'",
        ),
        ('<a><t tNum="1"><item seqNum="1" shotId="s"/><item seqNum="2" shotId="s"/></t></a>', "found s again"),
        ('<a><t tNum="1"/><t tNum="1"/></a>', "expected each topic once, found topic 1 again"),
    ],
)
def test_a_run_in_xml_that_is_none_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(TrecError, match=message):
        read_run(file)


def test_nists_topic_numbers_join_with_those_of_its_judgments() -> None:
    assert joined("661", ["1661", "1662"]) == "1661"
    assert joined("1661", ["661", "662"]) == "661"
    assert joined("661", ["661", "1661"]) == "661"
    assert joined("661", ["1661", "2661"]) == "661"
    assert joined("61", ["1661"]) == "61"


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path, link = tmp_path / "run", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    with pytest.raises(TrecError, match="white space"):
        write_run(link, Run({"1": Ranking(("a", "b b"), np.array([2.0, 1.0]))}))
    assert path.read_text() == "old"
    write_run(link, Run({"1": Ranking(("a",), np.ones(1))}))
    assert (link.is_symlink(), path.read_text()) == (True, "1 Q0 a 1 1.0 run\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "run"]
