"""Tests of reconstruction metrics by hand and against loops, and of principal components against an exact SVD."""

import math

import pytest
import torch
from torch import Tensor

from pegasus_lightning.evaluate.metrics.reconstruction import PrincipalComponents, reconstruction
from pegasus_lightning.models import losses


def noise(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_even_grey_by_hand() -> None:
    images, off = torch.full((2, 3, 32, 32), 0.5), torch.full((2, 3, 32, 32), 0.6)
    off[1] = 0.5
    psnr, ssim, excess = reconstruction(off, images)
    assert psnr.tolist() == pytest.approx([20, 100], rel=1e-4)
    # For constant images SSIM is (2 m n + c) / (m^2 + n^2 + c), c = 1e-4.
    assert ssim.tolist() == pytest.approx([(2 * 0.3 + 1e-4) / (0.25 + 0.36 + 1e-4), 1], rel=1e-4)
    divergence = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)  # Bernoulli KL divergence per pixel
    assert excess.tolist() == pytest.approx([3072 * divergence, 0], rel=1e-4, abs=1e-2)


def ssim_in_a_loop(first: Tensor, second: Tensor) -> float:
    """Wang et al. 2004, eq. 13: mean over pixels and channels of the local similarity in Gaussian windows."""
    window = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    weights = torch.outer(window, window) / window.sum() ** 2
    x, y = (torch.nn.functional.pad(image[None], (5,) * 4, mode="reflect")[0] for image in (first, second))
    total = 0.0
    for channel in range(3):
        for row in range(first.shape[1]):
            for column in range(first.shape[2]):
                a, b = (image[channel, row : row + 11, column : column + 11] for image in (x, y))
                m, n = (weights * a).sum(), (weights * b).sum()
                v, w, c = (
                    (weights * a * a).sum() - m**2,
                    (weights * b * b).sum() - n**2,
                    (weights * a * b).sum() - m * n,
                )
                total += ((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m**2 + n**2 + 1e-4) * (v + w + 9e-4))).item()
    return total / first.numel()


def test_ssim_is_that_of_a_loop_whatever_the_range_of_the_images() -> None:
    images = 0.3 + 0.2 * noise(2, side=12)
    predictions = images + 0.1 * noise(2, side=12, seed=1)
    wanted = [ssim_in_a_loop(*pair) for pair in zip(predictions, images, strict=True)]
    assert reconstruction(predictions, images).ssim.tolist() == pytest.approx(wanted, rel=1e-3)


def test_figures_are_of_each_image_alone() -> None:
    images, predictions = noise(300), noise(300, seed=1)
    whole = reconstruction(predictions, images)
    for place in (0, 255, 256, 299):
        alone = reconstruction(predictions[place : place + 1], images[place : place + 1])
        assert [column[place].item() for column in whole] == pytest.approx([c.item() for c in alone], rel=1e-4)
    assert all(column.shape == (300,) for column in whole)
    torch.testing.assert_close(whole.psnr, losses.psnr(predictions, images))


def test_one_wrong_extreme_pixel_costs_something_finite() -> None:
    images = torch.full((1, 3, 32, 32), 0.5)
    images[0, 0, 0, 0] = 1.0
    predictions = images.clone()
    predictions[0, 0, 0, 0] = 0.0
    assert reconstruction(predictions, images).excess_bce.item() == pytest.approx(math.log(510), rel=1e-3)
    predictions[0, 0, 0, 0] = 1.0
    assert reconstruction(predictions, images).excess_bce.item() == pytest.approx(1 / 510, abs=2e-3)


def test_bytes_are_scaled() -> None:
    images = (noise(2, side=12) * 255).round().byte()
    assert reconstruction(images.float() / 255, images).psnr.tolist() == [100, 100]
    pca = PrincipalComponents.fit(images, 1)
    assert pca.mean.max() <= 1
    assert reconstruction(pca.reconstruct(images), images).psnr.min() > 60  # two images are on one line


def structured(count: int, seed: int = 0) -> Tensor:
    """Images (count, 3, 4, 4) with correlated pixels, never clamped to 0 or 1."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(48, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    scales = 0.7 ** torch.arange(48, dtype=torch.float64)
    codes = torch.randn(count, 48, generator=random, dtype=torch.float64)
    return (0.5 + 0.01 * (codes * scales) @ basis).reshape(count, 3, 4, 4)


@pytest.mark.parametrize("count", [1, 5, 47, 48])
def test_the_components_leave_the_least_error_there_is(count: int) -> None:
    images = structured(200)
    pca = PrincipalComponents.fit(images, count)
    rows = images.flatten(1)
    torch.testing.assert_close(pca.mean, rows.mean(0))
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(count, dtype=torch.float64))
    error = (pca.reconstruct(images) - images).square().sum()
    lost = torch.linalg.svdvals(rows - rows.mean(0))[count:].square().sum()  # Eckart & Young 1936
    torch.testing.assert_close(error, lost, atol=1e-12, rtol=1e-6)
    fresh = structured(100, seed=1)
    assert (pca.reconstruct(fresh) - fresh).square().sum() >= 0.3 * lost


def test_fewer_components_of_one_fit_are_those_of_a_smaller_fit() -> None:
    images = structured(100)
    large, small = PrincipalComponents.fit(images, 20), PrincipalComponents.fit(images, 4)
    torch.testing.assert_close(large.reconstruct(images, 4), small.reconstruct(images))
    assert not torch.allclose(large.reconstruct(images), small.reconstruct(images))


def photograph_like(count: int, seed: int = 0) -> Tensor:
    """Images (count, 3, 10, 10) around 0.5 whose spectrum decays as slowly as that of photographs."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(9))).Q
    scales = 0.5 * torch.arange(1, 301) ** -0.75  # the variance has the exponent -1.5
    return (0.5 + (torch.randn(count, 300, generator=random) * scales) @ basis).reshape(count, 3, 10, 10)


@pytest.mark.parametrize("count", [1, 10, 59])
def test_iterated_components_are_as_good_as_all_eigenvectors(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, fresh = photograph_like(1000), photograph_like(200, seed=1)
    eigh = torch.linalg.eigh
    sizes = []
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    iterated = PrincipalComponents.fit(images, count)
    assert sizes == [2 * count + 32]  # far fewer than 300
    torch.testing.assert_close(iterated.components @ iterated.components.T, torch.eye(count), atol=1e-5, rtol=0)
    rows = images.flatten(1).double()
    exact = torch.linalg.svd(rows - rows.mean(0)).Vh[:count].float()
    # Each component must be its eigenvector, not any basis of the span, as a smaller count takes the first ones.
    assert (iterated.components * exact).sum(1).abs()[: count - count // 4].min() > 0.99
    best = PrincipalComponents(rows.mean(0).float(), exact)
    for some in (images, fresh):
        psnr, least = (losses.psnr(pca.reconstruct(some), some).mean().item() for pca in (iterated, best))
        assert psnr == pytest.approx(least, abs=0.003)


def test_fewer_images_than_components_come_back_whole() -> None:
    images = photograph_like(20).clamp(0, 1)
    pca = PrincipalComponents.fit(images, 30)  # by iteration, of 300 dimensions with a variance in 19
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(pca.reconstruct(images), images, atol=1e-5, rtol=0)


def test_components_are_always_the_same_and_no_global_draw() -> None:
    images = photograph_like(400)
    before = torch.get_rng_state()
    first = PrincipalComponents.fit(images, 10).components
    torch.rand(3)
    assert torch.equal(PrincipalComponents.fit(images, 10).components, first)
    torch.set_rng_state(before)
    PrincipalComponents.fit(images, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_leaves_the_range_is_clamped() -> None:
    images = torch.zeros(3, 3, 4, 4)
    images[1], images[2] = 0.5, 1.0
    pca = PrincipalComponents.fit(images, 1)
    assert pca.reconstruct(torch.full((1, 3, 4, 4), 3.0)).unique().tolist() == [1]
    assert pca.reconstruct(torch.full((1, 3, 4, 4), -3.0)).unique().tolist() == [0]


@pytest.mark.parametrize("count", [0, 49])
def test_components_must_be_there(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} components .* 48"):
        PrincipalComponents.fit(structured(60), count)
