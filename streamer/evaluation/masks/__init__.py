"""By how much a figure moves where a part of each frame is masked: masks, and clips that are decoded anew with them."""
