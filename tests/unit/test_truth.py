"""Ground truth of text-to-video benchmarks: as their files have it, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.evaluation import truth
from streamer.evaluation.trec import Qrels, read_qrels, read_topics
from streamer.evaluation.trec_rows import TrecError

if TYPE_CHECKING:
    from pathlib import Path

MSRVTT = b"""key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,"a little girl, who ""does"" gymnastics"
"""
VATEX = [
    {"videoID": "G9zN5_000179", "enCap": ["a man sings", "a boy sings"], "chCap": ["x", "y"]},
    {"videoID": "a-b_000001", "enCap": ["a dog runs"]},
]
DIDEMO = [
    {"video": "x.mp4", "description": "a dog appears", "times": [[0, 0]], "annotation_id": 7},
    {"video": "y.mp4", "description": "the sea"},
    {"video": "x.mp4", "description": "then it leaves"},
]


def judged(qrels: Qrels) -> dict[str, dict[str, int]]:
    return {query: dict(zip(each.shots, each.rels.tolist(), strict=True)) for query, each in qrels.topics.items()}


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "txt"])
def test_msrvtts_csv_has_one_caption_of_each_video(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"MSRVTT_JSFUSION_test.{suffix}"
    file.write_bytes(gzip.compress(MSRVTT) if suffix == "csv.gz" else MSRVTT)
    qrels = read_qrels(file)
    assert judged(qrels) == {"ret0": {"video9770": 1}, "ret1": {"video9771": 1}}
    assert qrels.gallery == 2
    assert read_topics(file) == {
        "ret0": "a person is connecting something to system",
        "ret1": 'a little girl, who "does" gymnastics',
    }


def test_vatexs_json_has_several_captions_of_a_video(tmp_path: Path) -> None:
    file = tmp_path / "vatex.json"
    file.write_text(json.dumps(VATEX))
    assert judged(read_qrels(file)) == {"0": {"G9zN5_000179": 1}, "1": {"G9zN5_000179": 1}, "2": {"a-b_000001": 1}}
    assert read_qrels(file).gallery == 2
    assert read_topics(file) == {"0": "a man sings", "1": "a boy sings", "2": "a dog runs"}


def test_didemos_captions_of_a_video_are_one_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "didemo.json"
    file.write_text(json.dumps(DIDEMO))
    assert judged(read_qrels(file, is_paragraph=True)) == {"x.mp4": {"x.mp4": 1}, "y.mp4": {"y.mp4": 1}}
    assert read_topics(file, is_paragraph=True) == {"x.mp4": "a dog appears then it leaves", "y.mp4": "the sea"}
    assert judged(read_qrels(file)) == {"0": {"x.mp4": 1}, "1": {"y.mp4": 1}, "2": {"x.mp4": 1}}
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps([{"video": "x", "caption": ["one", "two"]}, {"video": "y", "caption": []}]))
    assert read_topics(lists, is_paragraph=True) == {"x": "one two"}
    # A video without captions is in the gallery all the same.
    assert read_qrels(lists).gallery == 2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            {"a": "v1", "b": ["v1", "v2"], "c": {"v3": 2, "v1": 0}},
            {"a": {"v1": 1}, "b": {"v1": 1, "v2": 1}, "c": {"v3": 2, "v1": 0}},
        ),
        ({"videos": [], "sentences": [{"sen_id": 5, "video_id": "v", "caption": "x"}]}, {"5": {"v": 1}}),
        (["v2", "v1"], {"0": {"v2": 1}, "1": {"v1": 1}}),
        ([3, 1], {"0": {"3": 1}, "1": {"1": 1}}),
        ([{"id": "q", "video": "v", "caption": ["x", "y"]}], {"q#0": {"v": 1}, "q#1": {"v": 1}}),
        ([{"query_id": "q", "video": "v"}, {"query_id": "q", "video": "w"}], {"q": {"v": 1, "w": 1}}),
    ],
)
def test_other_forms_of_json(tmp_path: Path, found: Any, expected: dict[str, dict[str, int]]) -> None:
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(found))
    assert judged(read_qrels(file)) == expected


@pytest.mark.parametrize(
    ("array", "expected", "gallery"),
    [
        (np.array([2, 0, 2]), {"0": {"2": 1}, "1": {"0": 1}, "2": {"2": 1}}, 2),
        (np.array([[0, 1, 0], [1, 0, 1]], bool), {"0": {"1": 1}, "1": {"0": 1, "2": 1}}, 3),
        (np.asfortranarray(np.array([[0, 1, 0], [1, 0, 1]], ">i4")), {"0": {"1": 1}, "1": {"0": 1, "2": 1}}, 3),
        (np.array(["v7", "café"]), {"0": {"v7": 1}, "1": {"café": 1}}, 2),
        (np.array([[b"q", b"v"], [b"q", b"w"]]), {"q": {"v": 1, "w": 1}}, 2),
    ],
)
@pytest.mark.parametrize("name", ["truth.npy", "truth.npy.gz", "truth"])
def test_arrays(tmp_path: Path, array: Any, expected: dict[str, dict[str, int]], gallery: int, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(npy(array)) if name.endswith(".gz") else npy(array))
    qrels = read_qrels(file)
    assert judged(qrels) == expected
    assert qrels.gallery == gallery
    with pytest.raises(TrecError, match="expected a caption for each query, found none for"):
        read_topics(file)


class Harm:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


HEADER = b"\x93NUMPY\x01\x00"


def header(text: str) -> bytes:
    return HEADER + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("t.csv", b"", ":1: expected a header with a column video_id or videoid or video, found none"),
        ("t.csv", b"a,b\n1,2\n", ":1: expected a header with a column video_id or videoid or video, found a,b"),
        ("t.csv", b"key,video_id\n", ": expected queries and their videos, found none"),
        ("t.csv", b"key,video_id\na,v\nb\n", ":3: expected 2 columns, as the header has, found 1"),
        (
            "t.csv",
            b"key,video_id\na,v\na,v\n",
            ":3: expected each pair of a query and a video once, found a and v again",
        ),
        ("t.csv", b"key,video_id\na,\n", ":2: expected a video of 1 to 512 bytes of text, found "),
        ("t.csv", b"key,video_id\na,\xff\n", ":2: expected UTF-8, found 'a,\\xff\\n'"),
        ("t.csv", b'key,video_id\na,"v', ":2: expected CSV, found unexpected end of data"),
        (
            "t.csv",
            b"key,video_id\na," + b"v" * 20_000,
            ":2: expected a line of at most 16,384 bytes, found a longer one",
        ),
        ("t.json", b"[{", ": expected JSON, found Input data was truncated"),
        ("t.json", b"3", ": expected a list or an object, found int"),
        ("t.json", b"[]", ": expected queries and their videos, found none"),
        ("t.json", b'[{"caption": "x"}]', ": expected a video in item 0, found None"),
        ("t.json", b'[{"video": "v", "caption": 3}]', ": expected a caption, or a list of captions in item 0, found 3"),
        (
            "t.json",
            b'{"q": ["v", "v"]}',
            ": expected each pair of a query and a video once in query q, found q and v again",
        ),
        ("t.json", b'{"q": []}', ": expected a relevant video for each query, found none for q"),
        ("t.json", b'{"q": {"v": 0.5}}', ": expected a whole number as the relevance in query q, found 0.5"),
        ("t.json", b'["a\\u0000b"]', ": expected a video of 1 to 512 bytes of text in item 0, found a\\x00b"),
        ("t.json", b"[" * 100_000, ": expected JSON, found "),
        ("t.npy", b"", ": expected an array of NumPy (.npy), found "),
        ("t", b"\x93NUMPY\x09\x00", ": expected version 1.0 or 2.0 of the format .npy, found 9.0"),
        (
            "t.npy",
            npy(np.array([Harm()], object)),
            ": expected an array of integers, booleans or text, found one of object",
        ),
        ("t.npy", npy(np.array([0.5])), ": expected an array of integers, booleans or text, found one of float64"),
        ("t.npy", npy(np.array(3)), ": expected (q,) or (q, v) numbers, found the shape ()"),
        ("t.npy", npy(np.zeros((0, 3), int)), ": expected (q,) or (q, v) numbers, found the shape (0, 3)"),
        ("t.npy", npy(np.array([["a", "b", "c"]])), ": expected (n,) or (n, 2) names, found the shape (1, 3)"),
        ("t.npy", npy(np.array([1, -1])), ": expected a position from 0 for each query's video, found -1"),
        ("t.npy", npy(np.array([True])), ": expected a position from 0 for each query's video, found True"),
        (
            "t.npy",
            npy(np.array([[1, 2]])),
            ": expected ones and zeros for queries (rows) and videos (columns), found other",
        ),
        ("t.npy", npy(np.array([[1, 0], [0, 0]])), ": expected a relevant video for each query, found none for 1"),
        ("t.npy", npy(np.arange(9))[:-1], ": expected 72 bytes for the shape (9,) of int64, found 71"),
        ("t.npy", npy(np.arange(9)) + b"x", ": expected 72 bytes for the shape (9,) of int64, found 73"),
        (
            "t.npy",
            header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000, 999999999999)}"),
            ": expected 7,999,999,999,992,000 bytes for the shape (1000, 999999999999) of int64, found 0",
        ),
        (
            "t.npy",
            header("{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999,)}"),
            ": expected at most 25,000,000 rows, found 999,999,999,999",
        ),
    ],
)
def test_what_is_no_ground_truth_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, raw: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(raw)
    with pytest.raises(TrecError) as caught:
        read_qrels(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capfd.readouterr().out


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "MAX_JSON_BYTES", 20)
    monkeypatch.setattr(truth, "MAX_ARRAY_BYTES", 130)
    (tmp_path / "t.json").write_text(json.dumps(VATEX))
    (tmp_path / "t.npy").write_bytes(npy(np.arange(9)))
    for name, most in (("t.json", 20), ("t.npy", 130)):
        with pytest.raises(TrecError, match=f"expected at most {most} bytes, found more"):
            read_qrels(tmp_path / name)


def test_judgments_and_topics_that_look_alike_stay_what_they_are(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("1 0 video,key 1\n")
    assert judged(read_qrels(file)) == {"1": {"video,key": 1}}
    file.write_text("1501 a man, video\n")
    assert read_topics(file) == {"1501": "a man, video"}
    (tmp_path / "queries.json").write_text('{"_id": "q1", "text": "a man"}\n{"_id": "q2", "text": "a dog"}\n')
    assert read_topics(tmp_path / "queries.json") == {"q1": "a man", "q2": "a dog"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300), st.sampled_from([b"", HEADER, npy(np.arange(3))[:100], b"key,video_id\n", b'[{"video":'])
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, raw: bytes, start: bytes) -> None:
    for name in ("t.npy", "t.csv", "t.json"):
        (tmp_path / name).write_bytes(start + raw)
        try:
            found = read_qrels(tmp_path / name)
            said = f"{len(found.topics)} queries of {found.gallery} videos"
        except TrecError as error:
            said = str(error)
        assert "\n" not in said
        assert "0 queries" not in said
