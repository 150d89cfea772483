"""The answers of a rater: what a picture shows, as a letter, and how real it looks, from 1 to 5."""

from __future__ import annotations

from collections.abc import Sequence

FIRST, LADEN, WINGED, SECOND, OTHER, NOTHING = LETTERS = ("H", "R", "W", "B", "O", "N")
REALISM = (1, 2, 3, 4, 5)
MAX_ALL = 10_000  # pictures of all sources of a panel
COLUMNS = ("panel", "number", "letter", "realism")  # of a rater's CSV file


def meanings(classes: Sequence[str]) -> dict[str, str]:
    """Return what each letter says of a picture, for the names of the two classes."""
    first, second = classes
    limbs = "wings" if [*classes] == ["horse", "bird"] else f"parts of a {second}"
    winged = "winged horse" if limbs == "wings" else f"{first} with {limbs}"
    return {
        FIRST: first,
        LADEN: f"{first} with a rider, or with a thing on it or beside it",
        WINGED: f"{winged}: it has {limbs} where they would grow",
        SECOND: second,
        OTHER: "something else",
        NOTHING: "nothing that can be recognised",
    }
