"""The CUDA operators against the reference, on fresh inputs at every run."""

import numpy as np
import pytest
from core_diffusion import moe_route, topk_mask
from core_diffusion.reference import moe as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def check_topk(scores, k):
    mask, kth = topk_mask(torch.from_numpy(scores).cuda(), k)
    want, limit = reference.topk_mask(scores, k)
    np.testing.assert_array_equal(mask.cpu().numpy(), want)
    np.testing.assert_array_equal(kth.cpu().numpy(), limit)


@pytest.mark.parametrize("rows", [1, 3, 700])
@pytest.mark.parametrize("columns", [1, 16, 33, 128, 129, 1000, 4097, 70001])
def test_topk(rows, columns):
    if rows * columns > 10**7:
        rows = 150
    rng = np.random.default_rng()
    normal = rng.standard_normal((rows, columns), np.float32)
    ties = rng.choice(np.array([-np.inf, -1, -0.0, 0, 1e-40, 2, np.inf], np.float32), (rows, columns))
    for k in {0, 1, columns // 3, columns - 1, columns}:
        for scores in (normal, ties, np.zeros((rows, columns), np.float32)):
            check_topk(scores, k)


def test_topk_of_a_million():
    rng = np.random.default_rng()
    for scores in (rng.standard_normal((1, 2**20), np.float32), np.ones((1, 2**20), np.float32)):
        for k in (1, 65536, 2**20):
            check_topk(scores, k)


def test_topk_strided():
    scores = torch.randn(1000, 8, device="cuda")
    for k in (0, 10, 999):
        mask, _ = topk_mask(scores.T, k)
        assert torch.equal(mask, topk_mask(scores.T.contiguous(), k)[0])


def test_topk_puts_nan_last():
    scores = np.array([[np.nan, -np.inf, 1, -np.nan]], np.float32)
    assert topk_mask(torch.from_numpy(scores).cuda(), 2)[0].tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("tokens", "experts"), [(0, 3), (1, 1), (1000, 16), (5000, 7), (65536, 16), (300000, 2)])
def test_route(tokens, experts):
    rng = np.random.default_rng()
    for density in (0, 0.1, 1):
        mask = rng.random((tokens, experts)) < density
        room = int(mask.sum()) + 5
        offsets, listed = moe_route(torch.from_numpy(mask).cuda(), room)
        want, tokens_of = reference.moe_route(mask, room)
        np.testing.assert_array_equal(offsets.cpu().numpy(), want)
        np.testing.assert_array_equal(listed.cpu().numpy(), tokens_of)
    short, listed = moe_route(torch.from_numpy(mask).cuda(), room // 2)
    np.testing.assert_array_equal(short.cpu().numpy(), want.clip(max=room // 2))
    np.testing.assert_array_equal(listed.cpu().numpy(), tokens_of[: room // 2])


@pytest.mark.parametrize("router", ["token", "expert", "race", "diffmoe"])
@pytest.mark.parametrize("training", [True, False])
def test_layer(router, training):
    from core_diffusion.torch_moe import MoE

    torch.manual_seed(0)
    here = MoE(32, 64, 8, router, 2)
    torch.nn.init.normal_(here.gate.weight)
    here(torch.randn(4, 16, 32))
    there = MoE(32, 64, 8, router, 2).cuda()
    there.load_state_dict(here.state_dict())
    x = torch.randn(4, 16, 32)
    results = []
    for moe, y in ((here.train(training), x), (there.train(training), x.cuda())):
        y = y.clone().requires_grad_()
        out = moe(y)
        (out.hidden_states.square().sum() + out.router_loss).backward()
        results.append((out.hidden_states, y.grad, moe.up.grad, moe.down_bias.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-3, atol=1e-3)
