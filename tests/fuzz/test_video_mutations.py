from __future__ import annotations

from random import Random

import pytest

from tests.fuzz import video_boxes, video_elements
from tests.fuzz.video_bases import BASES, write_bases
from tests.fuzz.video_mutations import ANYWHERE, FROM_NOTHING, mutated_video

SEED = 7
STRUCTURED = (*video_boxes.BOX_MUTATIONS, *video_elements.ELEMENT_MUTATIONS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_bases(tmp_path_factory.mktemp("bases"))


def test_the_mutated_files_have_at_least_12_formats(bases: dict[str, bytes]) -> None:
    assert len({(base.encoder, base.ending) for base in BASES}) >= 12
    assert len(bases) == len(BASES)


def test_the_trees_of_boxes_and_elements_are_read_to_the_last_byte(bases: dict[str, bytes]) -> None:
    for name, content in bases.items():
        if name.endswith(("mp4", "mov")):
            assert video_boxes._pack(video_boxes._parse(content)) == content
        elif name.endswith(("mkv", "webm")):
            elements = video_elements._parse(content)
            # Sizes are written in eight bytes, which these may not have had.
            again = video_elements._parse(video_elements._pack(elements))
            assert again == elements
            assert len(video_elements._all(elements)) > 50


def test_a_seed_makes_the_same_files_and_every_mutation_damages(bases: dict[str, bytes]) -> None:
    drawn: dict[str, int] = {}
    for number in range(3_000):
        (kind, ending, content), again = (mutated_video(Random(f"{SEED}-{number}"), bases) for _ in range(2))  # noqa: S311
        assert again == (kind, ending, content)
        whole = content in [base for name, base in bases.items() if name.endswith(ending)]
        drawn[kind] = drawn.get(kind, 0) + (whole == (kind == "whole"))
    names = {each.__name__ for each in (*ANYWHERE, *FROM_NOTHING, *STRUCTURED)}
    assert drawn.keys() == names | {"whole", "concatenated"}
    assert all(drawn.values())
