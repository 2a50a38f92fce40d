from __future__ import annotations

import sys

from tests.crash.points import Point, Victim
from tests.crash.run import crash, crash_twice, events_of
from tests.crash.stories import STORIES


def main(wanted: str) -> None:
    name, _, text = wanted.partition("@")
    story = STORIES[name]
    if text:
        first, _, second = text.partition("+")
        if second:
            crash_twice(story, Point.parse(first), Point.parse(second), print)
        else:
            crash(story, Point.parse(first), print)
        print("nothing wrong")
        return
    for victim in (Victim.COORDINATOR, Victim.OTHER):
        print(f"{name}, {victim}:")
        for event in events_of(story, victim):
            tells = "" if event.tells else "  (reads)"
            print(f"  {event.kind} {event.k:3}  {event.label}{tells}  unsynced {event.unsynced}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            f"usage: python -m tests.crash STORY[@POINT[+POINT]]; stories: {', '.join(STORIES)}"
        )
    main(sys.argv[1])
