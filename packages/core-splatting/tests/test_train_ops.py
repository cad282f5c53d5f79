"""Structural similarity and the selective Adam against torch and scikit-image."""

import numpy as np
import pytest
from core_splatting.ssim import ssim

torch = pytest.importorskip("torch")
from core_splatting import cases_train, train_ops  # noqa: E402
from core_splatting.optim import SelectiveAdam  # noqa: E402
from core_splatting.reference import train as reference  # noqa: E402


def test_ssim_is_that_of_scikit_image_inside() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    args = cases_train.images(np.random.default_rng(0), 1, 3, 60, 50)
    _, theirs = metrics.structural_similarity(
        args["image"][0].astype(np.float64), args["target"][0].astype(np.float64), data_range=1, channel_axis=0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
    )  # fmt: skip
    np.testing.assert_allclose(ssim(args["image"], args["target"])[0, :, 5:-5, 5:-5], theirs[:, 5:-5, 5:-5], atol=1e-5)


def test_gradient_is_that_of_convolutions_in_float64() -> None:
    args = cases_train.images(np.random.default_rng(1), 2, 2, 23, 17)
    weights = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / 4.5)
    window = (torch.outer(weights, weights) / weights.sum() ** 2).expand(2, 1, 11, 11)
    mean = lambda q: torch.nn.functional.conv2d(q, window, padding=5, groups=2)  # noqa: E731
    x, y = (torch.from_numpy(args[k]).double() for k in ("image", "target"))
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    mx, my = mean(x), mean(y)
    sx, sy, sxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * sxy + 9e-4) / ((mx * mx + my * my + 1e-4) * (sx + sy + 9e-4))
    (value * v).sum().backward()

    ours = torch.from_numpy(args["image"]).requires_grad_()
    (ssim(ours, torch.from_numpy(args["target"])) * v.float()).sum().backward()
    np.testing.assert_allclose(ours.grad, x.grad, rtol=1e-3, atol=1e-3 * float(x.grad.abs().max()))
    # The reference of the case table is the same function.
    expected = reference.ssim_backward(args | {"partials": reference.ssim(args)["partials"], "v_out": v.numpy()})
    np.testing.assert_allclose(expected["v_image"], x.grad, rtol=1e-9, atol=1e-9)


def test_channels_last_and_compile() -> None:
    image, target = torch.rand(2, 40, 30, 3).permute(0, 3, 1, 2), torch.rand(2, 40, 30, 3).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(ssim(image, target), ssim(image.contiguous(), target.contiguous()))
    np.testing.assert_array_equal(ssim(image.numpy(), target.numpy()), ssim(image, target))
    image.requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 1 - ssim(x, target).mean()

    torch.compile(loss, fullgraph=True, backend="eager")(image).backward()
    compiled, image.grad = image.grad, None
    loss(image).backward()
    np.testing.assert_allclose(compiled, image.grad, atol=1e-7)


def test_opcheck_and_refusals() -> None:
    image, target = torch.rand(1, 2, 13, 9, requires_grad=True), torch.rand(1, 2, 13, 9)
    torch.library.opcheck(train_ops.ssim, (image, target))
    with pytest.raises(NotImplementedError, match="target"):
        ssim(target, image).sum().backward()
    with pytest.raises(ValueError, match="target"):
        ssim(target, target[..., :5])
    with pytest.raises(TypeError, match="image"):
        ssim(np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2), np.float32))


@pytest.mark.parametrize("shape", [(50, 3), (50,), (50, 16, 3), (0, 3)])
def test_adam_is_torchs_on_the_steps_of_each_row(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours = start.clone().requires_grad_()
    optimizer = SelectiveAdam([ours], lr=0.03, eps=1e-8)
    theirs = [row.clone().requires_grad_() for row in start]
    rows = [torch.optim.Adam([row], lr=0.03, eps=1e-8) for row in theirs]
    for _ in range(12):
        grad, visible = torch.randn(shape, generator=generator), torch.rand(shape[0], generator=generator) < 0.5
        ours.grad = grad
        optimizer.step(visible)
        for row, adam, g, seen in zip(theirs, rows, grad, visible, strict=True):
            if seen:
                row.grad = g.clone()
                adam.step()
    if theirs:
        np.testing.assert_allclose(ours.detach(), torch.stack(theirs).detach(), rtol=2e-5, atol=2e-6)


def test_rates_of_columns_are_those_of_parameters_apart() -> None:
    start, rates = torch.randn(40, 4, 3), torch.tensor([[0.02], [0.001], [0.001], [0.0]]).expand(4, 3).contiguous()
    whole = start.clone().requires_grad_()
    parts = [start[:, k].clone().requires_grad_() for k in range(4)]
    ours = SelectiveAdam([{"params": [whole], "lr": 0.5, "rates": rates}])
    theirs = SelectiveAdam([{"params": [p], "lr": 0.5 * float(rates[k, 0])} for k, p in enumerate(parts)])
    for _ in range(10):
        whole.grad = torch.randn(40, 4, 3)
        for k, p in enumerate(parts):
            p.grad = whole.grad[:, k]
        visible = torch.rand(40) < 0.5
        ours.step(visible)
        theirs.step(visible)
    torch.testing.assert_close(whole, torch.stack(parts, 1), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="rates"):
        SelectiveAdam([{"params": [whole], "rates": rates[:3]}]).step()


def test_adam_of_all_rows_is_torchs() -> None:
    ours = torch.randn(300, 7).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    a, b = SelectiveAdam([ours], lr=0.01), torch.optim.Adam([theirs], lr=0.01, eps=1e-15)
    for _ in range(50):
        for p, optimizer in ((ours, a), (theirs, b)):
            p.grad = p.detach() * 2 + 1
            optimizer.step()
    np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="visible"):
        a.step(torch.ones(3, dtype=torch.bool))
