"""Check what is in a built wheel and sdist: `python .ci/check_dist.py build/dist`.

The rule: the wheel holds every file of the three source roots and nothing else of this
repository; the sdist holds what it takes to build, test and read about them.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ROOTS = ("plugin", "transforms", "onnx_export")
MUST_SHIP = (
    *(f"feast_anchor/{root}/{name}" for root in ROOTS for name in ("__init__.py", "py.typed")),
    "feast_anchor/plugin/migrations/env.py",
    "feast_anchor/plugin/migrations/script.py.mako",
)
SDIST_TOP = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "Makefile", "tests", *ROOTS)


def source_files() -> set[str]:
    """Files below the source roots, by the path they have in the wheel."""
    return {
        path.relative_to(REPOSITORY / root).as_posix()
        for root in ROOTS
        for path in (REPOSITORY / root / "feast_anchor").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_problems(wheel: Path) -> list[str]:
    """What is wrong with the wheel, one sentence each."""
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    sources = source_files()
    problems = [f"wheel lacks {name}" for name in sorted(sources - packaged)]
    problems += [f"wheel holds {name}, which is no source" for name in sorted(packaged - sources)]
    problems += [f"wheel must ship {name}" for name in MUST_SHIP if name not in packaged]
    if "feast_anchor/__init__.py" in packaged:
        problems.append("feast_anchor/__init__.py would close the namespace package")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        problems.append("wheel lacks its LICENSE")
    return problems


def sdist_problems(sdist: Path) -> list[str]:
    """What is wrong with the sdist, one sentence each."""
    with tarfile.open(sdist) as archive:
        paths = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    top = {path.parts[0] for path in paths if path.parts}
    problems = [f"sdist lacks {name}" for name in SDIST_TOP if name not in top]
    made = [path for path in paths if {"__pycache__", ".venv"} & set(path.parts)]
    return problems + [f"sdist holds {path}, which a run has made" for path in made]


def main(folder: Path) -> int:
    """Check the one wheel and one sdist in `folder`; returns the exit status."""
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    problems = wheel_problems(wheel) + sdist_problems(sdist)
    for problem in problems:
        print(f"wheel-check: {problem}", file=sys.stderr)
    if not problems:
        print(f"wheel-check: {wheel.name} and {sdist.name} hold what they should")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
