"""The mixture-of-experts layer against the published form and a careful loop: pytest -s benchmarks/bench_moe.py.

One thread (torch.set_num_threads(1), CORE_NUM_THREADS=1), process time, shortest of several. The published form
(DiffMoE's) gathers each expert's tokens in a loop and sums them over a dense [E T, D] buffer; the careful loop
adds each expert's rows in place. Both are torch with autograd, over the same route and the same weights.
"""

import time

import pytest

torch = pytest.importorskip("torch")

from core_diffusion import topk_mask  # noqa: E402
from core_diffusion.torch_moe import expert_ffn  # noqa: E402

F = torch.nn.functional


def network(x, up, up_bias, down, down_bias):  # type: ignore[no-untyped-def]
    """One expert on its rows."""
    return F.linear(F.gelu(F.linear(x, up, up_bias), approximate="tanh"), down, down_bias)


def published(x, scores, k, gates, *weights):  # type: ignore[no-untyped-def]
    """DiffMoE's form: top-k for each expert, and a dense buffer over all experts, summed."""
    taken = scores.T.topk(k, dim=1).indices
    shares = [network(x[rows], *(w[e] for w in weights)) * gates[rows, e, None] for e, rows in enumerate(taken)]
    places = (taken + len(x) * torch.arange(len(taken))[:, None]).reshape(-1, 1).expand(-1, x.shape[1])
    buffer = torch.zeros(len(taken) * len(x), x.shape[1]).scatter(0, places, torch.cat(shares))
    return buffer.view(len(taken), *x.shape).sum(0)


def careful(x, scores, k, gates, *weights):  # type: ignore[no-untyped-def]
    """A loop that adds each expert's rows to the output."""
    taken = scores.T.topk(k, dim=1).indices
    out = torch.zeros_like(x)
    for e, rows in enumerate(taken):
        out.index_add_(0, rows, network(x[rows], *(w[e] for w in weights)) * gates[rows, e, None])
    return out


def ours(x, scores, k, gates, up, up_bias, down, down_bias):  # type: ignore[no-untyped-def]
    """The operators of this package."""
    mask = topk_mask(scores.T.contiguous(), k)[0].T
    return expert_ffn(x, mask, gates, up, down, up_bias, down_bias, pairs=k * len(up))


def fastest(functions, repeats):  # type: ignore[no-untyped-def]
    """Shortest process time of each function, in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for i, f in enumerate(functions):
            start = time.process_time()
            f()
            best[i] = min(best[i], time.process_time() - start)
    return best


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(2048, 384), (4096, 384), (4096, 768)])
def test_moe(tokens, width, backward):  # type: ignore[no-untyped-def]
    """Prints the two ratios, if the three answers agree."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    experts, inner, k = 16, 4 * width, tokens // 16
    x, logits = torch.randn(tokens, width), torch.randn(tokens, experts)
    weights = [
        torch.randn(experts, inner, width) * width**-0.5,
        torch.randn(experts, inner),
        torch.randn(experts, width, inner) * inner**-0.5,
        torch.randn(experts, width),
    ]
    gates = logits.softmax(1)
    scores = gates.clone()
    grad = torch.randn(tokens, width)
    apart = [[part.clone() for part in w] for w in weights]  # the peers have a module for each expert
    leaves = {ours: [x, gates, *weights], careful: [x, gates, *(part for w in apart for part in w)]}
    leaves[published] = leaves[careful]
    for t in leaves[ours] + leaves[careful]:
        t.requires_grad_(backward)

    def step(f):  # type: ignore[no-untyped-def]
        out = f(x, scores, k, gates, *(weights if f is ours else apart))
        return torch.autograd.grad(out, leaves[f], grad) if backward else (out,)

    results = [step(f) for f in (ours, published, careful)]
    mine = [*results[0][:2], *(part for d in results[0][2:] for part in d)]
    for other in results[1:]:
        for a, b in zip(mine if backward else results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    times = fastest([lambda f=f: step(f) for f in (ours, published, careful)], 5 if backward else 9)
    print(
        f"\nT {tokens} D {width} E {experts} {'forward + backward' if backward else 'forward'}: ours "
        f"{times[0] * 1e3:.1f} ms, published form {times[1] * 1e3:.1f} ms ({times[1] / times[0]:.2f}x), "
        f"careful loop {times[2] * 1e3:.1f} ms ({times[2] / times[0]:.2f}x)"
    )
