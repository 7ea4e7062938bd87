"""Dead letters: times, filters, markers, classification and what is shown of them."""

from __future__ import annotations

import datetime as dt

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamer.cli import cli
from streamer.events import Reason
from streamer.kafka import Output, Record, dead_letter
from streamer.kafka.dead_letters import truncated
from streamer.kafka.dlq.letters import (
    MARKER_HEADER,
    DeadLetter,
    DeadLetterError,
    Filter,
    State,
    Summary,
    classify,
    decode_marker,
    encode_marker,
    parse_time,
)
from streamer.kafka.dlq.report import described_in_full, details
from streamer.kafka.records import REDRIVEN_FOR, redriven_for

NOW = dt.datetime(2026, 11, 24, 10, tzinfo=dt.UTC)
TOPIC = "query.results"
times = st.datetimes(timezones=st.timezones(), min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1))  # noqa: DTZ001 - hypothesis adds the zone


def failed(
    key: bytes | None = b"q1",
    value: bytes | None = b"{}",
    reason: Reason = Reason.NOT_JSON,
    headers: tuple[tuple[str, bytes | None], ...] = (),
    group: str = "",
) -> Output:
    record = Record(TOPIC, 3, 7, key, value, headers, NOW, group=group)
    return dead_letter(record, reason, "went wrong", attempts=2)


def stored(output: Output, *, offset: int = 5) -> Record:
    return Record(output.topic, 0, offset, output.key, output.value, output.headers, NOW)


def letter(output: Output | None = None) -> DeadLetter:
    return classify(stored(output or failed()), TOPIC)


@given(times)
def test_any_rfc_3339_time_is_read_as_the_moment_that_it_names(moment: dt.datetime) -> None:
    utc = moment.astimezone(dt.UTC)
    assert parse_time(utc.isoformat(), NOW) == utc
    assert parse_time(utc.isoformat().replace("+00:00", "Z"), NOW) == utc
    shifted = utc.astimezone(dt.timezone(dt.timedelta(hours=9, minutes=30)))
    assert parse_time(shifted.isoformat(), NOW) == utc


@given(st.integers(0, 10**5), st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86_400), ("w", 604_800)]))
def test_an_age_counts_back_from_now(number: int, unit: tuple[str, int]) -> None:
    letter, seconds = unit
    try:
        expected = NOW - dt.timedelta(seconds=number * seconds)
    except OverflowError:
        with pytest.raises(ValueError, match="out of range"):
            parse_time(f"{number}{letter}", NOW)
    else:
        assert parse_time(f"{number}{letter}", NOW) == expected


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_clear_error(text: str) -> None:
    try:
        parsed = parse_time(text, NOW)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017 - most texts are no times, a few are
    else:
        assert parsed.utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-11-24", "2026-11-24T10:00:00", "-2h", "2 h", "2H", "1.5h", "٣h", "999999999w"]
)
def test_a_time_without_offset_and_an_age_without_unit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"RFC 3339|out of range"):
        parse_time(text, NOW)


@given(
    st.lists(st.sampled_from(Reason), unique=True),
    st.none() | st.timedeltas(),
    st.none() | st.timedeltas(),
    st.none() | st.sampled_from(["q1", "q2"]),
    st.sampled_from(Reason),
)
def test_a_filter_takes_what_fits_each_of_its_parts(
    reasons: list[Reason], since: dt.timedelta | None, until: dt.timedelta | None, key: str | None, reason: Reason
) -> None:
    it = letter(failed(reason=reason))
    try:
        bounds = [None if delta is None else it.at + delta for delta in (since, until)]
    except OverflowError:
        return
    after, before = bounds
    takes = Filter(tuple(each.value for each in reasons), after, before, key).matches(it)
    assert takes == (
        (reasons == [] or reason in reasons)
        and (after is None or after <= it.at)
        and (before is None or it.at < before)
        and key in (None, "q1")
    )


def test_since_is_within_and_until_is_not() -> None:
    it = letter()
    assert Filter(since=it.at).matches(it)
    assert not Filter(until=it.at).matches(it)


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_a_marker_lists_the_offsets_that_it_was_made_of(offsets: list[int]) -> None:
    marker = Output("t", None, encode_marker(offsets, NOW), ((MARKER_HEADER, b"redriven"),))
    assert decode_marker(stored(marker)) == offsets


@given(st.none() | st.binary(max_size=60))
def test_a_marker_that_cannot_be_read_is_an_error_and_not_skipped(value: bytes | None) -> None:
    with pytest.raises(DeadLetterError, match=r"t\[0\]@5 is a redrive marker"):
        decode_marker(stored(Output("t", None, value, ())))


def test_what_a_dead_letter_says_is_read_back() -> None:
    it = letter(failed(headers=(("traceparent", b"00-1"), ("ce_id", None))))
    assert (it.state, it.reason, it.error) == (State.PENDING, "not_json", "went wrong")
    assert (it.partition, it.attempts) == (3, 2)
    assert it.original_headers == (("traceparent", b"00-1"), ("ce_id", None))


def test_a_dead_letter_is_classified_as_redriven_pending_foreign_or_truncated() -> None:
    record = stored(failed())
    assert classify(record, TOPIC, {5}).state is State.REDRIVEN
    assert classify(record, TOPIC, {4, 6}).state is State.PENDING
    assert classify(record, "clips.uploaded").state is State.FOREIGN
    assert classify(stored(truncated(failed())), TOPIC, {5}).state is State.TRUNCATED


header_names = st.sampled_from(
    ["dlq.reason", "dlq.error", "dlq.topic", "dlq.partition", "dlq.offset", "dlq.attempts", "dlq.at", "other"]
)


@given(st.lists(st.tuples(header_names, st.none() | st.binary(max_size=12) | st.just(TOPIC.encode()))))
def test_arbitrary_headers_of_a_dead_letter_cause_no_error(headers: list[tuple[str, bytes | None]]) -> None:
    it = classify(stored(Output("t", None, b"", tuple(headers))), TOPIC)
    assert it.state in State
    assert -1 <= it.partition < 10**9
    assert it.at.utcoffset() == dt.timedelta(0)
    Summary([it])
    described_in_full(it)


def test_a_dead_letter_says_which_group_wrote_it() -> None:
    by_blue, by_green, by_nobody = (letter(failed(group=group)) for group in ("rerank-blue", "rerank-green", ""))
    assert (by_blue.group, by_nobody.group) == ("rerank-blue", "")
    assert "dlq.group" not in dict(by_nobody.record.headers)
    wanted = Filter(group="rerank-blue")
    assert [wanted.matches(each) for each in (by_blue, by_green, by_nobody)] == [True, False, False]
    assert described_in_full(by_green)["group"] == "rerank-green"


def test_a_redriven_record_names_its_group_until_it_fails_again() -> None:
    headers = (("ce_id", b"1"), (REDRIVEN_FOR, b"rerank-blue"))
    record = Record(TOPIC, 3, 7, b"q1", b"{}", headers, NOW, group="rerank-green")
    assert redriven_for(record) == "rerank-blue"
    again = letter(dead_letter(record, Reason.NOT_JSON, "went wrong"))
    assert again.group == "rerank-green"
    assert again.original_headers == (("ce_id", b"1"),)
    assert redriven_for(again.record) is None


def test_a_summary_counts_by_group_reason_and_state_with_oldest_and_newest() -> None:
    letters = [letter(failed(reason=reason)) for reason in (Reason.NOT_JSON, Reason.EMPTY, Reason.NOT_JSON)]
    letters.append(letter(truncated(failed())))
    letters.append(letter(failed(group="rerank-blue")))
    summary = Summary(letters)
    assert summary.counts == {
        ("", "not_json"): {State.PENDING: 2, State.TRUNCATED: 1},
        ("", "empty"): {State.PENDING: 1},
        ("rerank-blue", "not_json"): {State.PENDING: 1},
    }
    assert summary.oldest["", "not_json"] == letters[0].at
    assert summary.newest["", "not_json"] == letters[3].at


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"a": [1, "\\u00e9"]}', {"value": {"a": [1, "é"]}}),
        (None, {"value": None}),
        (b"{broken", {"value_text": "{broken"}),
        (b"\xff\x00", {"value_base64": "/wA="}),
    ],
)
def test_a_value_is_shown_as_json_else_text_else_base64(value: bytes | None, shown: dict[str, object]) -> None:
    described = described_in_full(letter(failed(value=value)))
    assert {name: described[name] for name in described if name.startswith("value")} == shown


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("depth", [1, 200, 252, 253, 254, 255, 1000, 1024, 5000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
def test_a_letter_of_any_depth_is_shown_and_so_are_the_next_ones(
    capsys: pytest.CaptureFixture[str], brackets: tuple[str, str], depth: int, as_json: bool
) -> None:
    opening, closing = brackets
    value = (opening * depth + ("1" if closing == "}" else "") + closing * depth).encode()
    letters = [letter(failed(value=each)) for each in (value, b'{"next": 1}')]
    assert details(letters, as_json=as_json) == 2
    shown = capsys.readouterr().out
    assert "next" in shown
    assert shown.count(closing) >= depth
    if as_json:
        assert [orjson.loads(line)["offset"] for line in shown.splitlines()] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("list", "clips.uploaded.dlq"), "'clips.uploaded.dlq' is not one of"),
        (("redrive", "query.reranked"), "'query.reranked' is not one of"),
        (("list", "query.results", "--since", "soon"), "'soon' is neither RFC 3339"),
        (("list", "query.results", "--reason", "bad_luck"), "'bad_luck' is not one of"),
        (("show", "query.results", "0"), "PARTITION needs an OFFSET"),
        (("redrive", "query.results", "--limit", "0"), "0 is not in the range"),
    ],
)
def test_a_wrong_argument_is_named_and_ends_with_2(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(cli, ["dlq", *arguments])
    assert result.exit_code == 2
    assert told in result.output
