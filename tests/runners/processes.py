"""Which processes a process has started, from /proc: these tests run on Linux alone."""

from __future__ import annotations

from pathlib import Path


def children(parent: int, name: str) -> list[int]:
    """Process ids of the children of a process whose command line holds a name; zombies too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent and name.encode() in command:
            found.append(int(folder.name))
    return sorted(found)


def is_alive(process: int) -> bool:
    """Whether a process still does something; one that nobody has buried does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
