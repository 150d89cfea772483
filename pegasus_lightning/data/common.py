"""Checks of class names and splits that all data sources share."""

from __future__ import annotations

from collections.abc import Sequence

from pegasus_lightning.utils.errors import UserError, did_you_mean, listing

SPLITS = ("train", "test")


def check_split(split: str) -> None:
    """Raise UserError unless `split` is "train" or "test"."""
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}': it is one of {listing(SPLITS)}.{did_you_mean(split, SPLITS)}")


def index_classes(classes: Sequence[str], available: Sequence[str], place: str) -> list[int]:
    """Return the position in `available` of each of `classes`; `place` names the source in error messages.

    Raise UserError for no class, a class given twice, or an unknown class (with the nearest known name).
    """
    if isinstance(classes, str):
        raise UserError(f"The classes must be a list of names, not the single name '{classes}': write [{classes}].")
    if not classes:
        raise UserError(f"No class is given. Classes of {place}: {listing(available)}.")
    for number, name in enumerate(classes):
        if name not in available:
            hint = did_you_mean(name, available)
            raise UserError(f"{place} has no class '{name}'.{hint} Its classes: {listing(available)}.")
        if name in classes[:number]:
            raise UserError(f"The class '{name}' is given twice: each class may be given once.")
    return [list(available).index(name) for name in classes]
