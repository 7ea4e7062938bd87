"""Settings: their order of precedence, librdkafka's properties, and errors that name the setting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from streamer.settings import COMMANDS_OF, Settings, SettingsError, load, unknown_variables


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


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = load()
    assert settings.bootstrap_servers == "localhost:9092"
    assert settings.topic_prefix == ""
    assert settings.store == "lmdb:./data/store"
    assert (settings.precision, settings.dtype) == ("float16", "auto")
    assert (settings.frame_interval, settings.max_frames) == (0.5, 64)
    assert (settings.alpha, settings.depth, settings.normalization) == (0.4, 100, "minmax")
    assert settings.deadline_ms is None
    assert settings.allowed_uris == (Path.cwd().as_uri(),)
    assert settings.model.startswith("local-dir:")
    assert Path(settings.model.removeprefix("local-dir:")).is_dir()


def test_full_names_have_the_prefix_before_them_and_those_of_groups_the_suffix_behind() -> None:
    settings = load({"topic_prefix": "eu.", "group_suffix": "-blue"})
    assert settings.topic("query.results") == "eu.query.results"
    assert settings.group("streamer-rerank") == "eu.streamer-rerank-blue"


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
def test_a_wrong_value_is_told_in_one_line_that_names_the_setting(
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
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as wrong:
        load(config=toml(tmp_path, text))
    assert "streamer.toml" in str(wrong.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(config=tmp_path / "none.toml")


def test_secrets_stay_out_of_what_is_shown() -> None:
    settings: Any = load({"kafka": {"sasl.password": "hunter2"}})
    assert "hunter2" not in repr(settings)


def test_misspelt_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_ALPAH", "1")
    monkeypatch.setenv("STREAMER_KAFKA__X", "1")
    monkeypatch.setenv("STREAMER_ALPHA", "1")
    assert unknown_variables() == ["STREAMER_ALPAH"]


def test_every_setting_belongs_to_a_command_and_every_command_knows_its_settings() -> None:
    used = {name for names in COMMANDS_OF.values() for name in names}
    assert used == set(Settings.model_fields)
