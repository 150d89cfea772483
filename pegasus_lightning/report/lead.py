"""What the page begins with: one sentence on all models, and one on each beside its pegasi."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pegasus_lightning.report.comparison import Comparison, plain
from pegasus_lightning.report.read import Run, printable
from pegasus_lightning.runs.scorecards import MEASURES, PEGASI, PIXEL_AVERAGE, VERDICT_SEEDS, Spread, shown_ends

MAX_LEAD = 12  # most models that the page begins with
PSNR = "validation/psnr"
# Measures that the sentences name, in this order: of one set of images, and of all models.
OF_ONE = {
    "panel_winged": "called winged by a panel in {}",
    "winged": "winged in {}",
    "recognised": "both classes seen in {}",
    "kid": "KID* {}",
}
OF_ALL = {"winged": "The winged judge finds wings in {}", "recognised": "The recogniser sees both classes in {}"}


@dataclass(frozen=True)
class Model:
    """A group of runs that differ in their seed alone."""

    name: str
    runs: list[Run]
    sentence: str
    rank: tuple[int, float]  # ascending, the best model first

    @property
    def shown(self) -> Run:
        """The run whose pegasi are shown."""
        pictured = [run for run in self.runs if run.gallery or run.drawn]
        return next((run for run in pictured if run.complete), (pictured or self.runs)[0])


def models(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[Model]:
    """Return all models, those with a scorecard first, the best first."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.group, []).append(run)
    return sorted((_model(name, members, comparisons) for name, members in grouped.items()), key=lambda one: one.rank)


def shorter(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str], list[str]]:
    """Return runs whose names leave out the settings that all share, the new names of the groups, and these settings.

    So `vae,channels=16` and `acai,channels=16` become `vae` and `acai`.
    """
    parts = {run.group: run.group.split(",") for run in runs}
    common = [set(words[1:]) for words in parts.values()]
    shared = set.intersection(*common) if len(common) > 1 else set()
    short = {name: ",".join([words[0], *(w for w in words[1:] if w not in shared)]) for name, words in parts.items()}
    if not shared or len({*short.values()}) < len(short):
        return list(runs), {name: name for name in parts}, []
    renamed = []
    for run in runs:
        name = short[run.group] + run.name[len(run.group) :] if run.name.startswith(run.group) else run.name
        cards = {
            k: (path, replace(card, group=short.get(card.group, card.group))) for k, (path, card) in run.cards.items()
        }
        card = cards[run.card.key][1] if run.card else None
        renamed.append(replace(run, name=name, group=short[run.group], cards=cards, card=card))
    return renamed, short, [word for word in next(iter(parts.values())) if word in shared]


def _model(name: str, runs: list[Run], comparisons: Sequence[Comparison]) -> Model:
    rows = [
        (comparison, row)
        for comparison in comparisons
        for row, cards in comparison.cards.items()
        if any(card is run.card for run in runs for card in cards)
    ]
    psnr, found = _psnr(runs)
    if not rows:
        parts = [found, _states(runs)]
        return Model(name, runs, _sentence([part for part in parts if part]), (len(comparisons), _order(psnr)))
    comparison, row = rows[0]
    cards, spreads = comparison.cards[row], comparison.spreads[row]
    parts = [figures(spreads, cards[0].counts.get(PEGASI)), f"{len(cards)} seeds" if len(cards) > 1 else "one seed"]
    parts += [_states(runs)] * (not all(run.complete for run in runs))
    rank = comparisons.index(comparison), [one.name for one in comparison.pegasi.rows].index(row)
    return Model(name, runs, _sentence([part for part in parts if part]), rank)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else -value


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def figures(spreads: Mapping[str, Spread], count: int | None = None) -> str:
    """Return the figures of a set of images, with their 95 % intervals.

    The first share of the evaluation, not of a panel, has the number of images beside it.
    """
    parts = []
    for key, words in OF_ONE.items():
        if _known(spreads.get(key)):
            parts.append(words.format(_value(key, spreads[key])))
            if count and "%" in parts[-1] and not key.startswith("panel_"):
                parts[-1], count = f"{parts[-1]} of {count:,}", None
    return "; ".join(parts)


def _known(spread: Spread | None) -> bool:
    return spread is not None and not math.isnan(spread.mean)


def _value(key: str, spread: Spread) -> str:
    """Return `3.0% (2.3 to 3.8)`."""
    measure = MEASURES[key]
    written = plain(measure, spread.mean)
    low, high = (plain(measure, end).rstrip("%") for end in shown_ends(measure, spread.low, spread.high))
    return f"{written} ({low} to {high})" if math.isfinite(spread.low + spread.high) else written


def _psnr(runs: Sequence[Run]) -> tuple[float, str]:
    """Return the mean PSNR on the validation images, and what is said of it and of the epochs."""
    values = [value for run in runs if not math.isnan(value := run.last(PSNR))]
    mean = sum(values) / len(values) if values else math.nan
    epochs = _range([int(run.said("epochs")) for run in runs if run.said("epochs").isdecimal()])
    after = f" after {epochs} epoch{'s' * (epochs != '1')}" if epochs else ""
    over = f" ({min(values):.2f} to {max(values):.2f} over {len(values)} seeds)" if len(values) > 1 else ""
    return mean, f"validation PSNR {mean:.2f} dB{over}{after}" if values else f"no validation PSNR{after}"


def _range(values: Sequence[int]) -> str:
    return "" if not values else f"{min(values)}" + (f" to {max(values)}" if max(values) > min(values) else "")


def _states(runs: Sequence[Run]) -> str:
    """Return how many runs ended how, with the cause of the first one that did not finish."""
    counted = Counter(run.state for run in runs)
    said = ", ".join(state if len(runs) == 1 else f"{count} {state}" for state, count in counted.items())
    cause = next((run.cause for run in runs if run.state != "finished" and run.cause), "")
    return f"{said}: {printable(cause, 200)}" if cause else said


def headline(runs: Sequence[Run], comparisons: Sequence[Comparison], shown: Sequence[Model]) -> str:
    """Return the page's message, made of figures: what the models reach beside the control, or how far they trained."""
    sentences = []
    waiting = sum(run.card is None for run in runs)
    if comparisons:
        sentences += _of_all(comparisons[0])
    if waiting:
        none = "Not evaluated: no figure says yet how good these pegasi are." if waiting == len(runs) else ""
        sentences.append(none or f"{waiting} of {len(runs)} runs are not evaluated.")
    known = [(value, model.name) for model in shown if not math.isnan(value := _psnr(model.runs)[0])]
    if not comparisons and len(shown) > 1 and known:
        (low, worst), (high, best) = min(known), max(known)
        sentences.append(f"Validation PSNR: {low:.2f} dB ({worst}) to {high:.2f} dB ({best}).")
    if len(runs) > 1 and not all(run.complete for run in runs):
        states = Counter(run.state for run in runs)
        sentences.append(f"Of {len(runs)} runs " + ", ".join(f"{n} {state}" for state, n in states.items()) + ".")
    return " ".join(sentences)


def _of_all(comparison: Comparison) -> list[str]:
    names, seeds = [*comparison.cards], min(map(len, comparison.cards.values()))
    counts = {card.counts.get(PEGASI) for cards in comparison.cards.values() for card in cards}
    count = f"{number:,} " if len(counts) == 1 and (number := counts.pop()) else ""
    sentences: list[str] = []
    for key, words in OF_ALL.items():
        values = {name: comparison.spreads[name].get(key) for name in names}
        found = sorted((spread.mean, name) for name, spread in values.items() if spread and _known(spread))
        if not found:
            continue
        low, high = (plain(MEASURES[key], mean) for mean, _ in (found[0], found[-1]))
        share = low if low == high else f"{low} ({found[0][1]}) to {high} ({found[-1][1]})"
        if len(found) == 1:
            share = _value(key, comparison.spreads[found[0][1]][key])
        control = comparison.spreads.get(PIXEL_AVERAGE, {}).get(key)
        whose = "these averages" if sentences else "the pixel averages of their parents"
        beside = f", and in {_value(key, control)} of {whose}" if control and _known(control) else ""
        counted = "" if key.startswith("panel_") else count
        each = "" if sentences else f" of {counted}pegasi" + " of each run" * (len(names) > 1)
        sentences.append(f"{words.format(share)}{each}{beside}.")
    if sentences and len(names) > 1 and seeds < VERDICT_SEEDS:
        sentences.append(f"A model has fewer than {VERDICT_SEEDS} seeds, so the order may be chance.")
    return sentences


def control_sentence(comparisons: Sequence[Comparison]) -> str:
    """Return the figures of the pixel averages as a sentence; empty without any."""
    found = figures(comparisons[0].spreads.get(PIXEL_AVERAGE, {})) if comparisons else ""
    return found and _sentence([found])
