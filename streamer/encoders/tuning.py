"""Selects a model's precision and threads by measurements when the model is loaded.

The fastest combination depends on processor and model: bfloat16 is three times as fast as float32 on processors with
instructions for it and many times slower on others; packed weights gain more, the fewer tokens there are; two threads
gain little for one short query. Differences within the noise of measurement must not change the choice from one start
to the next, so other candidates must beat float32 and plain weights by a margin.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch

from streamer.encoders.protocol import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from streamer.settings import Dtype

MIN_COSINE = 0.9998
"""Smallest cosine between a vector and float32's for a precision to be chosen instead."""
BUDGET_S = 4.0
"""Seconds after which no more candidates are tried, once one is faster than the first."""

_HANDICAPS = {torch.float32: 1.0, torch.bfloat16: 1.3, torch.float16: 1.35}
"""How many times faster than float32 a lower precision must be; bfloat16 has float32's range and cannot overflow."""
_PACKED_HANDICAPS = {torch.float32: 1.05, torch.bfloat16: 1.2, torch.float16: 1.25}
"""The same for packed weights, which lose less accuracy."""
_BATCH_GAIN = 1.1
"""How much more throughput a batch of twice the size must give: clips wait until their batch is complete."""
_THREADS_GAIN = 1.2
"""How many times faster twice the threads must be: they take cores from the rest of the machine."""
_RUNS = 7
_ENOUGH_S = 0.25
"""Seconds after which a candidate is not run again."""


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype as in the settings."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A tower's way of computing: with weights in ``dtype``; ``packed``: see :func:`streamer.encoders.towers.pack`."""

    dtype: torch.dtype
    packed: bool = False

    def __str__(self) -> str:
        return name_of(self.dtype) + (", packed" if self.packed else "")

    @property
    def between(self) -> torch.dtype:
        """The dtype between matrix products: a packed tower reduces only the products."""
        return torch.float32 if self.packed else self.dtype

    @property
    def handicap(self) -> float:
        """The factor by which its measured time is multiplied for comparison."""
        return (_PACKED_HANDICAPS if self.packed else _HANDICAPS)[self.dtype]


class Tower(Protocol):
    """One side of a model with some precision, with its own inputs for measurements."""

    def run(self) -> object:
        """Run the timed computation."""
        ...

    def vectors(self) -> npt.NDArray[np.float32]:
        """Encode the inputs for measuring accuracy: (n, dim), L2-normalised; called before :meth:`run`."""
        ...


T = TypeVar("T", bound=Tower)


@dataclass(frozen=True, slots=True)
class Trial:
    """The measurement of one candidate; ``problem``: why it could not be measured."""

    arithmetic: Arithmetic
    seconds: float = float("inf")
    cosine: float = float("nan")
    problem: str = ""

    def __str__(self) -> str:
        figures = self.problem or f"{1000 * self.seconds:.3g} ms, cosine {self.cosine:.6f}"
        return f"{self.arithmetic}: {figures}"


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """The chosen tower, its precision, and all measurements."""

    tower: T
    arithmetic: Arithmetic
    trials: tuple[Trial, ...]


def candidates(dtype: Dtype, device: torch.device, *, packable: bool) -> tuple[Arithmetic, ...]:
    """Return the candidates for a setting: the reference first, then the most promising ones.

    An explicit float32 is torch's own and nothing else, so that processes can be configured to compute identically.
    """
    plain = {name: Arithmetic(getattr(torch, name)) for name in ("float32", "bfloat16", "float16")}
    if device.type == "cuda":
        if dtype != "auto":
            return (plain[dtype],)
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return (plain["float32"], *([plain["bfloat16"]] if has_bfloat16 else []), plain["float16"])
    if dtype == "float32":
        return (plain[dtype],)
    packed = {name: Arithmetic(each.dtype, packed=True) for name, each in plain.items()} if packable else {}
    names = [dtype] if dtype != "auto" else ["float32"]
    if dtype == "auto" and _is_worth_trying(torch.bfloat16):
        names.insert(0, "bfloat16")
    reference = plain[names[-1]]
    return (reference, *(packed[name] for name in names if packed), *(plain[name] for name in names[:-1]))


def _is_worth_trying(dtype: torch.dtype) -> bool:
    """Test a dtype by one small product: without instructions for it, it may be a hundred times slower than float32."""

    def seconds(of: torch.dtype) -> float:
        a, b = torch.ones(64, 512, dtype=of), torch.ones(512, 512, dtype=of)
        return _timed(lambda: torch.mm(a, b), time.thread_time)

    with use_threads(1), torch.inference_mode():
        return seconds(dtype) < 2 * seconds(torch.float32)


def fastest(
    arithmetics: Sequence[Arithmetic], build: Callable[[Arithmetic], T], clock: Callable[[], float]
) -> Choice[T]:
    """Measure ``arithmetics`` and return the fastest whose vectors equal the first one's except for rounding.

    The last ones may not be measured. At most three towers are in memory at a time: the first, the best and the current
    one. Exceptions of the first one pass through; another that cannot be built or run is not chosen.
    """
    begin = time.monotonic()
    first, *others = arithmetics
    tower = best = build(first)
    exact = tower.vectors()
    trials = [Trial(first, _timed(tower.run, clock), 1.0)]
    chosen, least = first, trials[0].seconds * first.handicap
    for arithmetic in others:
        if time.monotonic() - begin > BUDGET_S and chosen is not first:
            break
        try:
            tower = build(arithmetic)
            cosine = float(np.sum(tower.vectors() * exact, axis=-1).min())
            trial = Trial(arithmetic, _timed(tower.run, clock), cosine)
        except (RuntimeError, EncoderError) as error:
            trials.append(Trial(arithmetic, problem=" ".join(str(error).split())[:200]))
            continue
        trials.append(trial)
        if cosine >= MIN_COSINE and trial.seconds * arithmetic.handicap < least:
            best, chosen, least = tower, arithmetic, trial.seconds * arithmetic.handicap
    return Choice(best, chosen, tuple(trials))


def batch_size(run: Callable[[int], object], least: int, most: int) -> int:
    """Return the best number of items per call of ``run``: ``least``, doubled while throughput improves."""
    size, seconds = least, _median(lambda: run(least))
    while size < most:
        more = min(2 * size, most)
        twice = _median(lambda: run(more))  # noqa: B023 - called at once
        if more / twice < _BATCH_GAIN * size / seconds:
            break
        size, seconds = more, twice
    return size


def thread_count(run: Callable[[], object], most: int) -> int:
    """Return the best number of threads, at most ``most``: 1, doubled while it gets faster.

    Uses the median of wall-clock times, so that cores that are busy or beyond a container's quota do not count.
    """
    count, least = 1, _wall(run, 1)
    while count < most:
        more = min(2 * count, most)
        seconds = _wall(run, more)
        if seconds * _THREADS_GAIN > least:
            break
        count, least = more, seconds
    return count


def _wall(run: Callable[[], object], threads: int) -> float:
    with use_threads(threads):
        return _median(run)


def _median(run: Callable[[], object]) -> float:
    """Return the median seconds of a few calls, after one for warming up."""
    seconds: list[float] = []
    run()
    while len(seconds) < _RUNS and sum(seconds) < _ENOUGH_S:
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads to ``count`` inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of several runs; a long one is not repeated."""
    seconds: list[float] = []
    while len(seconds) < _RUNS and sum(seconds) < _ENOUGH_S:
        begin = clock()
        run()
        seconds.append(clock() - begin)
    return min(seconds)
