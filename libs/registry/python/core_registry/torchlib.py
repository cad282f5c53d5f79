"""Torch operators for facades: torch.library's define, impl, register_fake and register_autograd in one call.

Not torch.library.custom_op, which costs 17 us a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

_libraries: dict[str, torch.library.Library] = {}
_eager: dict[Any, Callable[..., Any]] = {}
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_PLAIN = _TENSORS | {float, int, bool, str, type(None)}


def define(
    namespace: str,
    schema: str,
    impl: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    devices: tuple[str, ...] = ("CPU", "CUDA"),
) -> Any:
    """Defines `namespace::name` from its schema ("name(Tensor x, float tau) -> Tensor") and returns its overload.

    `impl` runs on `devices`, `fake` gives shapes and dtypes alone. `backward` and `setup_context` are those of
    `torch.library.register_autograd`; without them an input that requires grad is refused with NotImplementedError
    while grad mode is on, in eager mode and under torch.compile alike.
    """
    library = _libraries.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(getattr(torch.ops, namespace), name).default
    run = impl
    if backward is None:
        run = impl = _without_gradient(impl, overload)
        fake = _without_gradient(fake, overload)
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    else:
        kernel, run = _with_gradient(overload, impl, backward, setup_context)
        library.impl(name, kernel, "Autograd", with_keyset=True)
    for device in devices:
        library.impl(name, impl, device)
    torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    _eager[overload] = run
    return overload


def eager(overload: Any, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`overload`, which `define` gave, as a function of all its arguments by position. Where they are `plain`, torch's
    dispatcher is not asked, but `run` called: by default what `define` was given."""
    direct, name, has_kernel = run or _eager[overload], overload.name(), torch._C._dispatch_has_kernel_for_dispatch_key
    if not (has_kernel(name, "CPU") and has_kernel(name, "CUDA")):
        raise ValueError(f"eager: argument 'overload' must be defined on the CPU and on CUDA, got {name}")

    def call(*args: Any) -> Any:
        return direct(*args) if plain(*args) else overload(*args)

    return call


def plain(*args: Any) -> bool:
    """Whether torch's dispatcher would do no more with these arguments than find the implementation."""
    if torch.compiler.is_compiling() or not _PLAIN.issuperset(map(type, args)):
        return False
    for x in args:
        if type(x) in _TENSORS and (not (x.is_cuda or x.is_cpu) or x.is_neg()):
            return False
    c = torch._C
    return not (
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._are_functorch_transforms_active()
        or c._get_tracing_state()
        or torch.autograd.profiler._is_profiler_enabled
    )


def _with_gradient(
    overload: Any, impl: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What torch.library.register_autograd makes, but for its question to the schema: 3 us an argument. And the same
    for calls past the dispatcher."""
    arguments, below = overload._schema.arguments, torch._C._after_autograd_keyset
    if any(a.kwarg_only or "Tensor[]" in str(a.type) for a in arguments):
        raise NotImplementedError(f"{overload.name()}: a gradient with keyword-only arguments or lists of tensors")

    class Function(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, keyset = args
            with torch._C._AutoDispatchBelowAutograd():
                result = impl(*inputs) if keyset is None else overload.redispatch(keyset & below, *inputs)
            if setup_context is not None:
                inputs += [a.default_value for a in arguments[len(inputs) :]]
                setup_context(ctx=ctx, inputs=tuple(inputs), output=result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            whole = ctx.needs_input_grad
            ctx.needs_input_grad = whole[:-1]
            try:
                result = backward(ctx, *grads)
            finally:
                ctx.needs_input_grad = whole
            return (*result, None) if isinstance(result, tuple) else (result, None)

    # Function.apply looks at each argument for a wrapper of functorch.
    apply, plain_apply = Function.apply, super(torch.autograd.Function, Function).apply
    in_functorch = torch._C._are_functorch_transforms_active

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return (apply if in_functorch() else plain_apply)(*args, keyset)
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & below, *args)

    def direct(*args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return plain_apply(*args, None)
        return impl(*args)

    return kernel, direct


def _without_gradient(function: Callable[..., Any], overload: Any) -> Callable[..., Any]:
    """`function`, which refuses tensors that require grad: they would silently get none."""
    name, arguments = overload._schema.name.partition("::")[2], overload._schema.arguments
    any_requires_grad, grad_mode = torch._C._any_requires_grad, torch.is_grad_enabled

    def refuse(*args: Any, **named: Any) -> NoReturn:
        given = {a.name: v for a, v in zip(arguments, args, strict=False)} | named
        which = next(k for k, v in given.items() if any_requires_grad(v))
        raise NotImplementedError(
            f"{name}: argument '{which}' requires grad, but the operator has no backward; "
            "use torch.no_grad() or x.detach()"
        )

    def positional(*args: Any) -> Any:
        if any_requires_grad(*args) and grad_mode():
            refuse(*args)
        return function(*args)

    def with_names(*args: Any, **named: Any) -> Any:
        if any_requires_grad(*args, **named) and grad_mode():
            refuse(*args, **named)
        return function(*args, **named)

    return with_names if any(a.kwarg_only for a in arguments) else positional  # names cost 0.1 us
