import copy
import multiprocessing

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from core_diffusion.torch_moe import MoE, distributed_topk_mask, similarity_loss, topk_mask  # noqa: E402

ROUTERS = ("token", "expert", "race", "diffmoe")


def layer(router, experts=4, top_k=1, seed=0, **options):
    torch.manual_seed(seed)
    moe = MoE(8, 12, experts, router, top_k, **options)
    torch.nn.init.normal_(moe.gate.weight)
    return moe


def batch(size=2, length=8, seed=0):
    return torch.randn(size, length, 8, generator=torch.Generator().manual_seed(seed))


def by_formula(moe, x, mask):
    x = x.flatten(0, 1)
    logits = moe.gate(moe.trunk(x))
    gates = logits if moe.router == "race" else logits.softmax(1)
    out = torch.zeros_like(x)
    for t, e in mask.flatten(0, 1).nonzero().tolist():
        h = torch.nn.functional.gelu(moe.up[e] @ x[t] + moe.up_bias[e], approximate="tanh")
        out[t] += gates[t, e] * (moe.down[e] @ h + moe.down_bias[e])
    return out


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", ROUTERS)
def test_layer_is_its_formula(router, training):
    moe, x = layer(router).train(), batch()
    moe(x)
    moe.train(training)
    out = moe(x)
    torch.testing.assert_close(out.hidden_states.flatten(0, 1), by_formula(moe, x, out.mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("router", ROUTERS)
def test_selection_is_the_largest_scores_of_the_rows(router, top_k):
    moe, x = layer(router, top_k=top_k).train(), batch()
    mask = moe(x).mask
    logits = moe.gate(moe.trunk(x.flatten(0, 1)))
    scores = (logits if router == "race" else logits.softmax(1)).detach().view(2, 8, 4)
    rows, k = {
        "token": (scores.view(16, 4), top_k),
        "expert": (scores.transpose(1, 2).reshape(8, 8), 8 * top_k // 4),
        "race": (scores.view(1, -1), 16 * top_k),
        "diffmoe": (scores.permute(2, 0, 1).reshape(4, 16), 16 * top_k // 4),
    }[router]
    want = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(k).indices, True)
    want = {
        "expert": lambda m: m.view(2, 4, 8).transpose(1, 2),
        "diffmoe": lambda m: m.view(4, 2, 8).permute(1, 2, 0),
    }.get(router, lambda m: m.view(2, 8, 4))(want)
    torch.testing.assert_close(mask, want, rtol=0, atol=0)


@pytest.mark.parametrize("router", ROUTERS)
def test_equal_logits_still_take_exactly_k(router):
    moe = layer(router).train()
    torch.nn.init.zeros_(moe.gate.weight)
    out = moe(batch())
    assert out.mask.sum() == 16
    assert out.hidden_states.isfinite().all()


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("router", ROUTERS)
def test_one_token_and_one_expert(router, experts):
    moe = layer(router, experts).train()
    out = moe(batch(1, 1))
    assert out.mask.sum() == {"expert": experts == 1, "diffmoe": experts == 1}.get(router, 1)
    sum(loss for loss in (out.hidden_states.sum(), out.router_loss)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in moe.parameters())
    assert moe.eval()(batch(1, 1)).hidden_states.isfinite().all()
    assert moe(batch(0, 3)).hidden_states.shape == (0, 3, 8)


@pytest.mark.parametrize("router", ROUTERS)
def test_permutation_equivariance(router):
    moe, x = layer(router, top_k=2).train(), batch()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        moe.train(training)
        torch.testing.assert_close(moe(x[:, order]).hidden_states, moe(x).hidden_states[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router", ROUTERS)
def test_inference_does_not_depend_on_the_batch(router):
    moe, x = layer(router, top_k=2).train(), batch(4)
    for seed in range(5):
        moe(batch(4, seed=seed))
    moe.eval()
    together = moe(x).hidden_states
    for i in range(4):
        torch.testing.assert_close(moe(x[i : i + 1]).hidden_states[0], together[i], rtol=1e-5, atol=1e-5)


def test_threshold_is_the_running_mean_of_the_kth_score():
    moe, want = layer("race").train(), None
    for seed in range(4):
        x = batch(seed=seed)
        kth = moe.gate(moe.trunk(x)).detach().flatten().topk(16).values[-1]
        want = kth if want is None else 0.95 * want + 0.05 * kth
        moe(x)
    torch.testing.assert_close(moe.threshold[0], want)
    assert {"threshold", "updates"} <= moe.state_dict().keys()


def test_race_keeps_its_capacity_in_inference():
    moe = layer("race", top_k=2).train()
    for seed in range(60):
        moe(batch(16, 16, seed))
    mask = moe.eval()(batch(16, 16, 99)).mask
    assert abs(mask.sum() / 512 - 1) < 0.1


def test_diffmoe_counts_as_published():
    moe, x = layer("diffmoe").train(), batch(4)
    moe(x)
    plain = moe.eval()(x).mask.flatten(0, 1)
    moe.published_inference = True
    published = moe(x).mask.flatten(0, 1)
    assert torch.equal(plain.sum(0), published.sum(0))
    scores = moe.gate(x.flatten(0, 1)).softmax(1)
    for e, n in enumerate(plain.sum(0).tolist()):
        assert set(published[:, e].nonzero().flatten().tolist()) == set(scores[:, e].topk(n).indices.tolist())


def test_diffmoe_trains_its_predictor_alone():
    moe, x = layer("diffmoe").train(), batch().requires_grad_()
    out = moe(x)
    out.router_loss.backward()
    assert x.grad is None
    assert moe.gate.weight.grad is None
    want = torch.nn.functional.binary_cross_entropy_with_logits(moe.capacity(x), out.mask.float())
    torch.testing.assert_close(out.router_loss, want)


def test_similarity_loss():
    rng = np.random.default_rng(0)
    logits, mask = rng.standard_normal((9, 4)), rng.random((9, 4)) < 0.6
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    similar, together = probs.T @ probs, mask.T.astype(float) @ mask
    own, rest = np.trace(together), together.sum() - np.trace(together)
    want = sum(
        (4 * together[i, i] / own if i == j else 12 * together[i, j] / rest) * similar[i, j] / 9
        for i in range(4)
        for j in range(4)
    )
    t = torch.from_numpy(logits).requires_grad_()
    assert similarity_loss(t, torch.from_numpy(mask)).item() == pytest.approx(want)
    assert torch.autograd.gradcheck(lambda t: similarity_loss(t, torch.from_numpy(mask)), t)
    one_each = torch.eye(4, dtype=torch.bool).repeat(2, 1)
    assert similarity_loss(100.0 * one_each, one_each).item() == pytest.approx(1)
    everyone = torch.tensor([[True, False, False, False]]).repeat(8, 1)
    assert similarity_loss(100.0 * everyone, everyone).item() == pytest.approx(4)
    assert similarity_loss(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.bool)).item() == 0


def test_layer_loss():
    moe, x = layer("race", target_dim=3), batch()
    target = torch.randn(2, 8, 3)
    torch.testing.assert_close(moe(x, target).layer_loss, (moe.target(moe.trunk(x)) - target).square().mean())
    assert moe(x).layer_loss == 0
    with pytest.raises(ValueError, match=r"'target' must have shape \(2, 8, 3\)"):
        moe(x, target[:1])
    with pytest.raises(ValueError, match="target_dim"):
        layer("race")(x, target)


@pytest.mark.parametrize("router", ROUTERS)
def test_no_graph_break(router):
    moe, x = layer(router, top_k=2), batch()
    twin = copy.deepcopy(moe)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=True)
    for training in (True, False):
        moe.train(training)
        twin.train(training)
        want, got = moe(x), compiled(x)
        torch.testing.assert_close(got.hidden_states, want.hidden_states)
        assert torch.equal(got.mask, want.mask)
        if training:
            for out in (want, got):
                (out.hidden_states.square().sum() + out.router_loss).backward()
            for (name, p), q in zip(moe.named_parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(q.grad, p.grad, msg=name)
            torch.testing.assert_close(dict(twin.named_buffers()), dict(moe.named_buffers()))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert compiled(batch(3)).hidden_states.shape == (3, 8, 8)
        moe.load_state_dict(twin.state_dict())


@pytest.mark.parametrize("router", ROUTERS)
def test_autocast_and_half_weights(router):
    moe, x = layer(router).train(), batch()
    want = moe(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = moe(x)
    got.hidden_states.float().sum().backward()
    assert moe.up.grad.dtype == torch.float32
    assert got.mask.sum() == 16
    half = moe.bfloat16()(x.bfloat16())
    assert half.hidden_states.dtype == torch.bfloat16
    same = (got.mask == want.mask).all(2)
    torch.testing.assert_close(got.hidden_states[same].float(), want.hidden_states[same], rtol=0.1, atol=0.1)


def test_opcheck():
    torch.library.opcheck(torch.ops.core_diffusion.moe_topk.default, (torch.randn(2, 5), 2))
    x, mask, gates = torch.randn(5, 3), torch.rand(5, 2) < 0.5, torch.rand(5, 2)
    up, down = torch.randn(2, 4, 3), torch.randn(2, 3, 4)
    floats = [t.requires_grad_() for t in (x, gates, up, torch.randn(2, 4), down, torch.randn(2, 3))]
    args = (floats[0], mask, *floats[1:], "silu", 12, True)
    torch.library.opcheck(torch.ops.core_diffusion.moe_experts.default, args)


def test_refusals():
    for options, message in (
        ({"router": "random"}, "'router' must be"),
        ({"top_k": 0}, "'top_k' must be a number"),
        ({"top_k": 1.5, "router": "token"}, "'top_k' must be a whole number"),
        ({"activation": "relu"}, "'activation' must be"),
    ):
        with pytest.raises(ValueError, match=message):
            MoE(8, 12, 4, **options)
    with pytest.raises(ValueError, match="'hidden_states' must have shape"):
        layer("race")(torch.zeros(2, 3, 7))
    for args, message in (((torch.zeros(2, 2), 1), "1 axis"), ((torch.zeros(2), 0), "at least 1")):
        with pytest.raises(ValueError, match=message):
            distributed_topk_mask(*args)


def _over_processes(work, *args):
    """The results of work(rank, *args) in two processes of one gloo group, by rank."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_in_group, args=(rank, results, work, args)) for rank in range(2)]
    for p in processes:
        p.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for p in processes:
        p.join(60)
    return found


def _in_group(rank, results, work, args):
    torch.set_num_threads(1)
    file, *rest = args
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    results.put((rank, work(rank, *rest)))
    torch.distributed.destroy_process_group()


def _select(rank, scores, ks):
    mine = torch.from_numpy(scores[rank])
    return [tuple(t.numpy() for t in distributed_topk_mask(mine, k)) for k in ks]


def test_selection_over_processes(tmp_path):
    rng = np.random.default_rng(0)
    scores = rng.choice(np.float32([-np.inf, -3e38, -1, -0.0, 0, 1e-40, 0.5, 2, np.inf]), (2, 40))
    scores[:, 20:] = rng.standard_normal((2, 20))
    ks = (1, 2, 17, 40, 79, 80)
    found = _over_processes(_select, tmp_path / "store", scores, ks)
    for i, k in enumerate(ks):
        mask, kth = topk_mask(torch.from_numpy(scores.reshape(-1)), k)
        np.testing.assert_array_equal(np.concatenate([found[0][i][0], found[1][i][0]]), mask.numpy())
        assert found[0][i][1] == found[1][i][1] == kth.item()


def _train_layer(rank, router):
    moe = layer(router, group=torch.distributed.group.WORLD).train()
    x = batch(4)[2 * rank : 2 * rank + 2] * (1 + 3 * rank)
    out = moe(x)
    out.hidden_states.sum().backward()
    scores = moe.gate(moe.trunk(x)).detach() if router == "race" else moe.capacity(x).detach().sigmoid()
    tensors = (
        out.mask,
        out.hidden_states.detach(),
        moe.threshold,
        moe.up.grad,
        scores,
        by_formula(moe, x, out.mask).detach(),
    )
    return [t.numpy() for t in tensors]


def test_race_over_processes(tmp_path):
    found = _over_processes(_train_layer, tmp_path / "store", "race")
    mask, scores = (np.stack([found[rank][i] for rank in range(2)]) for i in (0, 4))
    want, kth = topk_mask(torch.from_numpy(scores.reshape(-1)), 32)
    np.testing.assert_array_equal(mask.reshape(-1), want.numpy())
    assert mask[0].sum() < mask[1].sum()  # one race, in which the second process has the larger scores
    for out in found.values():
        assert out[2] == pytest.approx(kth.item())
        np.testing.assert_allclose(out[1].reshape(-1, 8), out[5], rtol=1e-5, atol=1e-5)
        assert np.isfinite(out[3]).all()


def test_diffmoe_averages_thresholds_over_processes(tmp_path):
    found = _over_processes(_train_layer, tmp_path / "store", "diffmoe")
    kth = [np.sort(found[rank][4].reshape(-1, 4), axis=0)[-4] for rank in range(2)]
    for out in found.values():
        np.testing.assert_allclose(out[2], (kth[0] + kth[1]) / 2, rtol=1e-6)
        np.testing.assert_array_equal(out[0].reshape(-1, 4).sum(0), 4)
