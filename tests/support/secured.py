"""A real Kafka as a platform team secures it: clients come by SASL_SSL and SCRAM, and may do nothing without an ACL.

The plain listener of the local Kafka stays what its operator uses; whoever comes by it is a super user.
"""

from __future__ import annotations

import argparse
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from streamer.local_kafka.broker import HOST, LocalKafka
from streamer.settings import Settings, load
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from streamer.kafka.client.acls import Privilege

LISTENER, MECHANISM = "CLIENTS", "SCRAM-SHA-512"
_OPERATIONS = {operation.name.replace("_", "").lower(): operation for operation in AclOperation}
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class SecuredKafka:
    """Users and their ACLs on a running broker."""

    def __init__(self, broker: LocalKafka, ca: Path) -> None:
        self.broker = broker
        self._ca = ca
        self._admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    def add_user(self, name: str) -> None:
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(name, credential, _password(name).encode())
        [done] = self._admin.alter_user_scram_credentials([change]).values()
        done.result(30)

    def properties(self, user: str) -> dict[str, str]:
        """Return the properties of librdkafka with which a user connects."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISM,
            "sasl.username": user,
            "sasl.password": _password(user),
            "ssl.ca.location": str(self._ca),
        }

    def settings(self, user: str, prefix: str, **properties: str) -> Settings:
        return load(
            {
                "bootstrap_servers": self.broker.address(LISTENER),
                "topic_prefix": prefix,
                "instance_id": user,
                "kafka": self.properties(user) | {name.replace("_", "."): text for name, text in properties.items()},
            }
        )

    def operator(self, prefix: str) -> Settings:
        return load({"bootstrap_servers": self.broker.bootstrap_servers, "topic_prefix": prefix})

    def run(self, commands: Iterable[str]) -> None:
        """Do what ``kafka-acls`` does for these command lines."""
        self._allow([binding for command in commands for binding in _parsed(command)])

    def grant(self, user: str, prefix: str, privileges: Iterable[Privilege]) -> None:
        self._allow([_binding(user, prefix, each) for each in privileges])

    def _allow(self, bindings: list[AclBinding]) -> None:
        for done in self._admin.create_acls(bindings).values() if bindings else ():
            done.result(30)
        self._await(bindings, there=True)

    def revoke(self, user: str, prefix: str, privilege: Privilege) -> None:
        binding = _binding(user, prefix, privilege)
        [done] = self._admin.delete_acls([_filter(binding)]).values()
        assert len(done.result(30)) == 1
        self._await([binding], there=False)

    def _await(self, bindings: Iterable[AclBinding], *, there: bool) -> None:
        """Wait until the broker, which learns of it from the controller, acts upon it."""
        filters = [_filter(binding) for binding in bindings]
        wait_until(
            lambda: all(bool(self._admin.describe_acls(each).result(30)) == there for each in filters),
            "the broker to act upon its ACLs",
        )


@contextmanager
def secured_kafka(folder: Path, **properties: str) -> Iterator[SecuredKafka]:
    """Run a broker of which ``properties`` are further lines of its configuration, with ``_`` for ``.``."""
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST)
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    # Kafka reads PKCS #8 only.
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain
    (folder / "broker.pem").write_bytes(pem)
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    lines = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "sasl.enabled.mechanisms": MECHANISM,
        f"listener.name.{LISTENER.lower()}.{MECHANISM.lower()}.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        "super.users": "User:ANONYMOUS",
    }
    lines |= {name.replace("_", "."): text for name, text in properties.items()}
    with LocalKafka(listeners={LISTENER: "SASL_SSL"}, properties=lines) as broker:
        yield SecuredKafka(broker, ca)


def _password(user: str) -> str:
    return f"secret of {user}"


def _binding(user: str, prefix: str, privilege: Privilege) -> AclBinding:
    pattern = ResourcePatternType.PREFIXED if privilege.prefixed else ResourcePatternType.LITERAL
    name = privilege.full_name(load({"topic_prefix": prefix}))
    return _allowed(f"User:{user}", privilege.operation, privilege.resource, name, pattern)


def _allowed(principal: str, operation: str, resource: str, name: str, pattern: ResourcePatternType) -> AclBinding:
    who = (principal, "*", _OPERATIONS[operation.lower()], AclPermissionType.ALLOW)
    return AclBinding(_RESOURCES[resource], name, pattern, *who)


def _filter(binding: AclBinding) -> AclBindingFilter:
    place = (binding.restype, binding.name, binding.resource_pattern_type)
    return AclBindingFilter(*place, binding.principal, binding.host, binding.operation, binding.permission_type)


def _parsed(command: str) -> list[AclBinding]:
    """Read a command line as ``kafka-acls`` does."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("tool", choices=["kafka-acls"])
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    names = parser.add_mutually_exclusive_group(required=True)
    for resource in _RESOURCES:
        names.add_argument(f"--{resource}", dest=resource)
    given = parser.parse_args(shlex.split(command))
    pattern = ResourcePatternType[given.resource_pattern_type.upper()]
    [(resource, name)] = [(each, text) for each in _RESOURCES if (text := getattr(given, each))]
    return [_allowed(given.allow_principal, operation, resource, name, pattern) for operation in given.operation]
