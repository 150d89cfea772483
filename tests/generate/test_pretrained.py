"""Tests of the model that comes with the package: its file is written, read back, and refused if it is another."""

from pathlib import Path

import pytest
import torch

from pegasus_lightning.generate import pretrained
from pegasus_lightning.generate.pairs import Parents
from pegasus_lightning.generate.pretrained import head_of_pretrained, open_pretrained, pack, read_pretrained
from pegasus_lightning.models import model_class
from pegasus_lightning.recognisers.committee import Committee
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.utils.errors import UserError

CONFIG = {
    "networks": {"channels": 4, "latent_dim": 16, "latent": "spatial", "decoder": "residual"},
    "ema_decay": 0.9,
    "learned_mixing": True,
}


def parents(count: int = 40) -> Parents:
    random = torch.Generator().manual_seed(3)
    first, second = (torch.randint(0, 256, (count, 3, 32, 32), generator=random).to(torch.uint8) for _ in range(2))
    return Parents(first, second, ("cat", "ship"))


@pytest.fixture
def model():
    made = model_class("pegasus")(CONFIG, seed=5, classes=["cat", "ship"])
    with torch.no_grad():
        for parameter in made.averaged.parameters():  # averages that differ from the weights
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made.batches_done = 7
    return made.eval()


@pytest.fixture
def committee() -> Committee:
    return Committee([Recogniser(name, ("cat", "ship"), kinds=5, seed=2) for name in ("plain", "averaging")])


@pytest.fixture
def packed(model, committee, tmp_path: Path) -> Path:
    pack(model, committee, parents(), {"trained_from": "noise"}, tmp_path / "pegasus.safetensors")
    return tmp_path / "pegasus.safetensors"


def test_what_is_read_back_is_the_model_and_its_guide(model, committee, packed: Path) -> None:
    found = read_pretrained(packed, "pegasus")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    read = found.run.model
    with torch.no_grad():
        codes = model.encode(images).mean
        torch.testing.assert_close(read.encode(images).mean, codes)
        ratios = torch.tensor([0.2, 0.5, 0.9])
        torch.testing.assert_close(read.mix(codes, codes.flip(0), ratios), model.mix(codes, codes.flip(0), ratios))
        torch.testing.assert_close(read.decode(codes), model.decode(codes))
        torch.testing.assert_close(read.critic(images), model.critic(images))
        torch.testing.assert_close(found.committee(images), committee(images))
    assert (found.run.name, found.run.classes, read.batches_done) == ("pegasus", ["cat", "ship"], 7)


def test_a_model_without_mixing_averages_or_critic_can_be_packed_too(committee, tmp_path: Path) -> None:
    model = model_class("vae")({"networks": {"channels": 4, "latent_dim": 16}}, seed=5, classes=["cat", "ship"]).eval()
    pack(model, committee, parents(), {}, tmp_path / "vae.safetensors")
    read = read_pretrained(tmp_path / "vae.safetensors", "vae").run.model
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(read.encode(images).mean, model.encode(images).mean)
    assert (read.critic, read.mixer) == (None, None)


def test_a_guide_that_lacks_a_weight_is_refused(model, committee, tmp_path: Path) -> None:
    """Else a random weight would guide."""
    del committee.members[1].head.bias
    pack(model, committee, parents(), {}, tmp_path / "pegasus.safetensors")
    with pytest.raises(UserError, match="is no model of this package"):
        read_pretrained(tmp_path / "pegasus.safetensors", "pegasus")


def test_the_same_model_gives_the_same_bytes(model, committee, packed: Path, tmp_path: Path) -> None:
    again = pack(model, committee, parents(), {"trained_from": "noise"}, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()
    assert again == pretrained.sha256(packed)


def test_the_codes_are_the_posteriors_of_the_parents(model, packed: Path) -> None:
    found = read_pretrained(packed, "pegasus")
    for images, (means, deviations) in zip((parents().first, parents().second), found.codes, strict=True):
        with torch.no_grad():
            posterior = model.encode(images.float() / 255)
        torch.testing.assert_close(means, posterior.mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deviations, (posterior.log_variance / 2).exp(), rtol=1e-3, atol=1e-3)


def test_drawn_parents_are_decoded_from_their_own_classs_codes(model, packed: Path) -> None:
    found = read_pretrained(packed, "pegasus")
    means, still = torch.full((2, 16), 5.0) * torch.tensor([[1.0], [2.0]]), torch.zeros(2, 16)
    narrow = pretrained.PretrainedModel(found.run, found.committee, [(means, still), (-means, still)])
    made = narrow.sample_parents(4, seed=0)  # both parents of each class twice
    with torch.no_grad():
        wanted = [(model.decode(codes) * 255).round() for codes in (means, -means)]
    for images, own in zip((made.first, made.second), wanted, strict=True):
        apart = (images.float()[:, None] - own).abs().flatten(2).amax(2)
        assert (apart <= 1).sum(0).tolist() == [2, 2]
    assert made.classes == ("cat", "ship")
    free = found.sample_parents(4, seed=1)
    assert torch.equal(free.first, found.sample_parents(4, seed=1).first)
    assert not torch.equal(free.first, found.sample_parents(4, seed=2).first)


def test_the_head_knows_the_networks_whatever_judges_come_with_them(
    model, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", packed.parent)
    classes, digest = head_of_pretrained("pegasus")
    assert (classes, len(digest)) == (["cat", "ship"], 64)
    others = Committee([Recogniser("plain", ("cat", "ship"), kinds=5, seed=3)])
    pack(model, others, parents(20), {}, packed)
    assert head_of_pretrained("pegasus") == (classes, digest)
    with torch.no_grad():
        next(model.averaged["mixer"].parameters()).add_(0.1)
    pack(model, others, parents(20), {}, packed)
    assert head_of_pretrained("pegasus")[1] != digest
    packed.unlink()
    assert head_of_pretrained("pegasus") == ([], "")


def test_a_file_that_is_not_the_one_known_is_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", packed.parent)
    monkeypatch.setattr(pretrained, "PRETRAINED", {"pegasus": pretrained.sha256(packed)})
    assert open_pretrained("pegasus").run.model.batches_done == 7
    with pytest.raises(UserError, match=r"pretrained=pegasis is none of pegasus"):
        open_pretrained("pegasis")
    content = bytearray(packed.read_bytes())
    content[-1] ^= 1
    packed.write_bytes(content)
    with pytest.raises(UserError, match="corrupt"):
        open_pretrained("pegasus")
    packed.unlink()
    with pytest.raises(UserError, match="missing"):
        open_pretrained("pegasus")


def test_a_file_of_something_else_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_pretrained(tmp_path / "x.safetensors", "x")


# The file of the package.


@pytest.fixture(scope="module")
def pegasus() -> pretrained.PretrainedModel:
    return open_pretrained("pegasus")


def test_every_file_of_the_package_is_known_small_and_has_its_card() -> None:
    files = {path.stem: path for path in pretrained.FOLDER.glob("*.safetensors")}
    assert files.keys() == pretrained.PRETRAINED.keys()
    for name, path in files.items():
        assert path.stat().st_size < 12e6
        assert pretrained.PRETRAINED[name] in path.with_suffix(".md").read_text()


def test_the_packages_model_shows_wings_in_its_chimeras(pegasus: pretrained.PretrainedModel) -> None:
    """Its judges see a horse that carries wings in many chimeras, and in few straight mixes and parents."""
    parents = pegasus.sample_parents(64, seed=1)
    model, guide = pegasus.run.model, pegasus.committee
    half = torch.full((64,), 0.5)
    with torch.no_grad():
        codes = [model.encode(images.float() / 255).mean for images in (parents.first, parents.second)]
        seen = {
            name: guide(model.decode(mixed)) > 0
            for name, mixed in {
                "chimeras": model.mix(*codes, half),
                "straight": torch.lerp(*codes, 0.5),
                "first": codes[0],
                "second": codes[1],
            }.items()
        }
    both = {name: found.all(1).float().mean().item() for name, found in seen.items()}
    assert both["chimeras"] > 0.35
    assert max(both["straight"], both["first"], both["second"]) < both["chimeras"] / 4
