from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from guards.sources import NAMESPACE, REPOSITORY, ROOTS

# A person's home, or where this very checkout and its data lie.
HOME = re.compile(r"(?<![\w.])/(?:home|Users)/\w|(?<![\w.])/(?:root)/")
HERE = (str(REPOSITORY), str(REPOSITORY.parent / "shared"))


def tracked_files() -> list[Path]:
    """Files that git knows or would add: not what .gitignore names."""
    command = ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    paths = (REPOSITORY / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def machine_paths(text: str) -> list[str]:
    """The lines of `text` that name a place on somebody's machine."""
    return [line for line in text.splitlines() if HOME.search(line) or any(h in line for h in HERE)]


@pytest.mark.parametrize("root", ROOTS)
def test_the_namespace_has_no_init_and_its_part_is_typed(root: str) -> None:
    """An __init__.py beside the subpackage would hide the other two source roots."""
    namespace = REPOSITORY / root / NAMESPACE

    assert not (namespace / "__init__.py").exists()
    assert (namespace / root / "__init__.py").is_file()
    assert (namespace / root / "py.typed").is_file()
    packages = [entry.name for entry in namespace.iterdir() if entry.name != "__pycache__"]
    assert packages == [root]


def test_tracked_files_name_no_place_on_a_machine() -> None:
    """No tracked text file holds a home folder or the place of this checkout."""
    found = {}
    for path in tracked_files():
        try:
            lines = machine_paths(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # not text
        if lines:
            found[str(path.relative_to(REPOSITORY))] = lines
    assert found == {}


def test_a_home_folder_is_noticed() -> None:
    """The check above sees homes and this checkout, and leaves URLs and /tmp alone."""
    homes = ["/home" + "/ada/data", "x=" + "/root" + "/.cache", "/Users" + "/bo", HERE[0] + "/x"]
    for text in homes:
        assert machine_paths(f"path: {text}") == [f"path: {text}"]
    assert machine_paths("https://example.org/home/ada and /tmp/x and root/y") == []


def test_every_test_says_what_it_shows() -> None:
    """Each test function has a docstring."""
    silent = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
        for path in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if ast.get_docstring(node) is None
    ]
    assert silent == []
