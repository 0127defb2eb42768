"""Disks that are too small, from the kernel: a tmpfs of a few pages, or a limit on a file's size.

A tmpfs needs a user namespace, which not every container allows; the error then says `NO_DISK`. A
limit on the size of files works everywhere: the write that passes it fails in the middle, with
EFBIG where a full disk says ENOSPC.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
NO_DISK = "this process may not have a disk of its own"


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Put a disk of `size` bytes under a folder for the rest of this process, with its files on it.

    When the body ends the disk's files are moved to the large disk below, as an operator would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    below = os.open(folder, os.O_DIRECTORY)
    try:
        _own_mounts()
        _mount("tmpfs", folder, f"size={size}")
    except (OSError, AttributeError) as error:  # not allowed, or not Linux
        raise RuntimeError(f"{NO_DISK}: {error}") from error
    large = f"/proc/self/fd/{below}"
    shutil.copytree(large, folder, dirs_exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(large, ignore_errors=True)  # what is in it; the folder itself stays
        shutil.copytree(folder, large, dirs_exist_ok=True)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes while the body runs."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # else the first byte too many kills
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _own_mounts() -> None:
    """Give this process, which must have one thread, mounts that nobody else sees."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_MOUNTS | _NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(kind: str, folder: Path, options: str) -> None:
    _call("mount", kind.encode(), bytes(folder), kind.encode(), 0, options.encode())


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
