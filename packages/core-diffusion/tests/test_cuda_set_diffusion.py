"""Fixed-sum sampling on CUDA against the float64 reference and the CPU, with the same seeds."""

import core_diffusion as cd
import numpy as np
import pytest
from core_diffusion.cases import code_counts, make_bridge, make_sample
from core_diffusion.reference import set_diffusion as reference

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def gpu(x):
    return torch.from_numpy(np.ascontiguousarray(x)).cuda()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5])
@pytest.mark.parametrize(
    ("batch", "codes", "tokens"), [(1, 1, 0), (3, 7, 5), (50, 33, 40), (5, 300, 64), (300, 64, 16)]
)
def test_samples_equal_the_reference(batch, codes, tokens, top_p, dtype):
    rng = np.random.default_rng()
    probs = make_sample(rng, batch, codes, tokens)["probs"].astype(dtype)
    seed = int(rng.integers(2**62))
    ours = cd.fixed_sum_sample(gpu(probs), tokens, seed=seed, top_p=top_p).cpu().numpy()
    np.testing.assert_array_equal(ours, cd.fixed_sum_sample(probs, tokens, seed=seed, top_p=top_p))
    if batch * codes < 1000:
        totals = np.full(batch, tokens)
        np.testing.assert_array_equal(ours, reference.fixed_sum_sample(probs, totals, seed, top_p))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_random_laws_equal_the_reference(top_p):
    """Wide laws with zeros, ties, strides, and totals of every row's own."""
    rng = np.random.default_rng()
    for _ in range(20):
        batch, codes, counts = rng.integers(1, 6), rng.integers(1, 40), rng.integers(1, 45)
        probs = rng.integers(0, 4, (batch, codes, counts)).astype(np.float32)
        probs[..., rng.integers(counts)] += 1
        totals = np.array([sum(rng.choice(np.flatnonzero(row)) for row in rows) for rows in probs])
        seed = int(rng.integers(2**62))
        ours = cd.fixed_sum_sample(gpu(probs), gpu(totals), seed=seed, top_p=top_p).cpu().numpy()
        assert (ours.sum(1) == totals).all()
        np.testing.assert_array_equal(ours, cd.fixed_sum_sample(probs, totals, seed=seed, top_p=top_p))
        turned = gpu(probs.transpose(2, 0, 1)).permute(1, 2, 0)
        np.testing.assert_array_equal(
            cd.fixed_sum_sample(turned, gpu(totals), seed=seed, top_p=top_p).cpu().numpy(), ours
        )


@pytest.mark.parametrize(("batch", "codes", "tokens"), [(4, 5, 4), (64, 256, 32), (8, 4096, 128), (300, 100, 40)])
def test_bridges_equal_the_reference(batch, codes, tokens):
    """exp differs by a last bit from the CPU's, so that one draw in very many may differ; sums may not."""
    rng = np.random.default_rng()
    args = make_bridge(rng, batch, codes, tokens)
    times = rng.random(batch)
    seed = int(rng.integers(2**62))
    ours = cd.fixed_sum_bridge(
        gpu(args["x0"]), gpu(args["x1"]), gpu(times), max_count=tokens, seed=seed
    ).cpu().numpy()  # fmt: skip
    theirs = cd.fixed_sum_bridge(args["x0"], args["x1"], times, max_count=tokens, seed=seed)
    assert (ours.sum(1) == args["x0"].sum(1)).all()
    assert ours.min() >= 0
    assert ours.max() <= tokens
    assert (ours != theirs).any(1).mean() <= 0.01
    assert (ours != args["x0"]).any() or tokens < 5


def test_law_is_exact():
    probs = np.random.default_rng(5).dirichlet(np.full(4, 0.7), 4).astype(np.float32)
    draws = cd.fixed_sum_sample(gpu(np.broadcast_to(probs, (200_000, 4, 4))), 5, seed=5).cpu().numpy()
    law = reference.enumerate_law(probs.astype(np.float64), 5)
    vectors, times = np.unique(draws, axis=0, return_counts=True)
    seen = {tuple(v): n / len(draws) for v, n in zip(vectors.tolist(), times.tolist(), strict=True)}
    assert seen.keys() <= law.keys()
    assert 0.5 * sum(abs(seen.get(v, 0) - p) for v, p in law.items()) < 0.01


def test_unlikely_totals_are_tilted():
    one = np.zeros((500, 200, 2), np.float32)
    one[:] = [1, 1e-30]
    draws = cd.fixed_sum_sample(gpu(one), 100, seed=1).cpu().numpy()
    assert (draws.sum(1) == 100).all()
    assert abs(draws.mean() - 0.5) < 1e-12
    assert abs(draws[:, 0].mean() - 0.5) < 0.1
    x0 = np.zeros((2, 60), np.int32)
    x0[:, :30] = 9
    for sigma in (0.0, 1e-9, 5.0, 1e300):
        for t in (0.0, 1 / 3, 1.0):
            drawn = cd.fixed_sum_bridge(gpu(x0), gpu(x0[:, ::-1].copy()), t, sigma=sigma, max_count=300, seed=2)
            assert drawn.sum(1).tolist() == [270, 270]


def test_100_000_states_of_a_walk_have_the_sum():
    rows, codes, tokens = 4000, 64, 16
    g = torch.Generator("cuda").manual_seed(0)
    scheduler = cd.FixedSumScheduler(tokens, "logits")
    scheduler.set_timesteps(25)
    state = cd.fixed_sum_prior(rows, codes, tokens, generator=g, like=torch.empty(0, device="cuda"))
    for t in scheduler.timesteps:
        logits = torch.randn(rows, codes, tokens + 1, generator=g, device="cuda")
        state = scheduler.step(logits, t, state, g).prev_sample
        assert bool((state.sum(1) == tokens).all())
        assert 0 <= int(state.min()) <= int(state.max()) <= tokens


def test_bad_values_are_named():
    good = torch.ones(3, 4, 5, device="cuda")

    def bad(value):
        x = good.clone()
        x[1, 2, 3] = value
        return x

    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"'probs' must be finite and >= 0.* in row 1"):
            cd.fixed_sum_sample(bad(value), 4, seed=0)
    empty = good.clone()
    empty[2, 1] = 0
    with pytest.raises(ValueError, match=r"'probs' must have a positive sum.* in row 2"):
        cd.fixed_sum_sample(empty, 4, seed=0)
    with pytest.raises(ValueError, match=r"'totals' must be sums that counts.* in row 0"):
        cd.fixed_sum_sample(good, 17, seed=0)
    with pytest.raises(ValueError, match=r"'totals' must be >= 0.* in row 1"):
        cd.fixed_sum_sample(good, torch.tensor([1, -1, 2], device="cuda"), seed=0)
    x0, x1 = (torch.from_numpy(code_counts(np.random.default_rng(0), 2, 6, 5)).cuda() for _ in range(2))
    for change, message in (
        ({"t": 1.5}, "'t' must be in"),
        ({"max_count": 0}, "'x0' must hold counts"),
        ({"x1": x1 + 1, "max_count": 50}, "'x1' must have the row sums"),
        ({"sigma": float("nan")}, "'sigma' must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            cd.fixed_sum_bridge(**{"x0": x0, "x1": x1, "t": 0.5, "seed": 0, **change})
    assert cd.fixed_sum_sample(good[:0], 3, seed=0).shape == (0, 4)
