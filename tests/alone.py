"""Another process that imports the catalogue alone, for tests with several of them.

The package's __init__ brings Feast, and with it seconds of imports per process that have no part
in those tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from feast_anchor.plugin import catalog

_ALONE = f"""
import sys, types
package = sys.modules["feast_anchor.plugin"] = types.ModuleType("feast_anchor.plugin")
package.__path__ = [{str(Path(catalog.__file__).parent)!r}]
"""


def start_python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process, with pipes: the tests meet it at its lines."""
    pipe = subprocess.PIPE
    command_line = [sys.executable, "-c", _ALONE + script, *arguments]
    return subprocess.Popen(command_line, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line it prints; its errors when it prints none."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return line.rstrip()


def let_go(process: subprocess.Popen[str]) -> None:
    """Let a process that waits for a line go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
