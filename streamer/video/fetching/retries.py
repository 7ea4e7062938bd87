"""The retries of a clip's source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tenacity

from streamer.video.errors import ClipError, Retry

if TYPE_CHECKING:
    from collections.abc import Callable


def retries(seconds: float, before: Callable[[], None]) -> tenacity.Retrying:
    """Yield the attempts at one clip, with backoff; errors of the source are retried for ``seconds``.

    ``before`` is called before each retry. Raises the last attempt's :class:`ClipError`.
    """
    out_of_time = tenacity.stop_before_delay(seconds)
    return tenacity.Retrying(
        retry=_is_worth_another_attempt,
        wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=15),
        stop=lambda state: _retry_of(state) is Retry.FOR_A_WHILE and out_of_time(state),
        before_sleep=lambda _state: before(),
        reraise=True,
    )


def _retry_of(state: tenacity.RetryCallState) -> Retry:
    error = state.outcome.exception() if state.outcome else None
    return error.retry if isinstance(error, ClipError) else Retry.NEVER


def _is_worth_another_attempt(state: tenacity.RetryCallState) -> bool:
    retry = _retry_of(state)
    return retry is Retry.FOR_A_WHILE or (retry is Retry.ONCE and state.attempt_number == 1)
