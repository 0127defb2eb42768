from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from guards.sources import calls, imported_names, modules, within

# Formats that run code when they are read, or libraries that read and write them.
PICKLES = frozenset(
    {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
)
PICKLING_CALLS = frozenset({"torch.load", "torch.save"})


def pickling(tree: ast.AST, package: str = "") -> Iterator[str]:
    """The imports and calls in `tree` that pickle."""
    yield from (name for name in imported_names(tree, package) if within(name, PICKLES))
    names = imported_names(tree, package)
    yield from (name for name in names if name in PICKLING_CALLS)
    for name, call in calls(tree):
        allowed = any(
            keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            for keyword in call.keywords
        )
        if name in PICKLING_CALLS or allowed:
            yield f"{name}() in line {call.lineno}"


def test_nothing_of_ours_pickles() -> None:
    """No source module imports a pickling library or calls one through torch or numpy."""
    found = {module.name: list(pickling(module.tree, module.name)) for module in modules()}

    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    from dill import loads",
        "import cloudpickle as quick",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_a_pickle_is_seen_however_it_is_written(line: str) -> None:
    """The check above sees imports, torch's own calls and numpy's switch."""
    assert list(pickling(ast.parse(line)))
    assert not list(pickling(ast.parse("np.load(path, allow_pickle=False)")))
