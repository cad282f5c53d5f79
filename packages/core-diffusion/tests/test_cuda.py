"""The CUDA operators against the reference, on fresh inputs at every run."""

import numpy as np
import pytest
from core_diffusion import moe_route, topk_mask
from core_diffusion.reference import moe as reference

torch = pytest.importorskip("torch")

from core_diffusion.volume_decoding import decode_volume  # noqa: E402

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


def by_formula(x, mask, gates, up, up_bias, down, down_bias, activation):
    """The layer in float64, expert after expert."""
    act = {"silu": torch.nn.functional.silu, "gelu_tanh": lambda h: torch.nn.functional.gelu(h, approximate="tanh")}
    out = torch.zeros_like(x)
    for e in range(up.shape[0]):
        rows = mask[:, e].nonzero().squeeze(1)
        h = x[rows] @ up[e].T + (0 if up_bias is None else up_bias[e])
        y = act[activation](h) @ down[e].T + (0 if down_bias is None else down_bias[e])
        out = out.index_add(0, rows, y * gates[rows, e, None])
    return out


ERRORS = {torch.bfloat16: 0.006, torch.float16: 0.0015, torch.float32: 5e-6, torch.float64: 1e-13}


def close(a, b, relative):
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).norm() <= relative * (b.norm() + 0.5 * b.numel() ** 0.5))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize(
    ("dtype", "newest"),
    [
        (torch.bfloat16, "90"),
        (torch.bfloat16, "80"),
        (torch.float16, "90"),
        (torch.float16, "80"),
        (torch.float32, "90"),
        (torch.float64, "90"),
    ],
)
@pytest.mark.parametrize(
    ("tokens", "width", "inner", "experts", "density"),
    [
        (1, 8, 8, 1, 1),
        (1, 1, 1, 2, 1),
        (5, 64, 64, 3, 0.5),
        (300, 64, 256, 4, 0.3),
        (1000, 200, 328, 7, 0.2),
        (1000, 37, 91, 7, 0.2),
        (700, 1024, 520, 5, 0.1),
        (4096, 256, 1024, 40, 0.05),
        (500, 64, 96, 40, 0.2),
        (500, 320, 64, 16, 0.3),
        (129, 72, 1000, 2, 1),
        (64, 128, 128, 3, 0),
    ],
)
def test_experts(monkeypatch, tokens, width, inner, experts, density, dtype, newest, activation, biased):
    from core_diffusion.torch_moe import expert_ffn

    monkeypatch.setenv("CORE_SM", newest)
    normal = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.float64)  # noqa: E731
    mask = torch.rand(tokens, experts, device="cuda") < density
    mask[:, experts // 2] &= experts == 1  # an expert without tokens
    arguments = [
        normal(tokens, width),
        normal(tokens, experts),
        normal(experts, inner, width) * width**-0.5,
        normal(experts, width, inner) * inner**-0.5,
        normal(experts, inner) if biased else None,
        normal(experts, width) if biased else None,
    ]
    ours = [None if t is None else t.to(dtype).requires_grad_() for t in arguments]
    exact = [None if t is None else t.detach().double().requires_grad_() for t in ours]
    x, gates, up, down, up_bias, down_bias = ours
    pairs = int(mask.sum()) + 3
    out = expert_ffn(x, mask, gates, up, down, up_bias, down_bias, activation, pairs)
    y, g, u, d, ub, db = exact
    want = by_formula(y, mask, g, u, ub, d, db, activation)
    grad = normal(tokens, width).to(dtype)
    given = [t for t in ours if t is not None]
    got = torch.autograd.grad(out, given, grad)
    wanted = torch.autograd.grad(want, [t for t in exact if t is not None], grad.double(), allow_unused=True)
    assert close(out, want, ERRORS[dtype])
    for a, b in zip(got, wanted, strict=True):
        assert torch.isfinite(a).all()
        assert close(a, torch.zeros_like(a) if b is None else b, 2 * ERRORS[dtype])
    again = torch.autograd.grad(
        expert_ffn(x, mask, gates, up, down, up_bias, down_bias, activation, pairs), given, grad
    )
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    with torch.no_grad():
        assert torch.equal(expert_ffn(x, mask, gates, up, down, up_bias, down_bias, activation, pairs), out)


def test_experts_of_views():
    """Tensors that begin anywhere in memory, or are not contiguous."""
    from core_diffusion.torch_moe import expert_ffn

    for dtype, error in ERRORS.items():
        normal = lambda *shape: torch.randn(*shape, device="cuda").to(dtype)  # noqa: B023, E731
        mask = torch.rand(50, 3, device="cuda") < 0.5
        up = normal(3 * 16 * 32 + 1)[1:].view(3, 16, 32)
        arguments = normal(32, 50).T, mask, normal(50, 6)[:, ::2], up, normal(3, 32, 16)
        x, _, gates, up, down = (t.double() for t in arguments)
        assert close(expert_ffn(*arguments), by_formula(x, mask, gates, up, None, down, None, "gelu_tanh"), error)


@pytest.mark.parametrize("dtype", ERRORS)
def test_experts_wait_for_nothing(dtype):
    from core_diffusion.torch_moe import MoE

    for router in ("token", "expert", "race", "diffmoe"):
        moe = MoE(64, 128, 4, router).cuda().to(dtype)
        torch.nn.init.normal_(moe.gate.weight)
        x = torch.randn(2, 64, 64, device="cuda", dtype=dtype)
        moe(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            moe(x).hidden_states.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_compile(dtype):
    from core_diffusion.torch_moe import MoE

    for router in ("token", "expert", "race", "diffmoe"):
        moe = MoE(64, 128, 4, router).cuda().to(dtype)
        torch.nn.init.normal_(moe.gate.weight)
        x = torch.randn(2, 64, 64, device="cuda", dtype=dtype)
        want, ours = moe(x), torch.compile(moe, fullgraph=True)(x)
        same = (want.mask == ours.mask).all(2)  # fused arithmetic may choose otherwise among near ties
        assert same.float().mean() > 0.9
        torch.testing.assert_close(ours.hidden_states[same], want.hidden_states[same], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("moe", [None, {"num_experts": 4, "router": "race"}, {"num_experts": 4, "router": "diffmoe"}])
def test_recorded_steps_equal_plain_ones(moe):
    """The same draws, learning rates and updates: the losses of every step, and what was learnt, agree."""
    pytest.importorskip("accelerate")
    from core_diffusion.dit import DiT, flow_matching_loss
    from core_diffusion.training import TrainConfig, Trainer

    images = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = {"images": images, "labels": torch.arange(50) % 3}
    runs = []
    for record in (False, True):
        torch.manual_seed(0)
        net = DiT(8, 2, 1, 64, 2, 2, num_classes=3, class_dropout_prob=0.5, moe=moe)
        config = TrainConfig(
            steps=20, batch_size=16, learning_rate=3e-3, warmup_steps=4, schedule="cosine", ema_decay=0.9, log_every=1,
            precision="no" if moe is None else "bf16", record=record, progress=False,
        )  # fmt: skip
        trainer = Trainer(net, flow_matching_loss(), data, config)
        runs.append(([line["error"] for line in trainer.fit()], trainer.ema.state_dict()))
    (plain, first), (recorded, second) = runs
    assert np.ptp(plain) > 0.05  # the steps differ by more than the tolerance
    np.testing.assert_allclose(recorded, plain, rtol=1e-4 if moe is None else 2e-2)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-4 if moe is None else 1e-2)


@pytest.mark.parametrize("resolution", [1, 33, 64, 128])
@pytest.mark.parametrize("options", [{}, {"band": 0.1, "dilation": 1}])
def test_volumes_are_the_cpus(resolution, options):
    """Of shapes whose values are exact: a ball, a blade that is followed from its root, nothing, and a hole of NaN."""
    sizes = torch.tensor([0.75, 0.5, -1, 0.25])[:, None]

    def field(p):
        square, size = p.square().sum(-1), sizes.to(p.device)
        blade = torch.minimum(1 / 64 - (p[..., 2] - 1 / 32).abs(), size - p[..., :2].square().sum(-1))
        values = torch.maximum(blade, size.square() / 4 - square)
        return torch.where((size == 0.25) & (p[..., 0] > 0), torch.nan, values)

    bounds = ((-resolution / 64,) * 3, (resolution / 64,) * 3)
    arguments = {"batch": 4, "bounds": bounds, "coarsest": 8, "chunk": 5000, **options}
    ours = decode_volume(field, resolution, device="cuda", **arguments)
    for volume, want in zip(ours, decode_volume(field, resolution, device="cpu", **arguments), strict=True):
        assert volume.queries == want.queries
        assert torch.equal(volume.index.cpu(), want.index)
        torch.testing.assert_close(volume.values.cpu(), want.values, rtol=0, atol=1e-6, equal_nan=True)
