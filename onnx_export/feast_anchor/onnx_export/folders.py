"""A bundle appears under its name only when it is complete. No torch here.

The rule: whoever makes a bundle writes it into a temporary sibling, which takes the name at the
end. A run that fails or is killed leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BundleError
from .manifest import MANIFEST_FILE


def check_bundle_folder(out: Path) -> None:
    """Raise `BundleError` when `out` holds something that is not a bundle."""
    if not out.exists() or (out / MANIFEST_FILE).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise BundleError(f"{out} is not empty and not a bundle; give a folder of its own")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its place if the block succeeds.

    Raises `BundleError` when `out` holds something that is not a bundle.
    """
    check_bundle_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private; a bundle is read by other users
        old = work.with_name(work.name + "-old")
        if out.exists():
            os.replace(out, old)
        os.replace(work, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
