"""Cells on disk: a full evaluation goes on where it was stopped.

The rule: a cell is finished when its record is there and says the digest of everything that
decides its numbers: settings, tables, pretrained files, libraries, the kind of device and the code
itself. It is then read, not computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from feast_anchor.onnx_export import few_labels as models_code
from feast_anchor.onnx_export.bundle import sha256_file
from feast_anchor.onnx_export.few_labels import Curve
from feast_anchor.onnx_export.manifest import ModalitySpec, canonical_sha256
from feast_anchor.transforms import scoring as scoring_code

from .rows import ordered

Array = np.ndarray[Any, Any]

RECORD = "cell.json"
_SCORES, _CURVE = "scores.npz", "curve.npz"
# What can change without changing a number of a cell.
_NO_MATTER = ("report.py", "plots.py", "run.py", "store.py")


@dataclass(frozen=True)
class Cell:
    """The result: labels int8 [S, N], scores [K, S, N] by row, a plane [S, N, 2] for the map."""

    users: tuple[str, ...]
    y: Array
    rows: dict[str, Array]
    plane: Array | None
    facts: dict[str, Any]
    curve: Curve | None = None


def tables_digest(modalities: Sequence[ModalitySpec], events: pa.Table, labels: Path) -> str:
    """Fingerprint of what was read: tables that are made anew, and the same, change nothing."""
    content = hashlib.sha256()
    with pa.ipc.new_stream(_Hashed(content), events.schema) as stream:
        stream.write_table(events)
    read = [modality.model_dump(mode="json") for modality in modalities]
    return canonical_sha256([read, content.hexdigest(), sha256_file(labels)])


class _Hashed(io.RawIOBase):
    """A file that keeps nothing but a digest of what is written."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)


def code_digest() -> str:
    """Fingerprint of the source files that decide a cell's numbers."""
    places = (models_code.__file__, scoring_code.__file__, __file__)
    roots = [Path(place).parent for place in places]
    files = [path for root in roots for path in sorted(root.glob("*.py"))]
    files += [Path(__file__).parents[1] / name for name in ("readings.py", "train.py", "tuning.py")]
    return canonical_sha256([sha256_file(path) for path in files if path.name not in _NO_MATTER])


def save_cell(cell: Cell, folder: Path, digest: str) -> None:
    """The scores first, the record last: a record means that the scores are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"row {name}": scores for name, scores in cell.rows.items()}
    arrays |= {} if cell.plane is None else {"plane": cell.plane}
    np.savez_compressed(folder / _SCORES, y=cell.y, users=np.array(cell.users), **arrays)
    if cell.curve is not None:
        _save_curve(cell.curve, folder / _CURVE)
    record = folder / RECORD
    unfinished = record.with_suffix(".tmp")
    found = {"digest": digest, "curve": cell.curve is not None, "facts": cell.facts}
    unfinished.write_text(json.dumps(found, indent=2), "utf-8")
    os.replace(unfinished, record)


def forget_cell(folder: Path) -> None:
    """Remove a folder's record before its bundle is replaced: it would speak of another one."""
    (folder / RECORD).unlink(missing_ok=True)


def load_cell(folder: Path, digest: str) -> Cell | None:
    """The finished cell of a folder; None when there is none or it is of another digest."""
    try:
        record: Mapping[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return None
    if record["digest"] != digest:
        return None
    with np.load(folder / _SCORES, allow_pickle=False) as arrays:
        rows = {n.removeprefix("row "): arrays[n] for n in arrays.files if n.startswith("row ")}
        users, facts = tuple(arrays["users"].tolist()), dict(record["facts"])
        curve = _load_curve(folder / _CURVE) if record["curve"] else None
        return Cell(users, arrays["y"], ordered(rows), arrays.get("plane"), facts, curve)


def _save_curve(curve: Curve, path: Path) -> None:
    methods, sizes = zip(*curve.auc, strict=True)
    np.savez_compressed(
        path,
        methods=np.array(methods),
        sizes=np.array(sizes),
        auc=np.stack(list(curve.auc.values())),  # [K, D, S]
        rounds=np.stack([curve.rounds[key] for key in curve.auc]),  # [K, D, S, R]
        seed=np.array(curve.seed),
    )


def _load_curve(path: Path) -> Curve:
    with np.load(path, allow_pickle=False) as arrays:
        keys = list(zip(arrays["methods"].tolist(), arrays["sizes"].tolist(), strict=True))
        return Curve(
            dict(zip(keys, arrays["auc"], strict=True)),
            dict(zip(keys, arrays["rounds"], strict=True)),
            int(arrays["seed"]),
        )
