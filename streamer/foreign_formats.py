"""What a value that is no JSON looks like: a hint for whoever reads a dead letter, never a decision.

Sources: the wire format of Confluent's Schema Registry (a zero byte and a schema id of four bytes), the header of AWS
Glue's (3, a byte for the compression, a UUID), Avro's specification (single-object encoding, object container files),
RFC 1952 (gzip), RFC 8878 (Zstandard), the LZ4 and Snappy frame formats, and the byte order marks of Unicode.
"""

from __future__ import annotations

from typing import Any

_STARTS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy"),
    (b"\x82SNAPPY\x00", "Snappy"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark, which JSON may not have"),
    (b"\xff\xfe\x00\x00", "UTF-32 text; JSON is UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text; JSON is UTF-8"),
    (b"\xff\xfe", "UTF-16 text; JSON is UTF-8"),
    (b"\xfe\xff", "UTF-16 text; JSON is UTF-8"),
    (b"{\x00", "UTF-16 text; JSON is UTF-8"),
    (b"\x00{\x00", "UTF-16 text; JSON is UTF-8"),
    (b"\xc3\x01", "an Avro record in single-object encoding"),
    (b"Obj\x01", "an Avro file"),
    (b"\xac\xed\x00\x05", "a serialized Java object"),
    (b"\xd9\xd9\xf7", "CBOR"),
    (b"<", "XML"),
)
_CONFLUENT_HEADER = 5
_GLUE_HEADER = 18
_GLUE_COMPRESSION = (0, 5)
_MESSAGEPACK_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_PROTOBUF_FIELD_1 = 0x0A
"""The tag of a field of number 1 that is a string, as which most messages begin that have an id."""


def recognised(value: bytes) -> str | None:
    """Return what a value looks like, None where it is like nothing that is known."""
    for start, name in _STARTS:
        if value.startswith(start):
            return name
    if len(value) > _CONFLUENT_HEADER and value[0] == 0:
        schema = int.from_bytes(value[1:_CONFLUENT_HEADER], "big")
        return f"Confluent wire format, schema id {schema}"
    if len(value) > _GLUE_HEADER and value[0] == 3 and value[1] in _GLUE_COMPRESSION:  # noqa: PLR2004 - its version
        return "the wire format of AWS Glue Schema Registry"
    return _by_structure(value)


def _by_structure(value: bytes) -> str | None:
    """Name formats that have no mark of their own, by how their values begin."""
    if len(value) > 1 and value[0] in _MESSAGEPACK_MAPS:
        return "MessagePack"
    if len(value) >= 4 and int.from_bytes(value[:4], "little") == len(value):  # noqa: PLR2004 - BSON's length field
        return "BSON"
    if len(value) > 1 and value[0] == _PROTOBUF_FIELD_1 and 0 < value[1] <= len(value) - 2:
        return "Protocol Buffers"
    return None


def recognised_document(document: Any) -> str | None:
    """Return what a JSON document looks like that is none of our events."""
    if isinstance(document, str) and document.lstrip().startswith("{"):
        return "an event that was encoded as JSON twice"
    if isinstance(document, dict):
        if "specversion" in document and ("data" in document or "data_base64" in document):
            return "a CloudEvent in structured mode; binary mode is read"
        if document.keys() == {"schema", "payload"}:
            return "Kafka Connect's JSON converter with schemas.enable=true"
        if {"before", "after", "op"} <= document.keys():
            return "a change event of Debezium"
    return None
