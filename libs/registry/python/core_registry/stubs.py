"""Type stubs of a plugin's extension module, from its table of operators."""

from __future__ import annotations

from . import Op, Plugin

_TYPES = {"int": "SupportsIndex", "float": "float", "bool": "bool", "str": "str"}


def stub(plugin: Plugin) -> str:
    """The text of `_<plugin>.pyi`."""
    body = "\n".join(_function(op) for op in plugin.ops)
    typing = "Any, SupportsIndex" if any(a.kind == "int" for o in plugin.ops for a in o.args) else "Any"
    return f"# Made by `core stubs {plugin.name}`.\nfrom typing import {typing}\n\n{body}"


def _function(op: Op) -> str:
    lines = [f"def {op.name.partition('.')[2]}("]
    for i, a in enumerate(op.args):
        if a.kind == "tensor":
            dtypes = " | ".join(dict.fromkeys(o.dtypes[i] or "" for o in op.overloads))
            note = f"  # {'out ' if a.out else ''}{dtypes}[{a.shape}]"
            lines.append(f"    {a.name}: Any{' | None' if a.optional else ''},{note}")
        else:
            lines.append(f"    {a.name}: {_TYPES[a.kind]},")
    doc = op.doc.replace("\\", "\\\\").replace('"""', "'''")
    return "\n".join([*lines, ") -> None:", f'    """{doc}"""', ""])
