"""topics apply and topics check against a real broker."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from streamer.kafka.admin.topic_files import TopicSpec, load_specs
from streamer.kafka.admin.topics import Outcome, TopicsError, apply, check
from streamer.local_kafka.broker import LocalKafka
from streamer.settings import Settings, SettingsError
from tests.support.configs import alter_config
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OUTPUT = TopicSpec(
    name="query.reranked", partitions=3, replication=1, config={"retention.ms": "1000", "cleanup.policy": "delete"}
)


@pytest.fixture
def settings(kafka: LocalKafka, topic_prefix: str) -> Settings:
    return Settings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix)


@pytest.fixture
def admin(kafka: LocalKafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers})


def lines(done: Sequence[object]) -> list[str]:
    return [str(item) for item in done]


def create(admin: AdminClient, topic: str, partitions: int) -> None:
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()


def config_of(admin: AdminClient, topic: str) -> dict[str, str]:
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    return {key: entry.value for key, entry in future.result().items()}


def test_apply_creates_the_shipped_topics_on_a_single_broker_and_check_agrees(
    settings: Settings, admin: AdminClient
) -> None:
    specs = load_specs()
    names = [settings.topic(spec.name) for spec in specs]
    assert lines(check(settings, specs)) == [f"{name}: missing" for name in names]

    created = apply(settings, specs)
    assert [(change.topic, change.outcome) for change in created] == [(n, Outcome.CREATED) for n in names]
    assert str(created[0]) == (f"{names[0]}: created: 12 partitions, replication 1 (only 1 broker available, 3 wanted)")
    described = admin.describe_topics(TopicCollection(names))
    assert {n: len(described[n].result().partitions) for n in names} == {
        settings.topic(spec.name): spec.partitions for spec in specs
    }
    uploads = config_of(admin, settings.topic("clips.uploaded"))
    assert uploads["cleanup.policy"] == "compact"
    assert uploads["max.message.bytes"] == "2097152"
    # One replica cannot have two in sync: with the file's 2, every write would be refused.
    assert uploads["min.insync.replicas"] == "1"

    assert check(settings, specs) == []
    assert lines(apply(settings, specs)) == [f"{name}: unchanged: up to date" for name in names]


def test_apply_alters_what_differs_and_leaves_what_the_file_does_not_name(
    settings: Settings, admin: AdminClient
) -> None:
    topic = settings.topic(OUTPUT.name)
    create(admin, topic, 1)
    alter_config(admin, topic, "segment.ms", "123456")

    assert lines(apply(settings, [OUTPUT])) == [
        f"{topic}: altered: partitions 1 -> 3",
        f"{topic}: altered: retention.ms 604800000 -> 1000",
    ]
    assert check(settings, [OUTPUT]) == []
    assert config_of(admin, topic)["segment.ms"] == "123456"


def test_apply_refuses_what_kafka_cannot_do_and_still_does_the_rest(settings: Settings, admin: AdminClient) -> None:
    topic = settings.topic(OUTPUT.name)
    create(admin, topic, 5)
    wanted = msgspec.structs.replace(OUTPUT, config={"retention.ms": "2000", "no.such.config": "1"})

    assert lines(check(settings, [wanted])) == [
        f"{topic}: partitions is 5, not 3",
        f"{topic}: no.such.config is unknown to the cluster, not 1",
        f"{topic}: retention.ms is 604800000, not 2000",
    ]
    fewer, unknown, retention = apply(settings, [wanted])
    assert str(fewer) == f"{topic}: refused: partitions 5 -> 3: Kafka cannot remove partitions"
    assert unknown.outcome is Outcome.REFUSED
    assert "no.such.config" in unknown.detail
    assert retention.outcome is Outcome.ALTERED
    assert len(check(settings, [wanted])) == 2
    assert config_of(admin, topic)["retention.ms"] == "2000"


def test_a_topic_that_cannot_be_created_is_refused_and_the_others_are_made(settings: Settings) -> None:
    wrong = msgspec.structs.replace(OUTPUT, name="query.results", config={"cleanup.policy": "forget"})
    refused, created = apply(settings, [wrong, OUTPUT])
    assert refused.outcome is Outcome.REFUSED
    assert "cleanup.policy" in refused.detail
    assert created.outcome is Outcome.CREATED
    assert lines(check(settings, [wrong, OUTPUT])) == [f"{settings.topic(wrong.name)}: missing"]


def test_concurrent_applies_agree(settings: Settings) -> None:
    specs = load_specs()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: apply(settings, specs), range(4)))
    assert all(change.outcome is not Outcome.REFUSED for changes in done for change in changes)
    created = [c.topic for changes in done for c in changes if c.outcome is Outcome.CREATED]
    assert sorted(created) == sorted(settings.topic(spec.name) for spec in specs)
    assert check(settings, specs) == []


def test_an_unreachable_broker_is_one_line_within_the_timeout() -> None:
    with socket.socket() as taken:
        # Bound and not listening: nobody else gets the port, and connections are refused.
        taken.bind(("127.0.0.1", 0))
        servers = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TopicsError, match=f"no response from Kafka at {servers} within 1 s: .*refused") as error:
            check(Settings(bootstrap_servers=servers), [OUTPUT], timeout=1)
    assert "\n" not in str(error.value)


def test_a_property_that_librdkafka_does_not_know_names_the_setting() -> None:
    with pytest.raises(SettingsError, match=r"kafka .*--kafka.*no\.such\.property"):
        apply(Settings(kafka={"no.such.property": "1"}), [OUTPUT])


def deny(admin: AdminClient, topic: str, operation: AclOperation) -> None:
    """Forbid one operation on one topic to everyone, and return when the broker knows."""

    def binding(kind: AclOperation, permission: AclPermissionType) -> AclBinding:
        return AclBinding(ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*", kind, permission)

    # A topic with any ACL is closed but for what its ACLs allow.
    allowing = binding(AclOperation.ALL, AclPermissionType.ALLOW)
    denying = binding(operation, AclPermissionType.DENY)
    for future in admin.create_acls([allowing, denying]).values():
        future.result()
    anyone: Any = None  # what the client takes and its types do not
    ours = AclBindingFilter(
        ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, anyone, anyone, AclOperation.ANY, AclPermissionType.ANY
    )
    wait_until(lambda: len(admin.describe_acls(ours).result()) >= 2, "the broker to learn of the ACLs")


@pytest.fixture(scope="module")
def guarded_kafka() -> Iterator[LocalKafka]:
    """Start a broker with an authorizer that allows whatever no ACL is about."""
    authorizer = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with LocalKafka(properties=authorizer) as guarded:
        yield guarded


@pytest.mark.parametrize(
    ("denied", "operation", "complaint"),
    [
        ("clips.embedded", AclOperation.DESCRIBE, "cannot be described: this client lacks Describe on the topic "),
        ("query.results", AclOperation.DESCRIBE_CONFIGS, "cannot be described: this client lacks DescribeConfigs on"),
    ],
)
def test_a_topic_that_we_may_not_look_at_is_named(
    guarded_kafka: LocalKafka, denied: str, operation: AclOperation, complaint: str
) -> None:
    settings = Settings(bootstrap_servers=guarded_kafka.bootstrap_servers, topic_prefix=f"{operation.name}-")
    admin = AdminClient({"bootstrap.servers": guarded_kafka.bootstrap_servers})
    spec = msgspec.structs.replace(OUTPUT, name=denied)
    apply(settings, [spec])
    deny(admin, settings.topic(denied), operation)
    with pytest.raises(TopicsError, match=f"{settings.topic(denied)}: {complaint}"):
        check(settings, [spec])


def test_a_change_that_we_may_not_make_is_refused(guarded_kafka: LocalKafka) -> None:
    settings = Settings(bootstrap_servers=guarded_kafka.bootstrap_servers, topic_prefix="alter-")
    admin = AdminClient({"bootstrap.servers": guarded_kafka.bootstrap_servers})
    apply(settings, [OUTPUT])
    deny(admin, settings.topic(OUTPUT.name), AclOperation.ALTER_CONFIGS)
    (refused,) = apply(settings, [msgspec.structs.replace(OUTPUT, config={"retention.ms": "5"})])
    assert refused.outcome is Outcome.REFUSED
    assert "lacks AlterConfigs on the topic" in refused.detail
