"""Tests of the pictures that winged judges learn from, and of the judges' place in the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from shapes import write_photographs
from torch import Tensor

from pegasus_lightning.data.batches import ImageSet
from pegasus_lightning.data.module import load_split
from pegasus_lightning.data.parts import find_parts
from pegasus_lightning.recognisers import store as store_module
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.store import RecogniserStore
from pegasus_lightning.recognisers.training import winged_recipe
from pegasus_lightning.recognisers.winged import GUIDES, REPORTS, SELECTS, chimera_name, winged_kinds
from pegasus_lightning.utils.errors import UserError

KINDS = ["horse", "horse with parts of bird", "drawn rider", "patch on the back", "limb elsewhere"]
KINDS += ["bird", "pixel average", "CutMix"]


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
    for name, target in zip(KINDS, (1, 1, 1, 1, 1, 0, 0.5, 0.5), strict=True):
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


def test_thirds_and_what_is_held_out_share_no_photograph(photographs: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs that cannot be composed stand between the others, so that a rank is not an index."""
    whole = load_split(photographs, "train")
    noise = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    horses, birds = whole.images[:45], whole.images[45:]
    horses = torch.cat([noise[:7], horses[:10], noise[7:12], horses[10:]])
    birds = torch.cat([birds[:5], noise[12:], birds[5:]])
    labels = torch.tensor([0] * len(horses) + [1] * len(birds))
    data = ImageSet(torch.cat([horses, birds]), labels, ("horse", "bird"))
    used: list[dict[str, set[bytes]]] = []
    real_compose, real_some = winged.compose, winged._some

    def compose(bodies, limbs, *arguments, **options):  # type: ignore[no-untyped-def]
        used[-1]["horses"] |= {image.numpy().tobytes() for image in bodies.images}
        if len(limbs) and any(torch.equal(limbs.pixels[0], cut) for cut in every_limb):
            used[-1]["limbs"] |= {cut.numpy().tobytes() for cut in limbs.pixels}
        return real_compose(bodies, limbs, *arguments, **options)

    def some(images, *arguments):  # type: ignore[no-untyped-def]
        known = {image.numpy().tobytes() for image in images}
        used[-1]["horses"] |= known & every_horse
        used[-1]["birds"] |= known & every_bird
        return real_some(images, *arguments)

    every_limb = find_parts(data).limbs.pixels
    every_horse, every_bird = ({image.numpy().tobytes() for image in images} for images in (horses, birds))
    monkeypatch.setattr(winged, "compose", compose)
    monkeypatch.setattr(winged, "_some", some)
    for third in (GUIDES, SELECTS, REPORTS):
        for held_out in (False, True):
            used.append({"horses": set(), "birds": set(), "limbs": set()})
            winged_kinds(data, third=third, held_out=held_out, size=40)
    for kind in ("horses", "birds", "limbs"):
        sets = [one[kind] for one in used]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets))  # no two share any
    assert set.union(*(one["horses"] for one in used)) == every_horse


def test_each_third_has_edges_of_its_own() -> None:
    every = [edge for third in (GUIDES, SELECTS, REPORTS) for edge in winged.EDGES_OF[third]]
    assert sorted(every) == sorted(set(every)) == sorted(winged.EDGES)


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
