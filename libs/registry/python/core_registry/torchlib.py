"""Torch operators for facades: torch.library's define, impl, register_fake and register_autograd in one call.

Not torch.library.custom_op, which costs 17 us a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_libraries: dict[str, torch.library.Library] = {}


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
    `torch.library.register_autograd`; without them `impl` gets inputs that require grad, and the binding that
    it calls refuses them while grad mode is on.
    """
    library = _libraries.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in devices:
        library.impl(name, impl, device)
    torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
    overload = getattr(getattr(torch.ops, namespace), name).default
    if backward is not None:
        torch.library.register_autograd(f"{namespace}::{name}", backward, setup_context=setup_context, lib=library)
    return overload
