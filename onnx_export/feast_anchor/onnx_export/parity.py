"""Do graphs and model compute the same? On random inputs of several shapes, and how far apart.

`random_inputs` is what every comparison of the two feeds: padded histories, any of them empty,
questions of all lengths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bundle import Bundle, empty_past
from .errors import BundleError
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .manifest import GRAPHS
from .model import Anchor

TOLERANCE = 1e-5  # largest absolute difference of one number of a vector

PREFIX_INPUTS = ("vectors", "features", "modality", "days")
ANSWER_INPUTS = ("ids", "length", "vector")
SUFFIX_INPUTS = ("ids", "qlen", "plen", "now", "context", "query", "prompt")

_SHAPES = ((1, 1, 1, 1), (1, 5, 3, 4), (3, 1, 1, 6), (2, 7, 5, 1), (4, 33, 8, 12))  # B, T, Q, L


def check_parity(model: Anchor, bundle: Bundle, seed: int = 0) -> dict[str, Any]:
    """Largest absolute differences between model and graphs over several random shapes.

    Keys: "event", "prefix", "suffix" and "answer" compare each graph with the same torch code (the
    state's numbers relative to the largest of their tensor, where that is above 1);
    "append" compares a state that events were appended to with one read at once; "full" compares
    prefix then suffix in ONNX Runtime with one plain causal forward per question.
    Raises `BundleError` when one is above `TOLERANCE`.
    """
    sessions = {graph: bundle.session(graph) for graph in GRAPHS}
    worst: dict[str, float] = {}
    generator = np.random.default_rng(seed)
    for shape in _SHAPES:
        for name, difference in _compare(model, sessions, shape, generator).items():
            worst[name] = max(worst.get(name, 0.0), difference)
    bad = {name: value for name, value in worst.items() if not value <= TOLERANCE}
    if bad:
        raise BundleError(
            f"the exported graphs differ from the model by {bad}, expected at most {TOLERANCE}; "
            "this is a fault of the export or of the onnxruntime version, do not use the bundle"
        )
    return {"tolerance": TOLERANCE, "max_abs_difference": worst, "shapes": [*map(list, _SHAPES)]}


def random_inputs(
    model: Anchor, shape: tuple[int, int, int, int], generator: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of the prefix and suffix graphs for (B, T, Q, L), padded at random lengths.

    Some histories have no event at all; every question ends in `<USER_EMB>` and one prompt of
    two rows may stand before it.
    """
    batch, events, questions, length = shape
    special, config = model.special, model.config
    real = generator.integers(0, events + 1, batch)
    modality = generator.integers(0, model.modalities, (batch, events))
    modality[np.arange(events) >= real[:, None]] = -1
    shown = (modality >= 0)[..., None]
    qlen = generator.integers(1, length + 1, (batch, questions))
    ids = generator.integers(0, special.pad, (batch, questions, length))
    ids = np.where(generator.random(ids.shape) < 0.2, special.first_prompt + ids % 2, ids)
    ids[np.arange(length) >= qlen[..., None]] = special.pad
    np.put_along_axis(ids, qlen[..., None] - 1, special.user_emb, axis=2)
    asked = generator.random((batch, questions, 1)) < 0.8  # the others ask nothing
    plen = np.broadcast_to(real[:, None], qlen.shape)
    if model.summary is None:  # any as-of time may be asked about
        plen = generator.integers(0, plen + 1)

    def normal(*size: int) -> np.ndarray[Any, Any]:
        return generator.standard_normal(size).astype(np.float32)

    return {
        "vectors": normal(batch, events, config.text) * shown,
        "features": normal(batch, events, len(EVENT_FEATURES)) * shown,
        "modality": modality,
        "days": np.abs(normal(batch, events)) * 30 * shown[..., 0],
        "ids": ids,
        "qlen": qlen,
        "plen": plen.copy(),
        "now": np.abs(normal(batch, questions)) * 60,
        "context": np.abs(normal(batch, questions, len(CONTEXT_FEATURES))),
        "query": normal(batch, questions, config.text) * asked,
        "prompt": normal(2, config.hidden),
    }


def reference(model: Anchor, arrays: dict[str, np.ndarray[Any, Any]]) -> Tensor:
    """What `full` gives for every history and question of `random_inputs`: [B,Q,embedding]."""
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    rows: list[Tensor] = []
    for b in range(len(arrays["ids"])):
        for q in range(arrays["ids"].shape[1]):
            ids = t["ids"][b, q, : int(arrays["qlen"][b, q])]
            seen = int(arrays["plen"][b, q])
            vectors, features, modality, days = (t[name][b, :seen] for name in PREFIX_INPUTS)
            now, context, query = (t[name][b, q] for name in ("now", "context", "query"))
            history = (vectors, features, modality, days)
            rows.append(model.full(*history, ids, now, context, query, t["prompt"]))
    return torch.stack(rows).reshape(*arrays["ids"].shape[:2], -1)


def random_answers(
    model: Anchor, shape: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray[Any, Any], ...]:
    """Inputs of the answer graph for (A, L): padded at random lengths, each ending in `<eos>`."""
    answers, width = shape
    special = model.special
    length = generator.integers(1, width + 1, answers)
    ids = generator.integers(0, special.pad, shape)
    ids[np.arange(width) >= length[:, None]] = special.pad
    np.put_along_axis(ids, length[:, None] - 1, special.eos, axis=1)
    vectors = generator.standard_normal((answers, model.config.text)).astype(np.float32)
    return ids, length, vectors


@torch.no_grad()
def _compare(
    model: Anchor,
    sessions: dict[str, Any],
    shape: tuple[int, int, int, int],
    generator: np.random.Generator,
) -> dict[str, float]:
    arrays = random_inputs(model, shape, generator)
    texts = generator.integers(0, model.texts.vocabulary, (shape[1], shape[3]))
    state_names = model.config.state()
    event = sessions["event"].run(None, {"ids": texts})[0]
    state = _prefix(sessions["prefix"], arrays)
    feed = {name: arrays[name] for name in SUFFIX_INPUTS}
    vectors = sessions["suffix"].run(None, feed | dict(zip(state_names, state, strict=True)))[0]

    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch_state = model.prefix(*(t[name] for name in PREFIX_INPUTS))
    ids, qlen, plen, now, context, query, prompt = (t[name] for name in SUFFIX_INPUTS)
    torch_vectors = model.suffix(ids, qlen, plen, now, context, query, prompt, torch_state)
    spoken = random_answers(model, (shape[0], shape[3]), generator)
    spoken_feed = dict(zip(ANSWER_INPUTS, spoken, strict=True))
    answers = sessions["answer"].run(None, spoken_feed)[0]
    found = {}
    if model.config.appends:
        again = map(torch.from_numpy, _appended(sessions["prefix"], arrays))
        found["append"] = max(_gap(a, b) / _size(b) for a, b in zip(state, again, strict=True))
    return found | {
        "event": _gap(event, model.event(torch.from_numpy(texts))),
        "prefix": max(_gap(a, b) / _size(b) for a, b in zip(state, torch_state, strict=True)),
        "suffix": _gap(vectors, torch_vectors),
        "full": _gap(vectors, reference(model, arrays)),
        "answer": _gap(answers, model.answer(*map(torch.from_numpy, spoken))),
    }


def _prefix(session: Any, arrays: dict[str, np.ndarray[Any, Any]], past: Any = None) -> Any:
    """The state of `PREFIX_INPUTS` after that of `past`, none where it is None."""
    feed = {name: arrays[name] for name in PREFIX_INPUTS}
    before = empty_past(session, len(feed["modality"])) if past is None else past
    return session.run(None, feed | before)


def _appended(session: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The state of all events, read in two runs where there are two."""
    half = arrays["modality"].shape[1] // 2
    if not half:
        return _prefix(session, arrays)
    first, then = (
        {name: arrays[name][:, piece] for name in PREFIX_INPUTS}
        for piece in (slice(half), slice(half, None))
    )
    names = empty_past(session, 1)
    return _prefix(session, then, dict(zip(names, _prefix(session, first), strict=True)))


def _gap(ours: np.ndarray[Any, Any], theirs: Tensor) -> float:
    """Largest absolute difference; NaN on either side counts as infinitely far."""
    gap = np.abs(ours - theirs.numpy())
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _size(tensor: Tensor) -> float:
    """The largest number, at least 1: pretrained keys reach hundreds, and rounding with them."""
    return float(tensor.abs().amax().clamp(min=1.0))
