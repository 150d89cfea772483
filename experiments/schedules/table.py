"""Table of experiments/schedules, from the final figures of a folder of runs whose names are their settings.

    python experiments/schedules/table.py runs/schedules

Prints the mean over seeds of every setting (± half of a 95 % interval by Student's t) and its difference to the control
(Welch's interval; bold: a verdict, with three seeds on both sides). A row `x/y` is x beside its own control y.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from pegasus_lightning.runs.catalogue import Entry, read_catalogue
from pegasus_lightning.runs.scorecards import Figure, Spread, difference, differs, over_seeds

COLUMNS = {"final/psnr": 2, "final/excess_bce": 1, "final/kl": 1, "final/active_dimensions": 0}
COLUMNS |= {"final/critic_real": 3, "final/critic_fake": 3}
CONTROL, OWN = "control", {"r3gan": "plain_critic", "wgan_gp": "plain_critic"}


def spread(entries: list[Entry], tag: str) -> Spread:
    """Return the mean of a figure over seeds, with its interval."""
    return over_seeds([Figure(*[entry.figures[tag]] * 3) for entry in entries])


def main(place: str) -> None:
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in read_catalogue([place]):
        if entry.state == "finished":
            found[str(entry.config["run_name"])].append(entry)
    print("| setting (seeds) | " + " | ".join(tag.removeprefix("final/") for tag in COLUMNS) + " |")
    print("| --- " * (len(COLUMNS) + 1) + "|")
    for name, entries in found.items():
        cells = [f"{(s := spread(entries, tag)).mean:.{d}f} ± {s.half:.{d}f}" for tag, d in COLUMNS.items()]
        print(f"| {name} ({len(entries)}) | " + " | ".join(cells) + " |")
    print("\nDifference to the control\n")
    for name, entries in found.items():
        control = OWN.get(name, CONTROL)
        if name == CONTROL or control not in found:
            continue
        cells = []
        for tag, digits in COLUMNS.items():
            one, other = spread(entries, tag), spread(found[control], tag)
            figure = difference(one, other)
            text = f"{figure.value:+.{digits}f} ± {figure.half:.{digits}f}"
            cells.append(f"**{text}**" if differs(one, other) else text)
        print(f"| {name}/{control} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
