from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable

import pytest

from guards.sources import Module, imported_names, modules, within

# The modules that train, tune and export. All others run where torch is not installed.
TRAINING_SIDE = {
    "onnx_export": frozenset(
        {
            *("model", "decoder", "evidence", "text_encoder", "pretrained", "backbones"),
            *("sentence", "threads"),
            *("lora", "vocabulary", "batches", "corpus", "losses", "objective", "negatives"),
            *("training", "settings", "fitting", "validation", "checkpoints", "curves", "card"),
            *("export", "evaluation", "prompts", "baselines", "trees", "sasrec", "past", "plots"),
            *("sizes", "words", "weights", "states", "quantize", "int8_graph"),
            *("attention", "lean_graph", "parity"),
        }
    ),
    "plugin": frozenset({"readings", "tuning"}),
}
TRAINING_LIBRARIES = frozenset(
    {"torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "matplotlib", "scipy", "lightgbm"}
)

# Dependencies point down: plugin -> transforms -> onnx_export.
FORBIDDEN = {
    "onnx_export": frozenset(
        {"feast_anchor.transforms", "feast_anchor.plugin", "feast", "apache_beam"}
    ),
    "transforms": frozenset({"feast_anchor.plugin", "feast"}),
}

# Imports its arguments while the libraries named in the first one cannot be imported, and
# says which of them somebody asked for.
PROBE = """
import importlib, sys

blocked = set(sys.argv[1].split(","))

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Refuse())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def is_training_side(module: Module) -> bool:
    """Whether `module` may import torch."""
    return module.part in TRAINING_SIDE.get(module.root, ())


def offences(candidates: Iterable[Module], packages: frozenset[str]) -> dict[str, list[str]]:
    """What the candidates import out of `packages`, by module."""
    found = {
        module.name: sorted(name for name in module.imports() if within(name, packages))
        for module in candidates
    }
    return {name: imports for name, imports in found.items() if imports}


def import_without(libraries: Iterable[str], names: Iterable[str]) -> None:
    """Import `names` in a new interpreter that lacks `libraries`; fails with its traceback."""
    command = [sys.executable, "-c", PROBE, ",".join(libraries), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("root", FORBIDDEN)
def test_dependencies_point_down(root: str) -> None:
    """A lower part imports no higher one, not even inside a function."""
    assert offences(modules(root), FORBIDDEN[root]) == {}


def test_training_libraries_stay_on_the_training_side() -> None:
    """What comes with the train extra alone is imported in the training modules alone."""
    others = [module for module in modules() if not is_training_side(module)]

    assert others
    assert offences(others, TRAINING_LIBRARIES) == {}


def test_transformers_is_a_reference_for_tests_only() -> None:
    """Pretrained weights are read by our own code: nobody has to install transformers."""
    assert offences(modules(), frozenset({"transformers"})) == {}


@pytest.mark.parametrize(
    "line",
    [
        "import torch.nn",
        "from torch import nn",
        "def f():\n    from torch.nn import Linear",
        "import importlib\nimportlib.import_module('torch')",
        "from . import torch",
    ],
)
def test_an_import_is_seen_however_it_is_written(line: str) -> None:
    """The checks above see plain, from, nested, dynamic and relative imports."""
    names = list(imported_names(ast.parse(line), "feast_anchor.onnx_export"))

    torch = frozenset({"torch", "feast_anchor.onnx_export.torch"})
    assert any(within(name, torch) for name in names)


def test_importing_the_plugin_is_light() -> None:
    """`feast apply` imports the engine by name: Beam, ONNX Runtime and torch wait until a run."""
    import_without(["apache_beam", "onnxruntime", *TRAINING_LIBRARIES], ["feast_anchor.plugin"])


def test_every_serving_side_module_imports_without_torch() -> None:
    """All modules but the training ones can be imported where the train extra is missing."""
    names = [
        module.name
        for module in modules()
        if not is_training_side(module)
        if ".migrations." not in module.name  # Alembic runs these, inside its own environment
    ]

    import_without(TRAINING_LIBRARIES, names)


def test_a_heavy_import_makes_the_probe_fail() -> None:
    """The probe behind the two tests above refuses what it is told to refuse."""
    with pytest.raises(AssertionError, match="json is not to be imported here"):
        import_without(["json"], ["json"])
