"""Which clips are alive in the end, as the log alone says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.inputs import Delete, Upload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tests.chaos.inputs import Input


def living(inputs: Iterable[Input]) -> dict[str, Upload]:
    """Return the upload that the store must hold of each clip, by clip id.

    The newest `uploaded_at` wins, wherever in the log it stands. A delete removes what came before it, and what it
    removed stays dead when it is delivered again: only a newer upload lives.
    """
    alive: dict[str, Upload] = {}
    dead: dict[str, datetime] = {}
    for each in sorted(inputs, key=lambda each: each.order):
        match each.meaning:
            case Delete(clip_id):
                removed = alive.pop(clip_id, None)
                if removed is not None:
                    dead[clip_id] = removed.uploaded_at
            case Upload(clip_id, _, uploaded_at) as upload:
                there = alive.get(clip_id)
                too_old = there is not None and uploaded_at < there.uploaded_at
                killed = clip_id in dead and uploaded_at <= dead[clip_id]
                if not (too_old or killed):
                    alive[clip_id] = upload
            case _:
                pass
    return alive
