"""Rewrites a module's source so that it counts its steps."""

from __future__ import annotations

import ast
from typing import Any

FRAME_DEPENDENT = {"super", "locals", "globals", "vars", "eval", "exec", "dir"}
"""Called as they are: they look at the frame that calls them."""


def _hook(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(f"__{name}__", ast.Load()), list(args), [])


def _number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


class Counting(ast.NodeTransformer):
    """Puts a step into every function, loop and comprehension, and built-ins behind hooks."""

    def _stepped(self, node: Any) -> Any:
        self.generic_visit(node)
        documented = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
        node.body.insert(int(documented), ast.Expr(_hook("tick")))
        return node

    visit_FunctionDef = visit_For = visit_While = _stepped  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        """A step, then the body."""
        self.generic_visit(node)
        node.body = ast.BoolOp(ast.And(), [_hook("tick"), node.body])
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.comprehension:
        """A step for each turn, before the conditions."""
        self.generic_visit(node)
        node.ifs.insert(0, _hook("tick"))
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`f(x)` becomes `__call__(f, x)`."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in FRAME_DEPENDENT:
            return node
        return ast.Call(ast.Name("__call__", ast.Load()), [node.func, *node.args], node.keywords)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """Sequences and sets that an operator makes have a size."""
        self.generic_visit(node)
        makes = isinstance(node.op, (ast.Add, ast.Mult, ast.Sub, ast.BitOr, ast.BitAnd, ast.BitXor))
        mixed = isinstance(node.op, ast.Mult)
        plain = (_number(node.left) or _number(node.right)) and not mixed
        return node if plain or not makes or (_number(node.left) and _number(node.right)) else _hook("sized", node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """What is added in place counts."""
        self.generic_visit(node)
        if not _number(node.value):
            node.value = _hook("sized", node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """What goes into a slice counts."""
        self.generic_visit(node)
        if any(isinstance(t, ast.Subscript) and isinstance(t.slice, ast.Slice) for t in node.targets):
            node.value = _hook("sized", node.value)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """A slice is a copy."""
        self.generic_visit(node)
        return _hook("sized", node) if isinstance(node.ctx, ast.Load) and isinstance(node.slice, ast.Slice) else node

    def visit_Starred(self, node: ast.Starred) -> ast.AST:
        """What is unpacked is copied."""
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load):
            node.value = _hook("sized", node.value)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Text that is put together; its parts stay as they are."""
        return _hook("sized", node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """`x in y` asks `__in__`."""
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], (ast.In, ast.NotIn)):
            return node
        asked = _hook("in", node.left, node.comparators[0])
        return ast.UnaryOp(ast.Not(), asked) if isinstance(node.ops[0], ast.NotIn) else asked

    def visit_Delete(self, node: ast.Delete) -> Any:
        """Deleting from a list moves the rest."""
        self.generic_visit(node)
        held = [t.value for t in node.targets if isinstance(t, ast.Subscript) and isinstance(t.value, ast.Name)]
        return [*(ast.Expr(_hook("sized", ast.Name(name.id, ast.Load()))) for name in held), node]

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """Refused."""
        raise SyntaxError(f"line {node.lineno}: asynchronous functions are not analysed")
