"""Other ways of pooling, and of treating candidates without a record: which one a sweep recommends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.evaluation import choice

if TYPE_CHECKING:
    from streamer.evaluation.sweep_run import Sweep

ALTERNATIVES = ("missing", "pooling")
"""The parameters whose first value in a sweep is kept, unless another one is shown to gain more."""


def alternatives(found: Sweep, folds: int) -> dict[str, Any]:
    """Compare each other value of a parameter with its first one, and recommend one, as JSON; 0 folds: neither.

    All other parameters are chosen for both, without the topics on which they are compared; the intervals are corrected
    for the number of comparisons.
    """
    gains = found.gains(0)
    values = {
        name: [getattr(column.method, name) for column in found.columns] for name in (ALTERNATIVES if folds else ())
    }
    numbers = {
        (name, value): np.array([number for number, each in enumerate(of) if each == value], np.intp)
        for name, of in values.items()
        for value in dict.fromkeys(of)
    }
    others = [(name, value) for name, value in numbers if value != values[name][0]]
    compared = []
    recommended = {name: of[0] for name, of in values.items()}
    largest = dict.fromkeys(values, 0.0)
    for name, value in others:
        first = values[name][0]
        interval = choice.compare(gains, numbers[name, value], numbers[name, first], folds=folds, tests=len(others))
        compared.append(
            {"parameter": name, "value": value, "than": first, **interval._asdict(), "says": choice.says(interval)}
        )
        if interval.low > 0 and interval.gain > largest[name]:
            recommended[name], largest[name] = value, interval.gain
    return {"alternatives": compared, "recommended": recommended}
