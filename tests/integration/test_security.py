"""A real Kafka with TLS, SASL and ACLs: the listed privileges are enough, and each of them is needed and named."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from streamer.codec import JSON
from streamer.evaluation.audit import attributes
from streamer.evaluation.questions import answers_of_topic, events_of_topic
from streamer.events import Candidate, ClipUploaded, QueryReranked, QueryResults, Reason, now
from streamer.explain.found import ExplainError
from streamer.explain.topics import Searcher
from streamer.kafka import Output, dead_letter
from streamer.kafka.admin.topic_files import load_specs
from streamer.kafka.admin.topics import Outcome, TopicsError, apply, check
from streamer.kafka.client.acls import ROLES, Operation, Privilege, Resource, kafka_acls
from streamer.kafka.client.config import common, make_client
from streamer.kafka.dlq.letters import DeadLetterError, DeadLetterTopic, Filter
from streamer.kafka.dlq.redrive import redrive
from streamer.kafka.readers.follower import Follower
from streamer.kafka.readers.publish import PublishError, publish
from streamer.kafka.readers.request import Requester, RequestError
from streamer.kafka.readers.tail import Tail
from streamer.kafka.readers.topic_reader import ReadError, TopicReader
from streamer.settings import as_variables
from streamer.topology import AUDIT, CLIPS_UPLOADED, EXPOSURE, QUERY_RERANKED, RERANK, SERVICES, TOP
from tests.support.driver import Service
from tests.support.footage import BLUE, RED, WHITE, scene, write_video
from tests.support.loops import INPUT, OUTPUT, echo, feed, read, running
from tests.support.secured import SecuredKafka, secured_kafka
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamer.health import Health
    from streamer.kafka import Record
    from streamer.settings import Settings

STREAMER = Path(sys.executable).with_name("streamer")
PROTOCOLS = ("consumer", "classic")


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    # A member that was refused cannot leave its group: the broker waits for its session.
    session = {"group_consumer_min_session_timeout_ms": "6000", "group_consumer_session_timeout_ms": "6000"}
    beats = {"group_consumer_min_heartbeat_interval_ms": "1000", "group_consumer_heartbeat_interval_ms": "1000"}
    with secured_kafka(tmp_path_factory.mktemp("secured"), **session, **beats) as broker:
        yield broker


@pytest.fixture
def make_topics(kafka: SecuredKafka) -> Callable[..., None]:
    def make(prefix: str) -> None:
        apply(kafka.operator(prefix), [msgspec.structs.replace(spec, partitions=6) for spec in load_specs()])

    return make


def user_of(kafka: SecuredKafka, prefix: str, privileges: Sequence[Privilege]) -> str:
    name = f"u{secrets.token_hex(4)}"
    kafka.add_user(name)
    kafka.grant(name, prefix, privileges)
    return name


def without(role: str, privilege: Privilege) -> list[Privilege]:
    return [each for each in ROLES[role] if each is not privilege]


def words(settings: Settings, privilege: Privilege) -> str:
    """Return what a message must say of a missing privilege; it may go on, with the instance's id first."""
    user = settings.kafka["sasl.username"]
    return f"User:{user} lacks {privilege.operation} on the {privilege.resource} {privilege.full_name(settings)}"


def await_problem(health: Health, words: str) -> None:
    wait_until(lambda: any(words in problem for problem in health.readiness_problems()), words)


def await_recovery(health: Health) -> None:
    """Wait until a consume loop reports no problem; "starting" is the service's own, and the loop runs without it."""
    wait_until(lambda: health.readiness_problems() == ["start: starting"], "no problem", seconds=90)


def await_outputs(operator: Settings, topic: str, count: int) -> None:
    wait_until(lambda: len(read(operator, topic)) >= count, f"{count} records in {topic}")
    assert len(read(operator, topic)) == count


# -- exactly what is listed --------------------------------------------------------------------------------------------


def test_each_command_works_with_exactly_what_is_listed(kafka: SecuredKafka, topic_prefix: str, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "c1.mp4", scene(10, shape=RED, ground=WHITE), 5)
    other = write_video(tmp_path / "c2.mp4", scene(10, shape=BLUE, ground=WHITE), 5)
    operator = kafka.operator(topic_prefix)

    def environment(role: str, **properties: str) -> dict[str, str]:
        user = f"{role}-{secrets.token_hex(2)}"
        kafka.add_user(user)
        # As an administrator runs what the command prints.
        kafka.run(kafka_acls(operator, role, f"User:{user}"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
        given = as_variables(kafka.settings(user, topic_prefix, **properties))
        own = {
            "STREAMER_MODEL": "demo",
            "STREAMER_STORE": f"lmdb:{tmp_path / 'store'}",
            "STREAMER_ALLOWED_URIS": json.dumps([tmp_path.as_uri()]),
        }
        return {**inherited, **given, **own}

    def streamer(role: str, *arguments: str) -> str:
        done = subprocess.run(
            [STREAMER, *arguments], env=environment(role), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"{topic_prefix}query.results: created" in streamer("topics-apply", "topics", "apply")
    assert "all topics match the file" in streamer("topics-check", "topics", "check")
    # One service on each protocol of groups.
    with (
        Service("embed", environment("embed", group_protocol="consumer"), tmp_path) as embed,
        Service("rerank", environment("rerank", group_protocol="classic"), tmp_path) as rerank,
    ):
        both = [embed.await_ready(), rerank.await_ready()]
        for clip_id, path in (("c1", clip), ("c2", other)):
            upload = ClipUploaded(clip_id=clip_id, uri=path.as_uri(), uploaded_at=now())
            publish(operator, [Output(operator.topic("clips.uploaded"), clip_id.encode(), JSON.encode(upload), ())])
        wait_until(lambda: len(read(operator, "clips.embedded")) == 2, "two clips", seconds=60, alive=both)
        results = [Candidate(clip_id=clip_id, score=score) for clip_id, score in (("c1", 2.0), ("c2", 1.0))]
        query = QueryResults(query_id="q1", query="a red disc", engine="e", issued_at=now(), results=results)
        publish(
            operator,
            [
                Output(operator.topic(INPUT), b"q1", JSON.encode(query), ()),
                Output(operator.topic(INPUT), b"q2", b"no event", ()),
            ],
        )
        answers: list[Record] = []

        def answered() -> bool:
            answers[:] = read(operator, OUTPUT)
            return bool(answers)

        wait_until(answered, "the answer", seconds=60, alive=both)
        [answer] = answers
        assert {result.status for result in JSON.decode(QueryReranked, answer.value).results} == {"reranked"}

        def letters() -> int:
            return len(read(operator, f"{INPUT}.dlq"))

        wait_until(lambda: letters() == 1, "a dead letter", seconds=60, alive=both)
        assert "not_json" in streamer("dlq-show", "dlq", "list", INPUT, "--json")
        streamer("dlq-redrive", "dlq", "redrive", INPUT)
        wait_until(lambda: letters() == 3, "the marker, and the same refused again", seconds=60, alive=both)
        streamer("replay", "replay", "--from-topic", "--through-kafka", "--out", str(tmp_path / "run.txt"))
        assert len((tmp_path / "run.txt").read_text().splitlines()) == 2
        port = f"http://127.0.0.1:{rerank.port}"
        looks = environment("top")
        seen = []

        def sees(*wanted: str) -> bool:
            command = [str(STREAMER), "top", "--once", "--interval", "0.2", "--targets", port]
            done = subprocess.run(command, env=looks, capture_output=True, text=True, timeout=60, check=False)
            seen.append(done.stdout + done.stderr)
            return all(told in done.stdout for told in wanted)

        # A look takes a second at most, in which a busy machine may not see everything.
        view = "1 of 1 targets reachable", "a red disc", "not_json"
        wait_until(lambda: sees(*view), "the view", seconds=60, alive=both)
        assert "lacks" not in seen[-1]
        for service in both:
            service.stop()


# -- each of them is needed, and named ---------------------------------------------------------------------------------


def test_a_service_without_one_privilege_names_it_and_continues_once_it_is_granted(
    kafka: SecuredKafka, topic_prefix: str, make_topics: Callable[[str], None]
) -> None:
    prefixes = {protocol: f"{topic_prefix}{protocol}." for protocol in PROTOCOLS}
    for prefix in prefixes.values():
        make_topics(prefix)
    cases = [
        (role, protocol, privilege) for role, protocol in product(SERVICES, PROTOCOLS) for privilege in ROLES[role]
    ]
    with contextlib.ExitStack() as stack:
        members: list[tuple[Settings, Privilege, Health, list[Any]]] = []
        for role, protocol, privilege in cases:
            user = user_of(kafka, prefixes[protocol], without(role, privilege))
            settings = kafka.settings(user, prefixes[protocol], group_protocol=protocol)
            service = SERVICES[role]
            work = echo(settings, service.output)
            _, health, _, ended = stack.enter_context(running(settings, work, service=service))
            members.append((settings, privilege, health, ended))
        for settings, privilege, health, _ in members:
            await_problem(health, words(settings, privilege))
            assert not health.liveness_problems()
        for settings, privilege, _, _ in members:
            kafka.grant(settings.kafka["sasl.username"], settings.topic_prefix, [privilege])
        for _, _, health, ended in members:
            await_recovery(health)
            assert ended == []
        for prefix, service in product(prefixes.values(), SERVICES.values()):
            operator = kafka.operator(prefix)
            events = (Output(operator.topic(service.input), f"k{i}".encode(), b"{}", ()) for i in range(100))
            publish(operator, events)
            await_outputs(operator, service.output, 100)
        assert [ended for *_, ended in members] == [[]] * len(cases)


REVOKED = [(privilege, "consumer") for privilege in ROLES["rerank"]] + [
    (privilege, "classic") for privilege in ROLES["rerank"] if privilege.resource is not Resource.TRANSACTIONAL_ID
]


def test_a_privilege_that_is_revoked_under_load_costs_no_event(
    kafka: SecuredKafka, topic_prefix: str, make_topics: Callable[[str], None]
) -> None:
    def refuse(record: Record) -> list[Output]:
        return [dead_letter(record, Reason.INTERNAL, "as the test wants it")]

    with contextlib.ExitStack() as stack:
        members: list[tuple[Privilege, Settings, Settings, str, Health, list[Any]]] = []
        for number, (privilege, protocol) in enumerate(REVOKED):
            prefix = f"{topic_prefix}{number}."
            make_topics(prefix)
            user = user_of(kafka, prefix, ROLES["rerank"])
            settings = kafka.settings(user, prefix, group_protocol=protocol)
            dead = privilege.name.endswith(".dlq")
            _, health, _, ended = stack.enter_context(running(settings, refuse if dead else echo(settings)))
            output = RERANK.dead_letters if dead else OUTPUT
            members.append((privilege, settings, kafka.operator(prefix), output, health, ended))
        for _, _, operator, *_ in members:
            feed(operator, 20)
        for _, _, operator, output, *_ in members:
            await_outputs(operator, output, 20)
        for privilege, settings, operator, *_ in members:
            kafka.revoke(settings.kafka["sasl.username"], settings.topic_prefix, privilege)
            feed(operator, 20, start=20)
        for privilege, settings, _, _, health, _ in members:
            await_problem(health, words(settings, privilege))
            assert not health.liveness_problems()
        for privilege, settings, *_ in members:
            kafka.grant(settings.kafka["sasl.username"], settings.topic_prefix, [privilege])
        for _, settings, operator, output, health, ended in members:
            await_recovery(health)
            await_outputs(operator, output, 40)
            keys = sorted(record.key or b"" for record in read(operator, output))
            assert keys == sorted(f"q{i}".encode() for i in range(40)), settings.topic_prefix
            assert ended == []


def audit(role: str, settings: Settings) -> None:
    """Read what the two commands read that audit exposure."""
    if role == "exposure":
        for name in (CLIPS_UPLOADED, QUERY_RERANKED):
            with contextlib.closing(TopicReader(settings, settings.topic(name), EXPOSURE)) as reader:
                list(Follower(reader, from_beginning=True).poll())
    else:
        attributes.of_topic(settings)
        list(events_of_topic(settings, tool=AUDIT))
        list(answers_of_topic(settings, tool=AUDIT))


def run(role: str, settings: Settings, privilege: Privilege) -> str:
    """Do what a command does that needs the privilege, and return what it says of it."""
    is_group = privilege.resource is Resource.GROUP
    source = INPUT if is_group else privilege.name.removeprefix("streamer-dlq-").removesuffix(".dlq")
    specs = {spec.name: spec for spec in load_specs()}
    try:
        if role == "topics-check":
            check(settings, list(specs.values()))
        elif role == "topics-apply":
            changes = apply(settings, [specs[privilege.name]])
            return next(str(change) for change in changes if change.outcome is Outcome.REFUSED)
        elif role == "dlq-show":
            with contextlib.closing(DeadLetterTopic(settings, source)) as topic:
                list(topic.letters(topic.spans()))
        elif role == "dlq-redrive":
            redrive(settings, source, Filter())
        elif role == "replay":
            list(events_of_topic(settings))
            question = Output(settings.topic(INPUT), b"q", b"{}", ())
            requester = Requester(settings, requests=INPUT, replies=OUTPUT, is_meant=lambda _: True)
            with contextlib.closing(requester):
                requester.request(question, timeout=30)
        elif role in ("audit", "exposure"):
            audit(role, settings)
        elif role == "explain":
            searcher = Searcher(settings, seconds=30)
            with contextlib.suppress(ExplainError):
                searcher.answer("q")
            searcher.query("q")
            searcher.known(["c"], "m")
        else:
            with contextlib.closing(Tail(settings, [settings.topic(privilege.name)], TOP)) as tail:
                tail.poll()
                return str(tail.problem)
    except (TopicsError, DeadLetterError, ReadError, RequestError) as error:
        return str(error)
    raise AssertionError(f"{role} works without {privilege}")


def test_the_other_commands_without_one_of_them_name_it_in_one_line(
    kafka: SecuredKafka, topic_prefix: str, make_topics: Callable[[str], None]
) -> None:
    make_topics(topic_prefix)
    operator = kafka.operator(topic_prefix)
    for source in ("clips.uploaded", "query.results"):
        letter = Output(
            operator.topic(f"{source}.dlq"),
            b"k",
            b"v",
            (
                ("dlq.topic", operator.topic(source).encode()),
                ("dlq.reason", b"internal"),
                ("dlq.partition", b"0"),
                ("dlq.group", operator.group(RERANK.group).encode()),
            ),
        )
        publish(operator, [letter, Output(operator.topic(source), b"k", b"{}", ())])

    # The group that wrote the dead letters reads on, so that they may be redriven.
    read_by = ConsumerGroupTopicPartitions(operator.group(RERANK.group), [TopicPartition(operator.topic(INPUT), 0, 0)])
    admin: AdminClient = make_client(AdminClient, common(operator))

    def committed() -> bool:
        [response] = admin.alter_consumer_group_offsets([read_by]).values()
        return not any(each.error for each in response.result(30).topic_partitions or ())

    wait_until(committed, "the coordinator to take a commit", seconds=60)

    nobody = kafka.settings(user_of(kafka, topic_prefix, ()), topic_prefix)
    with pytest.raises(PublishError, match=f"lacks Write on the topic {operator.topic(INPUT)}"):
        publish(nobody, [Output(operator.topic(INPUT), b"k", b"{}", ())])

    for role in (
        "topics-check",
        "topics-apply",
        "dlq-show",
        "dlq-redrive",
        "replay",
        "audit",
        "exposure",
        "explain",
        "top",
    ):
        for privilege in ROLES[role]:
            # What there is cannot be created.
            prefix = topic_prefix + ("absent." if privilege.operation is Operation.CREATE else "")
            settings = kafka.settings(user_of(kafka, prefix, without(role, privilege)), prefix)
            told = run(role, settings, privilege)
            assert f"{words(settings, privilege)}; see docs/security.md, or: streamer acls {role}" in told
            assert "\n" not in told


# -- who is not let in -------------------------------------------------------------------------------------------------

STRANGERS = [({"sasl.password": "wrong"}, "Authentication failed"), ({"ssl.ca.location": ""}, "certificate verify")]


@pytest.mark.parametrize(("changed", "told"), STRANGERS)
def test_wrong_credentials_and_an_untrusted_certificate_are_reported(
    kafka: SecuredKafka, topic_prefix: str, changed: dict[str, str], told: str
) -> None:
    settings = kafka.settings(user_of(kafka, topic_prefix, ()), topic_prefix)
    properties = {name: text for name, text in (settings.kafka | changed).items() if text}
    settings = settings.model_copy(update={"kafka": properties})
    with pytest.raises(TopicsError, match=told):
        check(settings, load_specs())
    with (
        contextlib.closing(DeadLetterTopic(settings, INPUT)) as dead_letters,
        pytest.raises(DeadLetterError, match=told),
    ):
        dead_letters.spans()
    with running(settings, echo(settings)) as (_, health, _, ended):
        wait_until(lambda: any("authentication: " in line and told in line for line in health.readiness_problems()))
        assert ended == []
