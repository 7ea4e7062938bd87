"""Settings: their order of precedence, librdkafka's properties, and errors that name the setting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from streamer.kafka.client.config import common
from streamer.settings import (
    COMMANDS,
    Connection,
    DemoSettings,
    EmbedSettings,
    Group,
    LogSettings,
    MethodSettings,
    RerankSettings,
    Settings,
    SettingsError,
    StoreReadSettings,
    StoreWriteSettings,
    as_variables,
    load,
    markdown,
    names_of,
    unknown_variables,
)
from streamer.settings.groups import KAFKA_SECRETS
from streamer.settings.reference import is_secret
from streamer.store import StoreOptions


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STREAMER_")]:
        monkeypatch.delenv(name)


def toml(folder: Path, text: str) -> Path:
    path = folder / "streamer.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toml(tmp_path, "alpha = 0.1\ndepth = 10\nmax_frames = 5")
    monkeypatch.setenv("STREAMER_ALPHA", "0.2")
    monkeypatch.setenv("STREAMER_DEPTH", "20")
    settings = load({"alpha": "0.3", "max_frames": None}, config)
    assert (settings.alpha, settings.depth, settings.max_frames) == (0.3, 20, 5)


def test_defaults_do_not_change_unnoticed() -> None:
    settings = load()
    assert settings.bootstrap_servers == "localhost:9092"
    assert settings.topic_prefix == ""
    assert settings.store == "lmdb:./data/store"
    assert (settings.precision, settings.dtype) == ("float16", "auto")
    assert (settings.frame_interval, settings.max_frames) == (0.5, 64)
    assert (settings.alpha, settings.depth, settings.normalization) == (0.4, 100, "minmax")
    assert (settings.missing, settings.pooling) == ("impute", "max")
    assert settings.deadline_ms is None
    assert settings.allowed_uris is None
    assert settings.model is None


def test_full_names_begin_with_the_prefix_and_those_of_groups_end_with_the_suffix() -> None:
    settings = load({"topic_prefix": "eu.", "group_suffix": "-blue"})
    assert settings.topic("query.results") == "eu.query.results"
    assert settings.group("streamer-rerank") == "eu.streamer-rerank-blue"


def test_a_group_is_chosen_by_a_suffix_or_by_its_own_name() -> None:
    assert load({"topic_prefix": "eu."}).chosen_group("streamer-rerank") is None
    assert load({"group_embed": "own"}).chosen_group("streamer-rerank") is None
    assert load({"group_embed": "own"}).chosen_group("streamer-embed") == "own"
    assert load({"topic_prefix": "eu.", "group_suffix": "-b"}).chosen_group("streamer-rerank") == "eu.streamer-rerank-b"
    assert load({"group_suffix": ""}).chosen_group("streamer-rerank") == "streamer-rerank"


def test_an_empty_variable_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_PRETRAINED", "")
    monkeypatch.setenv("STREAMER_DEADLINE_MS", "")
    settings = load()
    assert settings.pretrained is None
    assert settings.deadline_ms is None


def test_librdkafkas_properties_come_from_everywhere_and_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toml(tmp_path, '[kafka]\nsecurity.protocol = "PLAINTEXT"\n"socket.timeout.ms" = 5\nlog.queue = true')
    monkeypatch.setenv("STREAMER_KAFKA__SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("STREAMER_KAFKA__SSL_CA_LOCATION", "/Ca.pem")
    assert load({"kafka": {"client.rack": "r1"}}, config).kafka == {
        "security.protocol": "SSL",
        "ssl.ca.location": "/Ca.pem",
        "socket.timeout.ms": "5",
        "log.queue": "true",
        "client.rack": "r1",
    }


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("alpha", "1.5", "less than or equal to 1"),
        ("alpha", "much", "valid number"),
        ("depth", "0", "greater than or equal to 1"),
        ("normalization", "softmax", "'minmax', 'zscore' or 'none'"),
        ("missing", "mean", "'own' or 'impute'"),
        ("pooling", "mean", "expected max or softmax:TAU with TAU from 0.01 to 1"),
        ("pooling", "softmax:0.009", "expected max or softmax:TAU"),
        ("precision", "float8", "'float32', 'float16' or 'int8'"),
        ("frame_interval", "0", "greater than 0"),
        ("allowed_uris", "file:/clips", "must be a JSON list"),
        ("allowed_networks", "10.0.0.0/8", 'must be a JSON list, such as ["10.0.0.0/8"'),
        ("allowed_networks", '["10.0.0.1/8"]', "has host bits set"),
        ("allowed_uris", '["file:/a", 5]', "valid string"),
        ("topic_prefix", "no spaces", "pattern"),
        ("group_suffix", "no spaces", "pattern"),
        ("store", "data", "pattern"),
        ("metrics_port", "70000", "less than or equal to 65535"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line_that_names_the_setting(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"STREAMER_{name.upper()}", value)
    with pytest.raises(SettingsError) as wrong:
        load()
    message = str(wrong.value)
    assert message.startswith(f"{name} (--{name.replace('_', '-')}, STREAMER_{name.upper()}): ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [("alpa = 0.3", "alpa: no such setting"), ("alpha = ", "not TOML"), ("\0", "not TOML")],
)
def test_an_invalid_file_is_reported_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as wrong:
        load(config=toml(tmp_path, text))
    assert "streamer.toml" in str(wrong.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(config=tmp_path / "none.toml")


def test_secrets_stay_out_of_what_is_shown() -> None:
    settings: Any = load({"kafka": {"sasl.password": "hunter2"}})
    assert "hunter2" not in repr(settings)


BY_ANOTHER_FILE = {"kafka": "each of its secrets has one", "store": "store_password_file has what its URL may hold"}


def test_every_secret_can_be_given_by_a_file() -> None:
    secrets = {name for name in Settings.model_fields if is_secret(name)}
    assert secrets > BY_ANOTHER_FILE.keys()
    for name in secrets - BY_ANOTHER_FILE.keys():
        assert f"{name}_file" in Settings.model_fields
        assert all(f"{name}_file" in group.model_fields for group in COMMANDS.values() if name in group.model_fields)


@pytest.mark.parametrize("name", KAFKA_SECRETS)
def test_a_secret_of_librdkafka_is_read_from_its_file_however_that_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n", encoding="utf-8")
    expected = {name: "hunter2", "client.id": "c"}
    config = toml(tmp_path, f'[kafka]\n"{name}.file" = "{secret}"\n"client.id" = "c"')
    assert load(config=config).read_kafka() == expected
    given = load({"kafka": {f"{name}.file": str(secret), name: "older", "client.id": "c"}})
    assert given.read_kafka() == expected
    assert "hunter2" not in str(as_variables(given))
    monkeypatch.setenv(f"STREAMER_KAFKA__{name.upper().replace('.', '_')}_FILE", str(secret))
    found = load({"kafka": {"client.id": "c"}})
    assert found.read_kafka() == expected
    assert {key: value for key, value in common(found).items() if key in expected} == expected


def test_a_property_of_librdkafka_that_names_a_file_is_left_to_it() -> None:
    given = {"sasl.oauthbearer.assertion.file": "/a", "ssl.key.location": "/b"}
    assert load({"kafka": given}).read_kafka() == given


def test_targets_and_the_headers_of_traces_are_read_from_files(tmp_path: Path) -> None:
    targets, headers = tmp_path / "targets", tmp_path / "headers"
    targets.write_text("https://u:hunter2@a:1\nhttp://b:2\n", encoding="utf-8")
    headers.write_text("api-key=hunter2\n", encoding="utf-8")
    settings = load({"targets_file": str(targets), "tracing_headers_file": str(headers)})
    assert settings.read_targets() == ("https://u:hunter2@a:1", "http://b:2")
    assert settings.read_tracing_headers() == "api-key=hunter2"
    assert load({"targets": "http://c:3"}).read_targets() == ("http://c:3",)
    assert load().read_tracing_headers() is None


@pytest.mark.parametrize("name", ["targets_file", "tracing_headers_file", "kafka"])
def test_a_secrets_file_that_cannot_be_read_is_an_error_of_its_setting(name: str, tmp_path: Path) -> None:
    absent = str(tmp_path / "none")
    settings = load({name: {"sasl.password.file": absent} if name == "kafka" else absent})
    read = {
        "targets_file": settings.read_targets,
        "tracing_headers_file": settings.read_tracing_headers,
        "kafka": settings.read_kafka,
    }[name]
    with pytest.raises(SettingsError, match=f"^{name} .*No such file"):
        read()


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_ALPAH", "1")
    monkeypatch.setenv("STREAMER_KAFKA__X", "1")
    monkeypatch.setenv("STREAMER_ALPHA", "1")
    assert unknown_variables() == ["STREAMER_ALPAH"]


# -- groups ------------------------------------------------------------------------------------------------


def test_every_setting_is_in_one_group_and_belongs_to_a_command() -> None:
    owners = [kind for kind in Settings.__mro__ if issubclass(kind, Group)]
    for name in Settings.model_fields:
        assert len([kind for kind in owners if name in vars(kind).get("__annotations__", {})]) == 1, name
    used = {name for group in COMMANDS.values() for name in group.model_fields}
    assert used == set(Settings.model_fields)


@pytest.mark.parametrize("group", [Settings, *dict.fromkeys(COMMANDS.values())])
def test_names_are_shown_once_each_and_those_of_the_first_part_first(group: type[Group]) -> None:
    names = names_of(group)
    assert sorted(names) == sorted(group.model_fields)
    first = group.__bases__[0]
    if issubclass(first, Group):
        assert names[: len(first.model_fields)] == names_of(first)


def test_a_group_is_made_of_plain_values_and_reads_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_TOPIC_PREFIX", "other.")
    assert Connection(group_suffix="-b").group("streamer-embed") == "streamer-embed-b"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_share_a_file_that_holds_settings_of_them_all(tmp_path: Path, command: str) -> None:
    config = toml(
        tmp_path,
        'model = "demo"\nalpha = 0.1\nmax_frames = 5\nstore_cache_bytes = 0\ntargets = ["http://a"]\n'
        'log_level = "error"\n[kafka]\nclient.rack = "r1"',
    )
    settings = load({}, config, command=COMMANDS[command])
    assert type(settings) is COMMANDS[command]
    assert settings.log_level == "error"
    assert settings.model_fields_set == set(COMMANDS[command].model_fields) & {
        "model", "alpha", "max_frames", "store_cache_bytes", "targets", "log_level", "kafka",
    }  # fmt: skip


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_refuses_a_file_with_a_setting_that_no_command_has(tmp_path: Path, command: str) -> None:
    with pytest.raises(SettingsError, match=r"^max_frame: no such setting \(in .*streamer.toml\)$"):
        load({}, toml(tmp_path, "max_frame = 5"), command=COMMANDS[command])


def test_a_setting_of_another_command_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_MAX_FRAMES", "none")
    assert load(command=RerankSettings).depth == 100
    with pytest.raises(SettingsError, match="max_frames"):
        load(command=EmbedSettings)


def test_precedence_is_the_same_for_a_command_as_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_DEPTH", "20")
    config = toml(tmp_path, "alpha = 0.1\ndepth = 10\nquery_batch = 5")
    settings = load({"alpha": "0.3"}, config, command=RerankSettings)
    assert (settings.alpha, settings.depth, settings.query_batch) == (0.3, 20, 5)


def test_a_flag_that_is_no_setting_is_refused() -> None:
    with pytest.raises(SettingsError, match="alhpa: no such setting"):
        load({"alhpa": 1})


def test_a_model_must_be_named_and_the_message_says_how() -> None:
    with pytest.raises(SettingsError) as wrong:
        load(command=EmbedSettings).named_model()
    assert str(wrong.value).startswith("model (--model, STREAMER_MODEL): name one, ")
    assert "--model demo" in str(wrong.value)
    assert load({"model": "demo"}, command=EmbedSettings).named_model() == "demo"


def test_where_uploads_may_come_from_must_be_named_and_the_message_says_how() -> None:
    with pytest.raises(SettingsError) as wrong:
        load(command=EmbedSettings).named_uris()
    assert str(wrong.value).startswith("allowed_uris (--allowed-uris, STREAMER_ALLOWED_URIS): name the places")
    assert """--allowed-uris '["file:/clips", "https://cdn.example.com/"]'""" in str(wrong.value)
    given = load({"allowed_uris": '["file:/clips"]'}, command=EmbedSettings)
    assert given.named_uris() == ("file:/clips",)
    # Deletes need no source.
    assert load({"allowed_uris": "[]"}, command=EmbedSettings).named_uris() == ()


@pytest.mark.parametrize("name", ["store_password", "metrics_password"])
def test_a_wrong_password_is_not_shown(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} ") as wrong:
        load({name: ["hunter2"]})
    assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize(("name", "value"), [("store", "hunter2"), ("kafka", "hunter2"), ("targets", [{"hunter2": 1}])])
def test_what_may_hold_a_password_is_not_shown_where_it_is_wrong(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"^{name} ") as wrong:
        load({name: value})
    assert "hunter2" not in str(wrong.value)


def test_variables_give_another_process_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "model": "demo", "alpha": 0.25, "kafka": {"client.rack": "r1"}, "allowed_uris": ["file:/a"],
        "metrics_password": "hunter2", "targets": ["http://a", "http://b"],
    }  # fmt: skip
    settings = load(given)
    variables = as_variables(settings)
    assert variables["STREAMER_KAFKA__CLIENT_RACK"] == "r1"
    assert len(variables) == len(given)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert load() == settings


def test_variables_of_a_group_are_those_of_its_settings() -> None:
    assert as_variables(MethodSettings(depth=7)) == {"STREAMER_DEPTH": "7"}
    assert as_variables(load({"bootstrap_servers": "b:1"}, command=DemoSettings)) == {
        "STREAMER_BOOTSTRAP_SERVERS": "b:1"
    }


def test_the_options_of_a_store_are_those_of_its_group(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n", encoding="utf-8")
    writer = StoreOptions.of(StoreWriteSettings(store_password_file=secret, store_replicas=2, store_tombstone_days=1))
    assert (writer.read_password(), writer.replicas, writer.tombstone_s) == ("hunter2", 2, 86_400)
    assert writer.cache_bytes == StoreOptions().cache_bytes
    reader = StoreOptions.of(StoreReadSettings(store_cache_bytes=0, store_timeout=3))
    assert (reader.cache_bytes, reader.timeout_s, reader.replicas) == (0, 3, 0)


def test_a_missing_password_file_is_an_error_of_that_setting() -> None:
    with pytest.raises(SettingsError, match=r"^store_password_file \(--store-password-file, .*No such file"):
        StoreOptions.of(StoreReadSettings(store_password_file=Path("/nowhere")))


def test_the_table_names_each_setting_its_commands_and_its_default() -> None:
    rows = {line.split("`")[1]: line for line in markdown().splitlines()[2:]}
    assert len(rows) == len(Settings.model_fields)
    assert "| rerank, explain, demo, benchmark, match, pilot, replay | 0.4 |" in rows["STREAMER_ALPHA"]
    assert "| none |" in rows["STREAMER_MODEL"]
    assert all(command in rows["STREAMER_LOG_LEVEL"] for command in COMMANDS)
    assert set(LogSettings.model_fields) == {"log_format", "log_level"}
