"""What every source of images on disk needs: class names and splits checked."""

from __future__ import annotations

from collections.abc import Sequence

from pegasus_lightning.utils.errors import UserError, did_you_mean

IMAGE_SIZE = 32
SPLITS = ("train", "test")
MAX_NAMES_SHOWN = 20


def check_split(split: str) -> None:
    """Raise UserError unless `split` is "train" or "test"."""
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}': it is one of {listing(SPLITS)}.{did_you_mean(split, SPLITS)}")


def index_classes(classes: Sequence[str], available: Sequence[str], place: str) -> list[int]:
    """The position in `available` of each class asked for, in the order asked.

    `place` names, for the message, where the classes were looked for. Raises UserError for no class at
    all, a class given twice and a name that is not available (with the nearest one that is).
    """
    if isinstance(classes, str):
        raise UserError(f"The classes must be a list of names, not the one word '{classes}': write [{classes}].")
    if not classes:
        raise UserError(f"No class is given. Those of {place}: {listing(available)}.")
    positions: list[int] = []
    for name in classes:
        if name not in available:
            hint = did_you_mean(name, available)
            raise UserError(f"{place} has no class '{name}'.{hint} Its classes: {listing(available)}.")
        position = list(available).index(name)
        if position in positions:
            raise UserError(f"The class '{name}' is given twice: each class may be given once.")
        positions.append(position)
    return positions


def listing(names: Sequence[str]) -> str:
    """`a, b, c`, cut off after twenty names; `none` for no names."""
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) or "none"
    left_out = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {left_out} more" if left_out > 0 else shown
