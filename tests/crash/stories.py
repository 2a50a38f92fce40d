"""All stories, by name."""

from __future__ import annotations

from tests.crash.object_stories import BUCKET_STORIES, OBJECT_STORIES
from tests.crash.upkeep_stories import UPKEEP_STORIES
from tests.crash.upload_stories import UPLOAD_STORIES

STORIES = {
    story.name: story
    for story in (*OBJECT_STORIES, *UPLOAD_STORIES, *BUCKET_STORIES, *UPKEEP_STORIES)
}
