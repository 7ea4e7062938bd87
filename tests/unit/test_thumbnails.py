from __future__ import annotations

import numpy as np
import pytest

from streamer.video.thumbnails import LONGER_SIDE, picture, thumbnail


@pytest.mark.parametrize(
    ("height", "width", "small"), [(48, 64, (48, 64)), (440, 880, (110, 220)), (900, 100, (220, 24)), (1, 1, (1, 1))]
)
def test_a_picture_keeps_its_proportions_in_an_array_of_one_size(
    height: int, width: int, small: tuple[int, int]
) -> None:
    frame = np.full((height, width, 3), 7, dtype=np.uint8)
    frame[: height // 2] = 200
    flat = thumbnail(frame)
    assert flat.shape == thumbnail(np.zeros((9, 9, 3), np.uint8)).shape
    shown = picture(flat)
    assert shown.shape == (*small, 3)
    assert shown[-1].mean() == 7
    if height > 1:
        assert shown[0].mean() == 200


@pytest.mark.parametrize("head", [(0, 5), (5, 0), (LONGER_SIDE + 1, 5), (5, 255)])
def test_a_thumbnail_with_an_invalid_header_is_refused(head: tuple[int, int]) -> None:
    flat = thumbnail(np.zeros((9, 9, 3), np.uint8))
    flat[:2] = head
    with pytest.raises(ValueError, match="a picture of"):
        picture(flat)
