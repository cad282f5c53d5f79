"""Torch operators: one without a backward refuses a gradient, wherever it would be lost."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from core_registry import torchlib  # noqa: E402


@pytest.fixture(scope="module")
def twice() -> Any:
    """Hides from the kernel that its input requires grad, as a conversion would."""
    return torchlib.define(
        "test_registry",
        "twice(Tensor x, Tensor? y, float factor) -> Tensor",
        lambda x, y, factor: x.detach().double() * factor,
        lambda x, y, factor: torch.empty_like(x, dtype=torch.float64),
    )


def test_without_backward(twice: Any) -> None:
    x = torch.ones(3)
    assert torch.equal(twice(x, None, 2.0), 2 * x.double())
    learned = x.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="twice: argument 'x' requires grad, but the operator"):
        twice(learned, None, 2.0)
    with pytest.raises(NotImplementedError, match="argument 'y' requires grad"):
        twice(x, learned, 2.0)
    with torch.no_grad():
        assert torch.equal(twice(learned, learned, 2.0), 2 * x.double())
    with torch.inference_mode():
        twice(torch.ones(3), None, 2.0)
    torch.library.opcheck(twice, (x, None, 2.0))


def test_without_backward_lists_and_names() -> None:
    joined = torchlib.define(
        "test_registry",
        "joined(Tensor[] parts, *, Tensor? bias=None) -> Tensor",
        lambda parts, bias=None: torch.cat([p.detach() for p in parts]),
        lambda parts, bias=None: torch.empty(sum(p.shape[0] for p in parts)),
    )
    x = torch.ones(3)
    assert joined([x, x], bias=x).shape == (6,)
    with pytest.raises(NotImplementedError, match="joined: argument 'parts' requires grad"):
        joined([x, x.clone().requires_grad_()])
    with pytest.raises(NotImplementedError, match="joined: argument 'bias' requires grad"):
        joined([x], bias=x.clone().requires_grad_())


def test_under_compile(twice: Any) -> None:
    step = torch.compile(lambda x: twice(x, None, 2.0) + 1, fullgraph=True, backend="aot_eager")
    x = torch.ones(3)
    assert torch.equal(step(x), 2 * x.double() + 1)
    with pytest.raises(Exception, match="requires grad, but the operator has no backward"):
        step(x.clone().requires_grad_())


def test_with_backward() -> None:
    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    square = torchlib.define(
        "test_registry",
        "square(Tensor x) -> Tensor",
        lambda x: x * x,
        torch.empty_like,
        backward=lambda context, gradient: 2 * context.saved_tensors[0] * gradient,
        setup_context=setup,
    )
    x = torch.arange(3.0, dtype=torch.float64, requires_grad=True)
    square(x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())
    assert torch.autograd.gradcheck(square, x)
    torch.library.opcheck(square, (x,))


def test_eager(twice: Any) -> None:
    def product(x: Any, y: Any) -> Any:
        assert x.is_cpu
        assert not x.is_neg()
        return x * y

    times = torchlib.define(
        "test_registry",
        "times(Tensor x, Tensor y) -> Tensor",
        product,
        lambda x, y: torch.empty_like(x),
        backward=lambda ctx, gradient: (gradient * ctx.saved_tensors[1], gradient * ctx.saved_tensors[0]),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    call = torchlib.eager(times)
    x = torch.arange(3.0, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, y))
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(x, y), x * y)
    assert call(x.to("meta"), y.to("meta")).is_meta
    negative = torch.complex(x, y).detach().conj().imag
    assert negative.is_neg()
    assert torch.equal(call(negative, y), negative * y)
    with torch.profiler.profile() as profile:
        call(x, y)
    assert "test_registry::times" in {event.name for event in profile.events()}
    with pytest.raises(NotImplementedError, match="twice: argument 'x' requires grad, but the operator"):
        torchlib.eager(twice)(x, None, 2.0)
