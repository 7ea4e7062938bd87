"""The files in ``topics/``: their location, ``topics.toml`` as typed specs, and the schemas, made from the models.

After a change of ``streamer/events.py``, ``python -m streamer.kafka.admin.topic_files`` rewrites the JSON
Schemas. The AsyncAPI document beside them is written by hand and refers to them.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from streamer.events import TOPICS, json_schema
from streamer.settings import SettingsError
from streamer.topology import DEAD_LETTER_TOPICS

BROKER_DEFAULT = -1
"""The replication that means the broker's ``default.replication.factor``."""
MIN_INSYNC = "min.insync.replicas"


def topics_dir() -> Path:
    """Return the folder ``topics/``: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "topics"
    return installed if installed.is_dir() else package.parent / "topics"


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One topic as ``topics.toml`` specifies it.

    ``name`` is without a prefix. ``replication`` is the number of replicas on a cluster that has as many
    brokers, or :data:`BROKER_DEFAULT`. ``config`` holds Kafka's topic configs, values as Kafka writes them.
    """

    name: str
    partitions: int
    replication: int
    config: dict[str, str]

    def replicas(self, brokers: int) -> int:
        """Return the replicas to create the topic with on a cluster of ``brokers``."""
        return self.replication if self.replication == BROKER_DEFAULT else min(self.replication, brokers)

    def config_for(self, replicas: int) -> dict[str, str]:
        """Return the config for a topic of ``replicas``; min.insync.replicas cannot exceed them."""
        if replicas == BROKER_DEFAULT or int(self.config.get(MIN_INSYNC, "1")) <= replicas:
            return self.config
        return self.config | {MIN_INSYNC: str(replicas)}


_Replication = Annotated[int, msgspec.Meta(ge=BROKER_DEFAULT, le=1000)]
_Config = dict[str, str | int | float | bool]


class _Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    replication: _Replication = 3
    config: _Config = {}


class _Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    partitions: Annotated[int, msgspec.Meta(ge=1, le=10_000)]
    replication: _Replication | None = None
    config: _Config = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    topics: Annotated[dict[str, _Topic], msgspec.Meta(min_length=1)]
    defaults: _Defaults = _Defaults()


def load_specs(path: Path | None = None) -> list[TopicSpec]:
    """Read ``topics.toml``, or the user's own file of that form, in the file's order.

    Raises :class:`~streamer.settings.SettingsError` with one line that names the file and the key.
    """
    path = path or topics_dir() / "topics.toml"
    try:
        file = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise SettingsError(f"topics file {path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"topics file {path}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise SettingsError(f"topics file {path}: {error}") from None
    known = {*TOPICS, *DEAD_LETTER_TOPICS}
    if unknown := sorted(file.topics.keys() - known):
        ours = ", ".join(sorted(known))
        raise SettingsError(f"topics file {path}: {unknown[0]!r} is not a topic of this service; those are {ours}")
    return [_merge(path, name, topic, file.defaults) for name, topic in file.topics.items()]


def _merge(path: Path, name: str, topic: _Topic, defaults: _Defaults) -> TopicSpec:
    replication = defaults.replication if topic.replication is None else topic.replication
    if replication == 0:
        raise SettingsError(f"topics file {path}: replication of {name} is 0; a topic has 1 replica or more")
    config = {key: _as_kafka_writes(value) for key, value in (defaults.config | topic.config).items()}
    if not config.get(MIN_INSYNC, "1").isdecimal():
        raise SettingsError(f"topics file {path}: {MIN_INSYNC} of {name} is {config[MIN_INSYNC]!r}, not a number")
    return TopicSpec(name=name, partitions=topic.partitions, replication=replication, config=config)


def _as_kafka_writes(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def schema_text(topic: str) -> str:
    """Return what ``topics/<topic>.schema.json`` holds."""
    return json.dumps(json_schema(topic), indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write each event's JSON Schema into ``folder`` and return the files whose text has changed."""
    changed = []
    for topic in TOPICS:
        path, text = folder / f"{topic}.schema.json", schema_text(topic)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    for path in write_schemas(topics_dir()):
        print(f"wrote {path}")  # noqa: T201 - a developer's command
