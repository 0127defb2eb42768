"""From a bundle back to the torch model, for prompt tuning: gradients need more than graphs.

The rule: weights are trusted only after the graphs agree with them. The graphs decide what a vector
means; the weights are the same numbers once more, so they stand outside the bundle's digest, and
reading them compares both on random histories and questions.

The text encoder is not among them: a pretrained one is large, and no gradient reaches any. Texts
become vectors through `event.onnx`, as they do when a bundle is served.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .bundle import Bundle, empty_past
from .errors import BundleError
from .manifest import WEIGHTS_FILE, Manifest
from .model import Anchor, ModelConfig
from .parity import random_inputs

_FAR = 1e-4  # ten times what an export allows: another machine rounds otherwise


def read_model(bundle: Bundle) -> Anchor:
    """The frozen model of an opened bundle, in evaluation mode; it cannot encode texts.

    Raises `BundleError` when the bundle has no weights, or others than its graphs.
    """
    manifest = bundle.manifest
    if WEIGHTS_FILE not in manifest.files:
        raise BundleError(
            f"bundle {manifest.name!r} has no {WEIGHTS_FILE}, which tuning reads; train it again "
            "with this feast-anchor"
        )
    try:
        config = TypeAdapter(ModelConfig).validate_python(manifest.architecture)
        model = Anchor(
            config, manifest.special_ids, len(manifest.modalities), _NoTexts(config.text)
        )
        model.load_state_dict(load_file(bundle.folder / WEIGHTS_FILE))
    except (ValidationError, ValueError, SafetensorError, RuntimeError) as error:
        raise BundleError(
            f"the weights of bundle {manifest.name!r} do not fit this feast-anchor: {error}; "
            "train the bundle again"
        ) from error
    model.eval().requires_grad_(False)
    _compare(model, bundle)
    return model


class _NoTexts(nn.Module):
    """Stands where the text encoder was."""

    pad, vocabulary = 0, 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def raw(self, ids: Tensor) -> Tensor:
        """Refuse."""
        raise NotImplementedError("encode texts with Bundle.encode_texts")

    vectors = forward = raw


@torch.no_grad()
def _compare(model: Anchor, bundle: Bundle) -> None:
    """Refuse weights that give other states or vectors than the graphs do."""
    arrays: dict[str, Any] = random_inputs(model, (2, 7, 5, 6), np.random.default_rng(0))
    prefix, suffix = bundle.session("prefix"), bundle.session("suffix")
    arrays |= empty_past(prefix, len(arrays["modality"]))
    state = prefix.run(list(bundle.manifest.state), _named(prefix, arrays))
    arrays |= dict(zip(bundle.manifest.state, state, strict=True))
    (vectors,) = suffix.run(["embedding"], _named(suffix, arrays))
    t = {name: torch.from_numpy(array) for name, array in arrays.items() if array.size}
    ours = model.prefix(*(t[name] for name in ("vectors", "features", "modality", "days")))
    ids, qlen, plen, now, context, query, prompt = (
        t[name] for name in ("ids", "qlen", "plen", "now", "context", "query", "prompt")
    )
    found = model.suffix(ids, qlen, plen, now, context, query, prompt, ours)
    difference = _difference(found, torch.from_numpy(vectors), bundle.manifest)
    if difference is not None:
        raise BundleError(
            f"the weights of bundle {bundle.manifest.name!r} are not its graphs': {difference}; "
            "export the bundle again"
        )


def _difference(found: Tensor, vectors: Tensor, manifest: Manifest) -> str | None:
    """What is wrong, if anything; int8 graphs are as near as they were found to be."""
    if manifest.dtype == "float32":
        gap = float((found - vectors).abs().max())
        return None if gap <= _FAR else f"vectors differ by {gap:.1e}, expected at most {_FAR}"
    cosine, gate = float((found * vectors).sum(-1).min()), manifest.quantisation["gate"]
    return None if cosine >= gate else f"cosine {cosine:.5f}, expected at least {gate}"


def _named(session: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    return {value.name: arrays[value.name] for value in session.get_inputs()}
