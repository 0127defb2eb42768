"""The run card: what a bundle was trained on, how, for how long, and how it went.

It stands in the bundle's manifest (field `training`, outside the digest: the same weights are the
same model however long they took) and, with the curves, in a folder beside the bundle.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import sha256_file
from .corpus import Corpus, Events
from .curves import Curves, draw_curves
from .fitting import Trace, device, rate
from .inputs import Ints
from .manifest import Manifest, ModalitySpec, canonical_sha256
from .pretrained import model_files
from .settings import TrainConfig


def identity(
    corpus: Corpus,
    modalities: Sequence[ModalitySpec],
    entity: str,
    cut: datetime,
    config: TrainConfig,
    stored: str | None = None,
) -> dict[str, Any]:
    """All that decides which weights a run ends in, as JSON; two runs with one are one run.

    `stored` is the digest of a stored corpus, None where the questions were asked anew.
    """
    settings = asdict(config)
    settings.pop("checkpoint_every")  # decides when, not what
    settings["families"] = list(config.families)  # as JSON gives it back
    return {
        "config": settings,
        "data": data_digests(corpus.events),
        "pretrained": pretrained_digests(config),
        "modalities": [modality.model_dump(mode="json") for modality in modalities],
        "entity": entity,
        "corpus": stored,
        "cut": cut.isoformat(),
        "device": device().type,
        "versions": versions(),
        "code": _code_digest(),
    }


def run_card(
    corpus: Corpus,
    parts: tuple[Ints, Ints],
    config: TrainConfig,
    cut: datetime,
    trace: Trace,
    stored: str | None = None,
) -> dict[str, Any]:
    """What goes into the manifest; `parts` are the snapshots trained and validated on.

    `stored` as in `identity`.
    """
    tenths = np.array_split(np.array(trace.losses), min(10, len(trace.losses)))
    return {
        "config": asdict(config),
        "data": {"rows": len(corpus.events.times), "sha256": data_digests(corpus.events)},
        "pretrained": pretrained_digests(config),
        "corpus": stored,
        "cut": cut.isoformat(),
        "users": len(corpus.events.users),
        "validation_users": len(np.unique(corpus.user[parts[1]])),
        "events": len(corpus.events.times),
        "histories": len(corpus.user),
        "questions": len(corpus.questions),
        "answers": len(corpus.answers),
        "pairs": trace.pairs,
        "steps": trace.step,
        "loss_by_tenth": [round(float(part.mean()), 4) for part in tenths],
        "validation": trace.kept,
        "seconds": round(trace.seconds, 1),
        "device": device().type,
        "versions": versions(),
    }


def write_card(folder: Path, manifest: Manifest, config: TrainConfig, trace: Trace) -> None:
    """Write card.json, curves.json and curves.png into a folder, replacing what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "bundle": {"name": manifest.name, "digest": manifest.digest, "parity": manifest.parity},
        "training": manifest.training,
    }
    curves = Curves(
        loss=tuple(trace.losses),
        learning_rate=tuple(rate(config, step) for step in range(trace.step)),
        looks=tuple(trace.looks),
        kept_step=int(trace.kept["step"]) if trace.kept else None,
    )
    for name, content in (("card.json", card), ("curves.json", asdict(curves))):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    draw_curves(folder / "curves.png", curves, title=manifest.name)


def data_digests(events: Events) -> dict[str, str]:
    """SHA-256 (hex) of each column of the events that training may read, sorted canonically.

    Events after the cut and of held-out users are not in it: they cannot change a weight.
    """
    return {
        "user": _sha256(_texts(events.users), events.user),
        "event_timestamp": _sha256(events.times),
        "modality": _sha256(events.modality),
        "text": _sha256(_texts(events.texts), events.text),
        "amount": _sha256(events.amounts),
    }


def pretrained_digests(config: TrainConfig) -> dict[str, dict[str, str]]:
    """SHA-256 (hex) of the files of each pretrained model that a run starts from."""
    given = {"text_encoder": config.text_encoder, "backbone": config.backbone}
    return {
        setting: {
            file.relative_to(folder).as_posix(): sha256_file(file)
            for file in model_files(Path(folder))
        }
        for setting, folder in given.items()
        if folder is not None
    }


def versions() -> dict[str, str]:
    """Versions of all that a weight may depend on."""
    runtime = "onnxruntime" if sys.platform == "darwin" else "onnxruntime-gpu"
    packages = ("feast-anchor", "torch", "onnx", runtime, "tokenizers", "numpy", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _code_digest() -> str:
    """Of all of this package: a checkpoint of other code may have the same shapes and mean less."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return canonical_sha256([[file.name, sha256_file(file)] for file in files])


def _texts(texts: Sequence[str]) -> bytes:
    return json.dumps(texts, ensure_ascii=False).encode()


def _sha256(*parts: bytes | np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
