"""Add a tuned prompt to a bundle. No torch here.

The rule: only `prompts.safetensors` and the manifest change. Graphs are not touched and the bundle
keeps its digest, so every other scenario keeps its embedding space and every user state stays
valid. Both files are written beside their places and moved in, the manifest last: a reader sees
the bundle before or after, or refuses it in the instant between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .bundle import Bundle, sha256_file
from .errors import BundleError, SpecError
from .manifest import MANIFEST_FILE, PROMPTS_FILE, FileRecord, Manifest


def check_new_prompt(bundle: Bundle, name: str, *, replace: bool = False) -> None:
    """Refuse a name that cannot be a scenario's, or that the bundle has already.

    Raises `SpecError`.
    """
    if not name.isidentifier():
        raise SpecError(f"prompt name {name!r}, expected letters, digits and underscores")
    if name in bundle.prompts and not replace:
        raise SpecError(
            f"bundle {bundle.manifest.name!r} has a prompt {name!r}; give --replace to tune it "
            "anew, which moves its scenario to a new embedding space"
        )


def add_prompt(
    folder: str | Path,
    name: str,
    prompt: np.ndarray[Any, np.dtype[np.float32]],
    record: Mapping[str, Any],
    *,
    replace: bool = False,
) -> Manifest:
    """Add a prompt to a bundle folder and return the new manifest, whose digest is the old one.

    Args:
        folder: the bundle's folder.
        name: what scenarios call it: `Scenario(..., prompt=name)`.
        prompt: float32 [tokens, hidden].
        record: how it was tuned, as JSON; the manifest keeps it under `training["prompts"]`.
        replace: whether a prompt of this name may be there already.

    Raises:
        SpecError: the name is taken or not a name.
        BundleError: the folder is no bundle, or the prompt is not float32 [tokens, hidden].
    """
    folder = Path(folder)
    bundle = Bundle.declared(folder)
    check_new_prompt(bundle, name, replace=replace)
    hidden = bundle.manifest.dims.hidden
    if prompt.dtype != np.float32 or prompt.ndim != 2 or prompt.shape[1] != hidden:
        raise BundleError(
            f"prompt {name!r} is {prompt.dtype} {list(prompt.shape)}, expected float32 of "
            f"[tokens, {hidden}]"
        )
    prompts, manifest = folder / PROMPTS_FILE, folder / MANIFEST_FILE
    new_prompts, new_manifest = _beside(prompts), _beside(manifest)
    try:
        save_file({**bundle.prompts, name: np.ascontiguousarray(prompt)}, new_prompts)
        new_prompts.chmod(0o644)  # safetensors makes it private
        changed = _with_prompt(bundle.manifest, new_prompts, name, record)
        new_manifest.write_text(changed.dumps(), encoding="utf-8")
        os.replace(new_prompts, prompts)
        os.replace(new_manifest, manifest)
    finally:
        new_prompts.unlink(missing_ok=True)
        new_manifest.unlink(missing_ok=True)
    return changed


def _with_prompt(
    manifest: Manifest, prompts: Path, name: str, record: Mapping[str, Any]
) -> Manifest:
    file = FileRecord(bytes=prompts.stat().st_size, sha256=sha256_file(prompts))
    records = {**manifest.training.get("prompts", {}), name: dict(record)}
    return manifest.model_copy(
        update={
            "files": {**manifest.files, PROMPTS_FILE: file},
            "training": {**manifest.training, "prompts": records},
        }
    )


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
