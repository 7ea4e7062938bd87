"""Tone mapping: frames of high dynamic range (ITU-R BT.2100) as a screen of standard dynamic range shows them.

Phones record PQ or HLG by default. Their values, taken for those of sRGB, are grey and flat, and no model was trained
on such pictures. What a frame becomes follows from its pixels alone:

- R'G'B' of 16 bits are made linear: PQ by its EOTF; HLG by the inverse of its OETF and the OOTF of a screen of
  1,000 cd/m2 (gamma 1.2).
- Reference white, 203 cd/m2 (ITU-R BT.2408), becomes white. If the frame has brighter pixels, they are compressed by
  the curve of ITU-R BT.2390 (EETF, section 5.4.1) from the frame's peak, but at most 1,000 cd/m2, to reference white.
  It leaves darker tones as they are, and applies to the largest of R, G and B; the others keep their ratio to it.
- BT.2020 or P3 primaries become those of BT.709 (a 3 x 3 matrix; what is outside is clipped), and the result is encoded
  as sRGB.

The curve of BT.2390 is the one for which a frame without highlights stays exact, which the curves of Hable and Reinhard
darken. The frame's own peak is used instead of the file's metadata, which many files lack and some have wrong.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    Rgb = npt.NDArray[np.uint8]

PQ, HLG = 16, 18
"""The transfer characteristics (ITU-T H.273) of which frames are tone-mapped."""
WHITE = 203.0
"""Reference white, in cd/m2."""
PEAK = 1_000.0
"""The largest peak that is mapped to white, in cd/m2."""
FULL = 65_283
"""The code of the largest signal in what libswscale makes of limited-range YCbCr of 10 bits or more."""
LARGEST_SIDE = 720
"""Frames are reduced to this length of their shorter side before: arithmetic on every pixel of 4K takes a second."""

_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_A = 0.17883277
_B, _C = 1 - 4 * _A, 0.5 - _A * float(np.log(4 * _A))
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
_FROM_BT2020 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_FROM_P3 = np.array(
    [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
)
_PRIMARIES = {1: np.eye(3, dtype=np.float32), 11: _FROM_P3, 12: _FROM_P3}
"""To BT.709 from other primaries than BT.2020's (ITU-T H.273), by which files that state none are taken."""
_STEPS = 1 << 16
_CURVE_STEPS = 4_096


def tone_mapped(image: npt.NDArray[np.uint16], transfer: int, primaries: int) -> Rgb:
    """Return a picture (h, w, 3) of which :data:`FULL` is the largest signal as sRGB; ``transfer`` is PQ or HLG."""
    linear = _linear(transfer)[image]
    if transfer == HLG:
        linear *= np.power(linear @ _LUMINANCE, 0.2)[..., None] * (PEAK / WHITE)
    brightest = linear.max(axis=2)
    peak = min(float(brightest.max(initial=0.0)) * WHITE, PEAK)
    if peak > WHITE:
        most = peak / WHITE
        place = np.minimum(brightest * ((_CURVE_STEPS - 1) / most) + 0.5, _CURVE_STEPS - 1).astype(np.int32)
        linear *= (_curve(peak)[place] * np.minimum(1, most / np.maximum(brightest, 1)))[..., None]
    linear = linear @ _PRIMARIES.get(primaries, _FROM_BT2020).T
    np.clip(linear, 0, 1, out=linear)
    linear *= _STEPS - 1
    linear += 0.5
    found: Rgb = _encoded()[linear.astype(np.uint16)]
    return found


def pq_signal(luminance: FloatArray) -> FloatArray:
    """Return the PQ signal (0 to 1) of luminances in cd/m2 (the inverse EOTF of BT.2100)."""
    power = (np.maximum(luminance, 0) / 10_000) ** _M1
    return np.asarray(((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2)


def pq_luminance(signal: FloatArray) -> FloatArray:
    """Return the luminances in cd/m2 of PQ signals (the EOTF of BT.2100)."""
    root = signal ** (1 / _M2)
    return np.asarray(10_000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1))


def compressed(luminance: FloatArray, peak: float) -> FloatArray:
    """Map luminances up to ``peak`` to those up to :data:`WHITE`, by BT.2390's curve; both in cd/m2, black is 0."""
    largest = float(pq_signal(np.array(peak)))
    most = float(pq_signal(np.array(WHITE))) / largest
    knee = 1.5 * most - 0.5
    given = np.minimum(pq_signal(luminance) / largest, 1)
    t = (given - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_luminance(np.where(given < knee, given, spline) * largest)


def _curve(peak: float) -> npt.NDArray[np.float32]:
    """Return by what luminances in equal steps from 0 to ``peak`` are multiplied."""
    given = np.linspace(0, peak, _CURVE_STEPS)
    given[0] = 1e-6  # of 0, the quotient of its neighbours, which is 1
    return (compressed(given, peak) / given).astype(np.float32)


@cache
def _linear(transfer: int) -> npt.NDArray[np.float32]:
    """Return the linear value of each signal: for PQ in units of :data:`WHITE`, for HLG of the scene, 0 to 1."""
    signal = np.minimum(np.arange(_STEPS) / FULL, 1)
    if transfer == PQ:
        return (pq_luminance(signal) / WHITE).astype(np.float32)
    above = (np.exp((signal - _C) / _A) + _B) / 12
    return np.where(signal <= 0.5, signal**2 / 3, above).astype(np.float32)  # noqa: PLR2004 - as in BT.2100


@cache
def _encoded() -> npt.NDArray[Any]:
    """Return the sRGB code of each linear value (IEC 61966-2-1)."""
    linear = np.linspace(0, 1, _STEPS)
    signal = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # noqa: PLR2004
    return np.round(255 * signal).astype(np.uint8)
