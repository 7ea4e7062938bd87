"""The registries of encoders and of store engines: each entry resolves, and anything else is refused by name."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from streamer.encoders import EncoderError, loading
from streamer.encoders.loading import DEFAULT_SCHEME, DEMO, LOADERS, load_model, loader_of
from streamer.settings import ModelSettings, SettingsError
from streamer.store import StoreError, open_store, opening
from streamer.store.opening import ENGINES, open_admin, open_existing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("open_", [open_existing, open_admin, lambda url: open_store(url, model_id="m", dim=4)])
@pytest.mark.parametrize("url", ["mongodb://localhost", "rocks:data", "LMDB:data"])
def test_an_unsupported_scheme_of_a_store_is_refused_with_those_there_are(open_: Any, url: str) -> None:
    with pytest.raises(StoreError) as refused:
        open_(url)
    assert str(refused.value) == (
        f"unsupported store scheme {url.partition(':')[0]!r}; "
        "supported: lmdb, redis, rediss, redis+cluster, rediss+cluster, redis+sentinel, rediss+sentinel"
    )


@pytest.mark.parametrize("scheme", [scheme for scheme in ENGINES if scheme != "lmdb"])
def test_a_remote_store_without_its_client_names_the_extra(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", lambda _name: None)
    with pytest.raises(StoreError, match=r"pip install 'cliprerank-streamer\[redis\]'"):
        open_existing(f"{scheme}://localhost:1")


def test_opening_one_engine_does_not_load_the_other(tmp_path: Path) -> None:
    program = (
        "import sys; from streamer.store import open_store; "
        f"open_store('lmdb:{tmp_path}', model_id='m', dim=4).close(); print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("model", "scheme", "name"),
    [
        ("ViT-B-32", DEFAULT_SCHEME, "ViT-B-32"),
        ("open_clip:ViT-B-32", DEFAULT_SCHEME, "ViT-B-32"),
        ("open_clip:local-dir:/models/x", DEFAULT_SCHEME, "local-dir:/models/x"),
        ("local-dir:/models/a:b", DEFAULT_SCHEME, "local-dir:/models/a:b"),
        ("hf-hub:org/repository", DEFAULT_SCHEME, "hf-hub:org/repository"),
        ("open_clip", DEFAULT_SCHEME, "open_clip"),
        ("demo", DEMO, ""),
    ],
)
def test_a_models_scheme_chooses_its_loader(model: str, scheme: str, name: str) -> None:
    assert loader_of(model) == (LOADERS[scheme], name)


@pytest.mark.parametrize("scheme", LOADERS)
def test_every_family_of_encoders_is_reached_by_its_scheme(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(loading, "LOADERS", {scheme: lambda *arguments: calls.append(arguments)})
    loading.load_encoder(f"{scheme}:name", "tag", dtype="bfloat16", threads=3, sides=["texts"])
    assert calls == [("name", "tag", loading.Options("bfloat16", "auto", 3, ["texts"]))]


def test_an_unsupported_scheme_of_a_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError) as refused:
        load_model(ModelSettings(model="blip3:/models/x"))
    assert str(refused.value) == (
        "model (--model, STREAMER_MODEL): unsupported model scheme 'blip3'; "
        "supported: open_clip, demo, local-dir, hf-hub"
    )


def test_the_small_models_name_takes_no_suffix() -> None:
    with pytest.raises(EncoderError, match="demo is a complete model name"):
        loading.load_encoder("demo:other")


def test_without_a_model_nothing_is_loaded() -> None:
    with pytest.raises(SettingsError, match="name one"):
        load_model(ModelSettings())
