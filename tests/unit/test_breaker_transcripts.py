from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.breaker_story import Storyteller

_STORIES = sorted((Path(__file__).parents[1] / "transcripts" / "breaker").glob("*.txt"))


def test_there_are_stories() -> None:
    assert len(_STORIES) >= 6


@pytest.mark.parametrize("path", _STORIES, ids=lambda path: path.stem)
def test_story_is_what_the_breaker_does(path: Path) -> None:
    """HOLDFAST_REWRITE_TRANSCRIPTS=1 writes the files anew; read the difference before you commit it."""
    golden = path.read_text()
    told = Storyteller().replay(golden)
    if os.environ.get("HOLDFAST_REWRITE_TRANSCRIPTS"):
        path.write_text(told)
    assert told == golden
