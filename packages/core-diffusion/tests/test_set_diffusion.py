"""The fixed-sum samplers against enumeration, their reference and their documented errors."""

import json
import os
import subprocess
import sys

import core_diffusion as cd
import numpy as np
import pytest
from core_diffusion.claims import set_diffusion as claim
from core_diffusion.reference import set_diffusion as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray


def chi_square_is_plausible(draws: NDArray[np.int32], law: dict[tuple[int, ...], float]) -> bool:
    """Whether the frequencies of `draws` are within five deviations of chi-square's mean."""
    vectors, times = np.unique(draws, axis=0, return_counts=True)
    seen = dict(zip(map(tuple, vectors.tolist()), times.tolist(), strict=True))
    assert seen.keys() <= law.keys()
    common = {v: p for v, p in law.items() if p * len(draws) >= 5}
    rare = 1 - sum(common.values())
    expected = np.array([*common.values(), rare]) * len(draws)
    observed = np.array([*(seen.get(v, 0) for v in common), len(draws) - sum(seen.get(v, 0) for v in common)])
    chi = float(((observed - expected) ** 2 / np.maximum(expected, 1)).sum())
    freedom = len(common)
    return chi < freedom + 5 * np.sqrt(2 * freedom) + 5


def test_toy_step_has_the_published_frequencies() -> None:
    law = claim.exact_law()
    assert sorted(law.values(), reverse=True)[:3] == pytest.approx([0.28864, 0.28864, 0.17507], abs=1e-5)
    x0, x1 = (np.tile(np.array(x, np.int32), (200_000, 1)) for x in (claim.TOY_X0, claim.TOY_X1))
    draws = cd.fixed_sum_bridge(x0, x1, 0.5, max_count=4, seed=1)
    assert chi_square_is_plausible(draws, law)
    assert claim.total_variation(draws, law) < 0.006


@pytest.mark.parametrize("total", [1, 4, 7, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_law_is_exact(total: int, dtype: type) -> None:
    probs = np.random.default_rng(total).dirichlet(np.full(4, 0.7), 4).astype(dtype)
    probs[1, 2] = 0
    draws = cd.fixed_sum_sample(np.broadcast_to(probs, (100_000, 4, 4)), total, seed=total)
    law = reference.enumerate_law(probs.astype(np.float64), total)
    assert chi_square_is_plausible(draws, law)


def test_law_is_exact_when_tilted() -> None:
    """The total has a probability of about 1e-180, and every combination is as likely as its weights say."""
    probs = np.array([[1, 1e-30, 1e-60], [1, 2e-30, 1e-60], [1, 1e-30, 3e-60], [1, 4e-30, 1e-60]])
    draws = cd.fixed_sum_sample(np.broadcast_to(probs, (100_000, 4, 3)), 6, seed=3)
    assert chi_square_is_plausible(draws, reference.enumerate_law(probs, 6))


def test_no_sum_is_violated_in_100_000_states() -> None:
    wrong, states, _, _ = claim.violations(seed=1, rows=4000)
    assert (wrong, states) == (0, 100_000)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_samples_equal_the_reference(data: st.DataObject) -> None:
    batch, codes, counts = (data.draw(st.integers(1, n)) for n in (3, 7, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    probs = rng.random((batch, codes, counts)) * (
        rng.random((batch, codes, counts)) < data.draw(st.sampled_from([0.4, 1.0]))
    )
    probs[..., rng.integers(counts)] += 0.1
    totals = np.array([sum(rng.choice(np.flatnonzero(row)) for row in rows) for rows in probs])
    seed, top_p = data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.sampled_from([1.0, 0.9, 0.5]))
    drawn = cd.fixed_sum_sample(probs, totals, seed=seed, top_p=top_p)
    np.testing.assert_array_equal(drawn, reference.fixed_sum_sample(probs, totals, seed, top_p))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bridges_equal_the_reference(data: st.DataObject) -> None:
    batch, codes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    tokens = data.draw(st.integers(0, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x0, x1 = (rng.multinomial(tokens, rng.dirichlet(np.full(codes, 0.3), batch)).astype(np.int32) for _ in range(2))
    t, sigma = data.draw(st.floats(0, 1)), data.draw(st.floats(0.1, 2))
    seed = data.draw(st.integers(-(2**63), 2**63 - 1))
    drawn = cd.fixed_sum_bridge(x0, x1, t, sigma=sigma, max_count=tokens, seed=seed)
    np.testing.assert_array_equal(drawn, reference.fixed_sum_bridge(x0, x1, t, sigma, tokens, seed))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 5000), st.floats(0, 1), st.floats(0, 1e308), st.integers(0, 2**32),
)  # fmt: skip
def test_every_bridge_has_a_solution(codes: int, tokens: int, t: float, sigma: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0, x1 = (rng.multinomial(tokens, rng.dirichlet(np.full(codes, 0.2), 2)).astype(np.int32) for _ in range(2))
    drawn = cd.fixed_sum_bridge(x0, x1, t, sigma=sigma, max_count=tokens, seed=seed)
    assert (drawn.sum(1) == tokens).all()
    assert drawn.min() >= 0
    np.testing.assert_array_equal(drawn[x0 == x1], x0[x0 == x1])


@pytest.mark.parametrize(("codes", "tokens"), [(65536, 4096), (4096, 128), (3, 4096), (1, 4096), (5, 0)])
def test_large_and_small_sizes(codes: int, tokens: int) -> None:
    x0 = cd.fixed_sum_prior(1, codes, tokens, seed=2)
    x1 = np.random.default_rng(0).multinomial(tokens, np.full(codes, 1 / codes))[None].astype(np.int32)
    assert (x0.sum(), x0.max() - x0.min() <= 1) == (tokens, True)
    drawn = cd.fixed_sum_bridge(x0, x1, 0.5, max_count=tokens, seed=1)
    assert drawn.sum() == tokens


def test_largest_count_is_possible() -> None:
    """All tokens on one code: the published weights have no such count."""
    x0, x1 = np.array([[128, 0, 0]], np.int32), np.array([[0, 128, 0]], np.int32)
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError):
        reference.repair_step(torch.from_numpy(x0), torch.from_numpy(x0), 0.5, 0.25, 128)
    np.testing.assert_array_equal(cd.fixed_sum_bridge(x0, x1, 1.0, sigma=0, seed=0), x1)
    np.testing.assert_array_equal(cd.fixed_sum_sample(np.eye(129)[[[128, 0]]], 128, seed=0), [[128, 0]])


def test_repair_moves_each_code_by_one_at_most() -> None:
    """The published defects that the exact draw does not have."""
    torch = pytest.importorskip("torch")
    law = torch.full((1, 6, 9), 1 / 9)
    drawn = torch.tensor([[7, 0, 0, 0, 0, 0]])
    assert int(reference.repair(drawn, law, torch.tensor([3])).sum()) == 6
    assert int(reference.repair(torch.zeros(1, 3, dtype=torch.int64), law[:, :3], torch.tensor([8])).sum()) == 3


DRAW = """
import sys, json, numpy as np, core_diffusion as cd
rng = np.random.default_rng(0)
x0, x1 = (rng.multinomial(64, rng.dirichlet(np.full(500, .1), 9)).astype(np.int32) for _ in range(2))
probs = rng.dirichlet(np.full(30, .3), (9, 200)).astype(np.float32)
print(json.dumps([cd.fixed_sum_bridge(x0, x1, .3, seed=5).tolist(), cd.fixed_sum_sample(probs, 700, seed=6).tolist(),
                  cd.fixed_sum_prior(9, 4096, 128, seed=7).tolist()]))
"""


def test_same_counts_at_every_isa_level_and_thread_count() -> None:
    answers = {}
    for isa in ("v2", "v3", "v4"):
        for threads in ("1", "2", "5"):
            run = subprocess.run(
                [sys.executable, "-c", DRAW],
                env={**os.environ, "CORE_ISA": isa, "CORE_NUM_THREADS": threads},
                capture_output=True,
                text=True,
            )
            if run.returncode and "asks for more than this processor has" in run.stderr:
                continue
            assert run.returncode == 0, run.stderr
            answers[isa, threads] = json.loads(run.stdout)
    assert len(answers) >= 3
    first, *others = answers.values()
    assert all(other == first for other in others)


def test_rows_do_not_depend_on_the_batch() -> None:
    probs = np.random.default_rng(0).random((3, 20, 5))
    whole = cd.fixed_sum_sample(probs, 40, seed=9)
    np.testing.assert_array_equal(cd.fixed_sum_sample(probs[:2], 40, seed=9), whole[:2])
    assert (cd.fixed_sum_sample(probs, 40, seed=10) != whole).any()


@pytest.mark.parametrize(
    ("probs", "total", "message"),
    [
        ([[[0.5, 0.5], [np.nan, 1]]], 1, r"'probs' must be finite and >= 0, got nan for code 1, count 0 in row 0"),
        ([[[0.5, -0.5], [1, 1]]], 1, r"got -0.5 for code 0, count 1 in row 0"),
        ([[[0.5, 0.5], [0, np.inf]]], 1, r"got inf for code 1, count 1 in row 0"),
        ([[[1, 1]], [[0, 0]]], 1, r"'probs' must have a positive sum over the counts, got 0 for code 0 in row 1"),
        ([[[1, 1]], [[1, 0]]], 1, r"'totals' .* got 1 \(possible: 0 to 0\) in row 1"),
        ([[[1, 0, 1], [1, 0, 1]]], 3, r"got 3 \(less likely than 1e-280\) in row 0"),
        ([[[1, 1]]], -1, r"'totals' must be >= 0, got -1 in row 0"),
        ([[[1, 1]]], 2**62, r"possible: 0 to 1"),
        (np.zeros((2, 3, 0)), 0, "1 to 2"),
        (np.zeros((2, 0, 3)), 1, "possible: 0 to 0"),
        (np.zeros(3), 1, "shape"),
    ],
)
def test_bad_laws_and_totals_are_named(probs: object, total: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cd.fixed_sum_sample(np.array(probs), total, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": 1.01}, "'t' must be in"),
        ({"t": float("nan")}, "'t' must be in"),
        ({"sigma": -1.0}, "'sigma' must be finite"),
        ({"sigma": float("inf")}, "'sigma' must be finite"),
        ({"max_count": -1}, "'max_count' must be in"),
        ({"max_count": 1}, r"'x0' must hold counts in 0\.\.1, got 2 for code 0 in row 0"),
        ({"x1": np.array([[0, 4, -1]])}, r"'x1' must hold counts in 0\.\.4, got -1 for code 2 in row 0"),
        ({"x1": np.array([[0, 4, 0]])}, r"'x1' must have the row sums of x0, got 4 instead of 3 in row 0"),
        ({"x1": np.zeros((1, 4), np.int32)}, "must have one shape"),
        ({"seed": 1, "generator": np.random.default_rng()}, "not both"),
    ],
)
def test_bad_bridges_are_named(change: dict[str, object], message: str) -> None:
    good = {"x0": np.array([[2, 1, 0]]), "x1": np.array([[0, 0, 3]]), "t": 0.5, "sigma": 0.25}
    with pytest.raises(ValueError, match=message):
        cd.fixed_sum_bridge(**{**good, **change})  # type: ignore[arg-type]


def test_shapes_and_kinds() -> None:
    probs = np.ones((2, 3, 4, 5))
    assert cd.fixed_sum_sample(probs, np.array([[1], [2]]), seed=0).sum(-1).tolist() == [[1] * 3, [2] * 3]
    assert cd.fixed_sum_sample(np.zeros((0, 4, 5)), 3, seed=0).shape == (0, 4)
    assert cd.fixed_sum_sample(np.zeros((2, 0, 5)), 0, seed=0).shape == (2, 0)
    assert cd.fixed_sum_bridge([1, 0], [0, 1], 0.5, seed=0).sum() == 1
    torch = pytest.importorskip("torch")
    drawn = cd.fixed_sum_sample(torch.ones(2, 4, 5), 6, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int32
    assert drawn.sum(-1).tolist() == [6, 6]
    np.testing.assert_array_equal(
        cd.fixed_sum_sample(torch.ones(2, 4, 5), 6, seed=4).numpy(), cd.fixed_sum_sample(np.ones((2, 4, 5)), 6, seed=4)
    )
    with pytest.raises(NotImplementedError, match="requires grad"):
        cd.fixed_sum_sample(torch.ones(2, 4, 5, requires_grad=True), 6, seed=0)
    with pytest.raises(TypeError, match="generator"):
        cd.fixed_sum_sample(probs, 1, generator=3)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "sample"])
@pytest.mark.parametrize("torch_in", [False, True])
def test_scheduler_walks_from_prior_to_data(kind: str, torch_in: bool) -> None:
    rng = np.random.default_rng(0)
    data = rng.multinomial(12, np.full(40, 1 / 40), 3).astype(np.int32)
    output = data if kind == "sample" else np.eye(13, dtype=np.float32)[data] * (50 if kind == "logits" else 1)
    sample = cd.fixed_sum_prior(3, 40, 12, seed=1)
    if torch_in:
        torch = pytest.importorskip("torch")
        output, sample = torch.from_numpy(output), torch.from_numpy(sample)
    scheduler = cd.FixedSumScheduler.from_config(cd.FixedSumScheduler(12, kind).config)  # type: ignore[arg-type]
    scheduler.set_timesteps(25)
    for t in scheduler.timesteps:
        result = scheduler.step(output, t, scheduler.scale_model_input(sample, t), generator=rng)
        sample = result.prev_sample
        assert type(sample) is type(output)
        assert (sample.sum(-1) == 12).all()
    np.testing.assert_array_equal(np.asarray(sample), data)


def test_scheduler_refuses_what_it_cannot_do() -> None:
    scheduler = cd.FixedSumScheduler(4, "sample")
    counts = np.array([[4, 0]], np.int32)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step(counts, 0.0, counts)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step(counts, 0.3, counts)
    with pytest.raises(ValueError, match="row sums"):
        scheduler.step(counts, 0.25, np.array([[3, 0]], np.int32))
    with pytest.raises(ValueError, match="num_inference_steps"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="prediction_type"):
        cd.FixedSumScheduler(4, "epsilon")  # type: ignore[arg-type]
    assert (scheduler.add_noise(counts, np.array([[2, 2]]), 0.5, np.random.default_rng(0)).sum(1) == 4).all()


def test_import_needs_no_torch() -> None:
    code = "import sys, core_diffusion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
