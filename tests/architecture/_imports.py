"""Finds every import of a module, wherever it stands."""

from __future__ import annotations

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """One imported module.

    Args:
        target: Full name; for ``from a import b`` it is ``a.b``, which may be a module or a name in one.
        line: Line number.
        in_function: Whether it runs only when a function is called.
        parent_relative: Whether it is written ``from ..x import``.
    """

    target: str
    line: int
    in_function: bool
    parent_relative: bool = False

    @property
    def head(self) -> str:
        """First part of the name."""
        return self.target.split(".")[0]


def imports_of(source: str, module: str, *, is_package: bool) -> list[Import]:
    """Return the imports of ``source`` that run; those below ``if TYPE_CHECKING`` do not."""
    collector = _Collector(module.split(".") if is_package else module.split(".")[:-1])
    collector.visit(ast.parse(source))
    return collector.found


class _Collector(ast.NodeVisitor):
    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.depth = 0
        self.found: list[Import] = []

    def _add(self, target: str, node: ast.stmt | ast.expr, parent_relative: bool = False) -> None:
        self.found.append(Import(target, node.lineno, self.depth > 0, parent_relative))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        origin = [*base, *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            self._add(".".join([*origin, alias.name]), node, parent_relative=node.level > 1)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if name in {"import_module", "__import__"} and isinstance(first, ast.Constant) and isinstance(first.value, str):
            self._add(first.value, node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_deferred(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_deferred(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_deferred(node)

    def _visit_deferred(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
