"""The project's own modules as syntax trees, for tests about what a module may contain.

Every function looks at all files that exist now: a new module is covered without being listed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NAMESPACE = "feast_anchor"
ROOTS = ("plugin", "transforms", "onnx_export")


@dataclass(frozen=True)
class Module:
    """One Python file below a source root."""

    root: str  # the folder at the top of the repository, also the subpackage's name
    path: Path

    @property
    def name(self) -> str:
        """The dotted name it is imported by."""
        parts = self.path.relative_to(REPOSITORY / self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def part(self) -> str:
        """Its module or package directly under the subpackage, `""` for the subpackage."""
        return [*self.name.split("."), ""][2]

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.path.read_text(encoding="utf-8"), self.path)

    def imports(self) -> frozenset[str]:
        """Dotted names it imports anywhere, in functions and under TYPE_CHECKING too."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        return frozenset(imported_names(self.tree, package))


def modules(*roots: str) -> list[Module]:
    """All modules below the given source roots (all three by default), by path."""
    return [
        Module(root, path)
        for root in roots or ROOTS
        for path in sorted((REPOSITORY / root / NAMESPACE).rglob("*.py"))
    ]


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names imported in `tree`; `from a import b` gives `a.b`, which covers both."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*(above if node.level else []), *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in DYNAMIC_IMPORTS:
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


DYNAMIC_IMPORTS = ("importlib.import_module", "import_module", "__import__")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call in `tree` with the dotted name it is written with, `""` if it has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield _called(node), node


def within(name: str, packages: frozenset[str]) -> bool:
    """Whether the dotted `name` is one of `packages` or lies in one."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in packages for end in range(1, len(parts) + 1))


def _called(node: ast.Call) -> str:
    name = ast.unparse(node.func)
    return name if all(part.isidentifier() for part in name.split(".")) else ""
