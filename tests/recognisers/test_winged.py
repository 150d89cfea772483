"""Tests of the pictures that winged judges learn from, and of the judges' place in the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from shapes import write_photographs
from torch import Tensor

from pegasus_lightning.data.compositions import find_parts
from pegasus_lightning.data.module import load_split
from pegasus_lightning.recognisers import store as store_module
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import winged_recipe
from pegasus_lightning.recognisers.winged import GUIDES, REPORTS, SELECTS, chimera_name, winged_kinds
from pegasus_lightning.utils.errors import UserError

KINDS = ["horse", "horse with parts of bird", "load", "patch", "beside", "bird", "pixel average", "CutMix"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> object:
    root = write_photographs(tmp_path_factory.mktemp("photographs"), {"train": 45, "test": 6})
    cache = str(tmp_path_factory.mktemp("cache"))
    return OmegaConf.create({"source": "image_folder", "root": str(root), "classes": ["horse", "bird"], "cache": cache})


def test_only_what_carries_a_limb_is_winged_and_shares_are_as_said(photographs: object) -> None:
    kinds = winged_kinds(load_split(photographs, "train"), size=80)
    assert list(kinds.names) == [*KINDS, "reconstructions"]
    assert kinds.kinds.bincount().tolist() == [60, 80, 20, 60, 30, 30, 16, 16, 60]
    carries = kinds.targets[:, 1] == 1
    assert torch.equal(carries, kinds.kinds == 1)
    wanted = {"horse": 1.0, "load": 1.0, "patch": 1.0, "beside": 1.0, "bird": 0.0, "pixel average": 0.5, "CutMix": 0.5}
    for name, target in wanted.items():
        assert (kinds.targets[kinds.kinds == KINDS.index(name), 0] == target).all()


def test_models_reconstruct_everything_but_what_carries_a_limb(photographs: object) -> None:
    seen: list[Tensor] = []

    def grey(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.full_like(images.float(), 0.25)

    data = load_split(photographs, "train")
    kinds = winged_kinds(data, size=80, reconstruct=[grey])
    rebuilt = kinds.images[kinds.kinds == len(KINDS)]
    assert (rebuilt == 64).flatten(1).all(1).sum() == 12  # a fifth of 60: four numbers of components, and this model
    chimeras = winged_kinds(data, size=80).images[80:]  # the same pictures, some softened
    given = {image.numpy().tobytes() for image in torch.cat(seen)}
    assert len(given) > 6
    assert not given & {image.numpy().tobytes() for image in chimeras[:80]}


def test_thirds_and_what_is_held_out_share_no_body_and_no_donor(
    photographs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_split(photographs, "train")
    owners: list[set[tuple[str, int]]] = []
    real = winged.compose

    def spy(bodies, limbs, count, seed, **options):  # type: ignore[no-untyped-def]
        owners[-1] |= {("body", i) for i in bodies.owners.tolist()}
        if len(limbs) < 30 and count == 20:  # of the photographs' limbs; loads and patches are drawn
            owners[-1] |= {("donor", i) for i in limbs.donors.tolist()}
        return real(bodies, limbs, count, seed, **options)

    monkeypatch.setattr(winged, "compose", spy)
    for third in (GUIDES, SELECTS, REPORTS):
        for held_out in (False, True):
            owners.append(set())
            winged_kinds(data, third=third, held_out=held_out, size=40)
    for i, one in enumerate(owners):
        assert len([kind for kind, _ in one if kind == "body"]) == (3 if i % 2 else 12)
        for other in owners[:i]:
            assert not {name for name in one if name[0] == "body"} & other
    parts = find_parts(data)
    assert set.union(*owners) >= {("body", i) for i in parts.bodies.owners.tolist()}


def test_each_third_has_edges_of_its_own() -> None:
    every = [edge for third in (GUIDES, SELECTS, REPORTS) for edge in winged.EDGES_OF[third]]
    assert sorted(every) == sorted(set(every)) == sorted(winged.EDGES)


def test_a_third_shares_all_photographs_with_no_other_however_it_is_drawn(photographs: object) -> None:
    data = load_split(photographs, "train")
    birds = [winged_kinds(data, third=third, size=40).images for third in (GUIDES, REPORTS)]
    first, second = ({image.numpy().tobytes() for image in images} for images in birds)
    assert not first & second


def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    root = write_photographs(tmp_path, {"train": 4})
    config = OmegaConf.create(
        {"source": "image_folder", "root": str(root), "classes": ["horse", "bird"], "cache": str(tmp_path / "cache")}
    )
    with pytest.raises(UserError, match=r"too few photographs of horse .* at least 15 of each class"):
        winged_kinds(load_split(config, "train"), third=0, held_out=True, size=40)


def test_a_winged_judge_is_trained_once_measured_on_other_edges_and_kept(
    photographs: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("TRAIN", "HELD", "TEST"):
        monkeypatch.setattr(store_module, f"{part}_COMPOSITIONS", 40)
    edges: list[str] = []
    real = winged.compose

    def spy(*arguments, edge="soft", **options):  # type: ignore[no-untyped-def]
        edges.append(edge)
        return real(*arguments, edge=edge, **options)

    monkeypatch.setattr(winged, "compose", spy)
    recipe = dataclasses.replace(winged_recipe("residual", REPORTS), least=40, most=40, batch_size=20)
    lines: list[str] = []
    judges = RecogniserStore(tmp_path, say=lines.append)
    assert judges.find(photographs, recipe) is None
    assert edges == []  # nothing is composed to look
    first = judges.get(photographs, recipe)
    assert set(edges) == set(winged.EDGES)  # its own to learn, the others to be measured on
    assert first.recogniser.classes == ("horse", chimera_name(("horse", "bird")))
    assert set(first.quality["both"]) == {*KINDS, "reconstructions"}
    edges.clear()
    again = judges.get(photographs, recipe)
    assert edges == [] and again.path == first.path and len(lines) == 2
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.recogniser(images), first.recogniser(images))
    others = [
        judges._lessons(photographs, winged_recipe("residual", SELECTS)).path,
        dataclasses.replace(judges, reconstruct={"abc": lambda images: images})._lessons(photographs, recipe).path,
    ]
    assert len({first.path, *others}) == 3
