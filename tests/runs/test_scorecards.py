"""Tests of scorecards: as files, and combined, by hand."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from scipy.special import stdtrit

from pegasus_lightning.runs.scorecards import (
    CUTMIX,
    FILE,
    MEASURES,
    MODEL_MEASURES,
    PANEL_FOLDER,
    PEGASI,
    VERSION,
    Figure,
    Scorecard,
    Spread,
    difference,
    differs,
    format_figure,
    groups,
    is_outdated,
    newest_scorecard,
    over_seeds,
    read_scorecard,
    scorecards,
    with_panel,
    write_scorecard,
)
from pegasus_lightning.utils.errors import UserError

NAN = math.nan


def card(**changes: Any) -> Scorecard:
    plain = Scorecard(
        run="runs/first_light/acai-s3-0123abcd",
        name="acai, Pégase, s3",
        group="acai, Pégase",
        seed=3,
        batches=1200,
        classes=["horse", "bird"],
        key="0a1b",
        settings={"pairs": 2000, "threshold": 0.5, "recogniser": None, "seeds": [1, 2]},
        parents={"source": "cifar10", "split": "test"},
        recognisers={"reports": {"architecture": "air", "accuracy": 0.93}, "selects": None},
        rows={
            PEGASI: {"recognised": Figure(0.25, 0.125, 0.375), "linearity": Figure(NAN, NAN, NAN)},
            CUTMIX: {"recognised": Figure(0.5, 0.4, 0.7), "kid": Figure(-1 / 3, NAN, 0.0)},
        },
        counts={PEGASI: 2000, CUTMIX: 1999},
        model={"psnr": Figure(21.75, 21.5, 22.0), "line_distance": Figure(1e-7, 0.0, 1e-6)},
        alarms=["Two thirds of the pegasi are one image."],
    )
    return dataclasses.replace(plain, **changes)


def test_what_was_written_is_read_and_not_a_number_stays_so(tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_scorecard(path, card())
    read = read_scorecard(path)
    for name in ("run", "name", "group", "seed", "batches", "classes", "key", "settings", "parents", "recognisers"):
        assert getattr(read, name) == getattr(card(), name), name
    assert (read.counts, read.model, read.alarms) == (card().counts, card().model, card().alarms)
    assert [*read.rows] == [PEGASI, CUTMIX]  # pegasi first
    assert read.rows[PEGASI]["recognised"] == Figure(0.25, 0.125, 0.375)
    assert all(math.isnan(end) for end in read.rows[PEGASI]["linearity"])
    value, low, high = read.rows[CUTMIX]["kid"]
    assert (value, math.isnan(low), high) == (-1 / 3, True, 0.0)  # to the last bit; 0 is a value
    assert all(isinstance(figure, Figure) for row in [*read.rows.values(), read.model] for figure in row.values())
    write_scorecard(tmp_path / "again", read)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seed", [None, 0])
def test_a_card_without_seed_or_rows(seed: int | None, tmp_path: Path) -> None:
    bare = card(seed=seed, rows={}, counts={}, model={}, alarms=[])
    write_scorecard(tmp_path / FILE, bare)
    assert read_scorecard(tmp_path / FILE) == bare


def test_the_file_is_json_that_any_program_reads(tmp_path: Path) -> None:
    infinite = Figure(math.inf, -math.inf, NAN)
    write_scorecard(tmp_path / FILE, card(model={"excess_bce": infinite}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    assert content["version"] == VERSION
    assert content["rows"][PEGASI]["recognised"] == {"value": 0.25, "low": 0.125, "high": 0.375}
    assert content["rows"][PEGASI]["linearity"] == {"value": None, "low": None, "high": None}
    assert content["model"]["excess_bce"] == {"value": None, "low": None, "high": None}
    assert [*tmp_path.iterdir()] == [tmp_path / FILE]


def test_a_failed_write_leaves_the_old_scorecard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    write_scorecard(path, card(seed=1))
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pegasus_lightning.utils.files.os.replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_scorecard(path, card(seed=2))
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def damaged(change: Any, tmp_path: Path) -> Path:
    """A scorecard file whose content `change` altered."""
    path = tmp_path / FILE
    write_scorecard(path, card())
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))
    return path


FOREIGN = {
    "nothing in it": "{}",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "no JSON": "Pegasus",
    "empty": "",
    "another program's": '{"version": 1, "model": {}, "rows": {}}',
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(FOREIGN[name])
    with pytest.raises(UserError, match=r"scorecard\.json is not a scorecard .* evaluate the run again") as refused:
        read_scorecard(path)
    assert str(path) in str(refused.value)


CHANGES = {
    "no version": lambda content: content.pop("version"),
    "no key": lambda content: content.pop("key"),
    "a field too many": lambda content: content.update(colour="white"),
    "rows are a list": lambda content: content.update(rows=[1]),
    "a row is a number": lambda content: content["rows"].update({PEGASI: 2}),
    "no model": lambda content: content.pop("model"),
    "a figure is a number": lambda content: content["model"].update(psnr=21.0),
    "a figure without its end": lambda content: content["model"]["psnr"].pop("high"),
    "a figure is a word": lambda content: content["rows"][PEGASI]["recognised"].update(low="little"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_scorecard_is_refused_by_name(name: str, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        CHANGES[name](content)  # the return value of `pop` is ignored

    path = damaged(change, tmp_path)
    with pytest.raises(UserError, match="is not a scorecard") as refused:
        read_scorecard(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("version", [0, VERSION + 1, str(VERSION), None])
def test_another_version_is_refused_as_such(version: Any, tmp_path: Path) -> None:
    path = damaged(lambda content: content.update(version=version), tmp_path)
    with pytest.raises(UserError, match=r"another version: evaluate the run again") as refused:
        read_scorecard(path)
    assert str(path) in str(refused.value)


def test_figures_of_version_1_have_no_intervals(tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_scorecard(path, card())
    assert not is_outdated(path)
    older = damaged(lambda content: content.update(version=1), tmp_path)
    assert is_outdated(older)
    assert not is_outdated(tmp_path / "missing")
    found = read_scorecard(older)
    for row, figures in (*card().rows.items(), ("", card().model)):
        for name, figure in figures.items():
            old = found.rows[row][name] if row else found.model[name]
            assert old.value == figure.value or math.isnan(figure.value)
            assert math.isnan(old.low) and math.isnan(old.high)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_torn_file_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_scorecard(path, card())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="is not a scorecard") as refused:
        read_scorecard(path)
    assert str(path) in str(refused.value)
    path.write_bytes(b"\xff\xfe" + whole)
    with pytest.raises(UserError, match="is not text in UTF-8"):
        read_scorecard(path)


def test_what_is_not_there_or_is_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(UserError, match="is not a scorecard") as refused:
            read_scorecard(path)
        assert str(path) in str(refused.value)


def test_the_newest_scorecard_is_the_one_last_written(tmp_path: Path) -> None:
    run = tmp_path / "acai-s0 [1*]"  # the name is not a pattern
    assert newest_scorecard(run) is None
    (run / "evaluation").mkdir(parents=True)
    assert newest_scorecard(run) is None
    paths = [run / "evaluation" / name / FILE for name in ("b", "c", "a")]
    for age, path in zip((20, 30, 10), paths, strict=True):
        path.parent.mkdir()
        write_scorecard(path, card())
        os.utime(path, ns=(10**18, 10**18 - age))  # nanoseconds, which a float of seconds cannot separate
    for other in (run / FILE, run / "evaluation" / FILE, run / "evaluation" / "a" / "deeper" / FILE):
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")  # newer, but in another place
    (run / "evaluation" / "unfinished").mkdir()
    assert newest_scorecard(run) == paths[2]
    os.utime(paths[1], ns=(10**18, 10**18))
    assert newest_scorecard(run) == paths[1]
    os.utime(paths[0], ns=(10**18, 10**18))
    assert newest_scorecard(run) == paths[1]  # of equal age: the last by name, not in the order of the disk


def test_one_seed_s_interval_is_its_own() -> None:
    mean, low, high, spread, values = over_seeds([Figure(0.4, 0.3, 0.7)])
    assert (mean, low, high, values) == (0.4, 0.3, 0.7, (0.4,))
    assert math.isnan(spread)


def test_seeds_have_the_interval_of_students_t() -> None:
    # Mean 2, deviation 1 (over n - 1); t is 4.302653 at 2 degrees of freedom. The images' own intervals play no part.
    found = over_seeds([Figure(value, value - 9, value + 9) for value in (3.0, 1.0, 2.0)])
    assert found.values == (3.0, 1.0, 2.0)
    assert (found.mean, found.spread) == pytest.approx((2, 1))
    half = 4.302653 / math.sqrt(3)
    assert (found.low, found.high, found.half) == pytest.approx((2 - half, 2 + half, half))
    two = over_seeds([Figure(1.0, NAN, NAN), Figure(3.0, NAN, NAN)])
    assert two.half == pytest.approx(12.706205 * math.sqrt(2) / math.sqrt(2))


def test_seeds_that_agree_have_the_interval_of_their_images() -> None:
    found = over_seeds([Figure(0.1, 0.0, 0.3), Figure(0.1 + 1e-9, 0.0, 0.5), Figure(0.1, 0.0, 0.4)])
    assert found[:4] == pytest.approx((0.1, 0.0, 0.4, 0))
    assert found.half == pytest.approx(0.3)  # the larger side


def test_a_seed_without_the_figure_leaves_its_mean_undefined() -> None:
    found = over_seeds([Figure(1.0, 0.5, 1.5), Figure(NAN, NAN, NAN)])
    assert all(math.isnan(number) for number in found[:4])


def spread_of(*values: float) -> Spread:
    return over_seeds([Figure(value, NAN, NAN) for value in values])


def test_a_difference_has_the_interval_of_welch() -> None:
    # Variances 1 and 16, three and four seeds: error sqrt(1/3 + 4), (1/3 + 4)^2 / ((1/3)^2 / 2 + 4^2 / 3) degrees.
    one, other = spread_of(1.0, 2.0, 3.0), spread_of(6.0, 6.0, 6.0 + 4 * 6**0.5 / 2, 6.0 - 4 * 6**0.5 / 2)
    assert other.spread == pytest.approx(4)
    degrees = (1 / 3 + 4) ** 2 / ((1 / 3) ** 2 / 2 + 4**2 / 3)
    half = stdtrit(degrees, 0.975) * math.sqrt(1 / 3 + 4)
    assert difference(one, other) == pytest.approx((-4, -4 - half, -4 + half), rel=1e-4)
    assert difference(other, one) == pytest.approx((4, 4 - half, 4 + half), rel=1e-4)


def test_a_single_seed_has_a_difference_without_an_interval() -> None:
    for one, other in ((spread_of(1.0), spread_of(2.0, 3.0, 4.0)), (spread_of(1.0, 1.0), spread_of(2.0, 2.0))):
        value, low, high = difference(one, other)
        assert value == one.mean - other.mean
        assert math.isnan(low) and math.isnan(high)
        assert not differs(one, other)


def test_a_side_whose_seeds_agree_has_the_error_of_its_images() -> None:
    none = over_seeds([Figure(0.0, 0.0, 0.002)] * 3)  # of its images: .002 / 1.96
    some = spread_of(0.003, 0.003, 0.0033)  # variance 3e-8, over three
    parts = (0.002 / 1.959964) ** 2, 3e-8 / 3
    degrees = sum(parts) ** 2 / (parts[1] ** 2 / 2)
    half = stdtrit(degrees, 0.975) * math.sqrt(sum(parts))
    assert difference(some, none) == pytest.approx((0.0031, 0.0031 - half, 0.0031 + half), rel=1e-4)
    assert differs(some, none)
    assert not differs(spread_of(0.001, 0.001, 0.0013), none)


def test_there_is_no_verdict_under_three_seeds_on_either_side() -> None:
    three, four, two = spread_of(1.0, 1.1, 1.2), spread_of(5.0, 5.1, 5.2, 5.1), spread_of(9.0, 9.001)
    assert differs(three, four) and differs(four, three)
    assert not differs(three, spread_of(1.1, 1.2, 1.4))  # an interval that holds 0
    for other in (three, four):
        assert difference(two, other).low > 0 and not differs(two, other) and not differs(other, two)


def test_groups_are_runs_that_differ_in_their_seed_alone() -> None:
    cards = [card(group=group, seed=seed) for group, seed in (("vae", 2), ("acai", 10), ("vae", 0), ("acai", 9))]
    found = groups(cards)
    assert [*found] == ["vae", "acai"]  # in the given order
    assert [member.seed for member in found["vae"]] == [0, 2]
    assert [member.seed for member in found["acai"]] == [9, 10]  # sorted as numbers, not as text
    assert found["vae"] == [cards[2], cards[0]]
    assert [member.seed for member in groups([card(seed=1), card(seed=None)])["acai, Pégase"]] == [None, 1]
    assert groups([]) == {}


def test_cards_of_other_keys_lengths_or_settings_are_other_groups() -> None:
    cards = [
        card(group="vae", key="aa", seed=1),
        card(group="vae", key="bb", seed=0),
        card(group="acai", key="bb", seed=0),
        card(group="vae", key="aa", seed=0),
    ]
    found = groups(cards)
    assert [*found] == ["vae (aa)", "vae (bb)", "acai"]
    assert [*found.values()] == [[cards[3], cards[0]], [cards[1]], [cards[2]]]
    longer = groups([card(group="vae", seed=0), card(group="vae", seed=1, batches=600)])
    assert [*longer] == ["vae (batch 1200)", "vae (batch 600)"]
    variants = ("1234567890", "abcdefabcd")
    found = groups([card(group="vae", variant=variant, seed=seed) for variant in variants for seed in (1, 0)])
    assert [*found] == ["vae (12345678)", "vae (abcdefab)"]
    assert [[member.seed for member in members] for members in found.values()] == [[0, 1], [0, 1]]


def test_figures_are_written_as_their_measure_says() -> None:
    assert format_figure(MEASURES["recognised"], 0.12345) == "12.3%"
    assert format_figure(MEASURES["p_first"], 0.126) == "0.13"
    assert format_figure(MEASURES["kid"], -0.0625) == "-0.062"
    assert format_figure(MODEL_MEASURES["excess_bce"], 81.26) == "81.3"
    assert format_figure(MODEL_MEASURES["line_distance"], 0.00024) == "0.00024"
    assert format_figure(MEASURES["variety"], NAN) == "-"
    assert format_figure(MEASURES["variety"], 0.0) == "0.000"
    # No minus before a zero.
    assert format_figure(MEASURES["kid"], -0.0001) == "0.000"
    assert format_figure(MEASURES["kid"], -0.0006) == "-0.001"
    assert format_figure(MEASURES["recognised"], -0.0001) == "0.0%"


def test_every_measure_can_be_written_and_told() -> None:
    assert not MEASURES.keys() & MODEL_MEASURES.keys()
    for name, measure in (MEASURES | MODEL_MEASURES).items():
        float(format_figure(measure, 0.5).rstrip("%"))
        assert measure.better in ("higher", "lower", ""), name
        assert measure.meaning.endswith("."), name
    for measures in (MEASURES, MODEL_MEASURES):  # no two columns of a table share a head
        assert len({measure.title for measure in measures.values()}) == len(measures)


def test_what_a_panel_said_of_the_same_pegasi_stands_in_the_scorecard(tmp_path: Path) -> None:
    settings = {"pegasus": {"pairs": "colour"}, "search": {"method": "none"}, "count": 2000}
    plain = card(settings=settings)
    assert with_panel(plain, tmp_path) == plain
    shares = {letter: {"value": i / 10, "low": i / 20, "high": i / 5} for i, letter in enumerate("HRWBON")}
    row = shares | {"realism": {"value": 2.5, "low": 2.0, "high": 3.0}, "pictures": 30}
    asked = {"pegasus": settings["pegasus"], "search": settings["search"]}
    record = {"batches": 1200, "parents": plain.parents, "settings": asked, "pegasi": "mine", "rows": {"mine": row}}
    folder = tmp_path / PANEL_FOLDER
    folder.mkdir()

    def write(name: str, time: int, **changes: Any) -> None:
        (folder / name).write_text(json.dumps(record | changes))
        os.utime(folder / name, (time, time))

    wrong: dict[str, Any] = {"rows": {"mine": row | {"W": {"value": 0.9, "low": 0.8, "high": 1.0}}}}
    write("a.json", 1, **wrong)
    write("b.json", 2)
    write("c.json", 3, **wrong, batches=1000)  # of other weights
    write("d.json", 4, **wrong, settings=asked | {"search": {"method": "guided"}})  # asked in another way
    write("e.json", 5, pegasi="nobody")
    write("g.json", 6, **wrong, parents={"source": "cifar10", "split": "train"})
    write("h.json", 7, **wrong, settings=asked | {"count": 30})  # the best of as many are better
    (folder / "f.json").write_text("{")
    found = with_panel(plain, tmp_path).rows[PEGASI]
    assert found["panel_winged"] == Figure(0.2, 0.1, 0.4)
    assert found["panel_second"] == Figure(0.3, 0.15, 0.6)
    assert found["panel_nothing"] == Figure(0.5, 0.25, 1.0)
    assert found["panel_realism"] == Figure(2.5, 2.0, 3.0)
    assert found["panel_first"].value == pytest.approx(0.1) and math.isnan(found["panel_first"].low)
    assert found["recognised"] == plain.rows[PEGASI]["recognised"]
    assert set(found) <= set(MEASURES)


def test_what_a_killed_evaluation_left_is_no_scorecard(tmp_path: Path) -> None:
    for folder in ("evaluation/colour-s0", "evaluation/.colour-s0.0123abcd.tmp"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "scorecard.json").write_text("{}")
    assert scorecards(tmp_path) == [tmp_path / "evaluation" / "colour-s0" / "scorecard.json"]
