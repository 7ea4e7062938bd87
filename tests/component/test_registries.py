"""What the registries of store engines and encoders name can be loaded, and does what the others of its kind do."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.encoders import loading
from streamer.encoders.loading import DEMO, DEMO_FOLDER
from streamer.store import opening
from streamer.store.opening import ENGINES


@pytest.mark.parametrize("scheme", ENGINES)
def test_every_engine_offers_what_opens_a_store(scheme: str) -> None:
    engine: Any = ENGINES[scheme]()
    assert {name for name in vars(opening.Engine) if name.startswith("open_")} <= vars(engine).keys()


def test_the_small_model_is_the_one_that_is_shipped() -> None:
    named, by_folder = (
        loading.load_encoder(model, dtype="float32", threads=1, sides=["texts"])
        for model in (DEMO, f"local-dir:{DEMO_FOLDER}")
    )
    assert named.model_id == by_folder.model_id
