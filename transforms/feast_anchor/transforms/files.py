"""Files that appear as a whole or not at all, also across a power cut."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4


def replace_file(path: Path, write: Callable[[Path], Any], last: bool = True) -> None:
    """Write a file so that its name only ever shows the whole of it.

    Args:
        last: False if a power cut may take the name away again: because another file of the
            folder follows at once and syncs both, or because a missing file is made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two workers may be at one shard, and processes in containers share their numbers.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        if last:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> None:
    """Move a file, over one of the same name if there is one; across file systems by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        replace_file(target, lambda path: shutil.copyfile(source, path))
        source.unlink()


def sync_folder(path: Path) -> None:
    """Make a rename survive a power cut, too; platforms without folder handles skip it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
