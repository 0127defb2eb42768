"""From a trained model to a bundle folder, with proof that the graphs compute the same thing.

The rule: a bundle appears under its name only when it is complete (`folders`) and its graphs agree
with the model to `TOLERANCE`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import Dim

from .bundle import Bundle, empty_past, seal
from .errors import BundleError
from .folders import replacing
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .lean_graph import inner_values, lean
from .manifest import (
    GRAPHS,
    PROMPTS_FILE,
    TEXT_TOKENIZER_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    ModalitySpec,
)
from .model import Anchor, ModelConfig

OPSET = 23
TOLERANCE = 1e-5  # largest absolute difference of one number of a vector
EXTERNAL_ABOVE = 1_500_000_000  # bytes of weights; protobuf refuses files of two gigabytes

_SHAPES = ((1, 1, 1, 1), (1, 5, 3, 4), (3, 1, 1, 6), (2, 7, 5, 1), (4, 33, 8, 12))  # B, T, Q, L


@dataclass(frozen=True)
class BundleInfo:
    """What the manifest says beyond the model's own sizes."""

    name: str
    entity: str
    modalities: tuple[ModalitySpec, ...]
    max_text_tokens: int
    max_query_tokens: int
    training: dict[str, Any]


class _Entry(nn.Module):
    """One of the model's entry points as a module of its own, which the exporter asks for."""

    def __init__(self, model: Anchor, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model  # its parameters become the graph's
        self.call = call

    def forward(self, *args: Tensor) -> Any:
        return self.call(*args)


def export_bundle(
    model: Anchor,
    tokenizer: Tokenizer,
    info: BundleInfo,
    out: str | Path,
    *,
    text_tokenizer: Tokenizer | None = None,
    prompts: dict[str, np.ndarray[Any, np.dtype[np.float32]]] | None = None,
) -> Manifest:
    """Write a bundle folder and return its manifest.

    Args:
        model: the trained model; left in evaluation mode.
        tokenizer: the decoder's; its vocabulary has `model.special.pad` tokens.
        text_tokenizer: the text encoder's, where that is another one.
        info: what to write into the manifest beside the sizes.
        out: folder to make; a bundle already there is replaced when the new one is complete.
        prompts: tuned soft prompts by name, each float32 [tokens, hidden].

    Raises:
        BundleError: a graph and the model differ by more than `TOLERANCE`, or `out` holds
            something that is not a bundle.
    """
    model.eval()
    with replacing(Path(out)) as folder:
        _write_graphs(model, folder)
        tokenizer.save(str(folder / TOKENIZER_FILE))
        (text_tokenizer or tokenizer).save(str(folder / TEXT_TOKENIZER_FILE))
        save_file(prompts or {}, folder / PROMPTS_FILE)
        save_file(_weights(model), folder / WEIGHTS_FILE)
        for name in (PROMPTS_FILE, WEIGHTS_FILE):
            (folder / name).chmod(0o644)  # safetensors makes them private
        draft = seal(folder, _draft(model, info))
        parity = check_parity(model, Bundle.open(folder))
        return seal(folder, draft.model_copy(update={"parity": parity}))


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
            vectors, features, modality, days = (t[name][b, :seen] for name in _PREFIX_INPUTS)
            now, context, query = (t[name][b, q] for name in ("now", "context", "query"))
            history = (vectors, features, modality, days)
            rows.append(model.full(*history, ids, now, context, query, t["prompt"]))
    return torch.stack(rows).reshape(*arrays["ids"].shape[:2], -1)


_PREFIX_INPUTS = ("vectors", "features", "modality", "days")
_ANSWER_INPUTS = ("ids", "length", "vector")
_SUFFIX_INPUTS = ("ids", "qlen", "plen", "now", "context", "query", "prompt")


@torch.no_grad()
def _compare(
    model: Anchor,
    sessions: dict[str, Any],
    shape: tuple[int, int, int, int],
    generator: np.random.Generator,
) -> dict[str, float]:
    arrays = random_inputs(model, shape, generator)
    texts = generator.integers(0, model.texts.vocabulary, (shape[1], shape[3]))
    state_names = state_tensors(model.config)
    event = sessions["event"].run(None, {"ids": texts})[0]
    state = _prefix(sessions["prefix"], arrays)
    feed = {name: arrays[name] for name in _SUFFIX_INPUTS}
    vectors = sessions["suffix"].run(None, feed | dict(zip(state_names, state, strict=True)))[0]

    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch_state = model.prefix(*(t[name] for name in _PREFIX_INPUTS))
    ids, qlen, plen, now, context, query, prompt = (t[name] for name in _SUFFIX_INPUTS)
    torch_vectors = model.suffix(ids, qlen, plen, now, context, query, prompt, torch_state)
    spoken = _random_answers(model, (shape[0], shape[3]), generator)
    spoken_feed = dict(zip(_ANSWER_INPUTS, spoken, strict=True))
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
    """The state of `_PREFIX_INPUTS` after that of `past`, none where it is None."""
    feed = {name: arrays[name] for name in _PREFIX_INPUTS}
    before = empty_past(session, len(feed["modality"])) if past is None else past
    return session.run(None, feed | before)


def _appended(session: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """The state of all events, read in two runs where there are two."""
    half = arrays["modality"].shape[1] // 2
    if not half:
        return _prefix(session, arrays)
    first, then = (
        {name: arrays[name][:, piece] for name in _PREFIX_INPUTS}
        for piece in (slice(half), slice(half, None))
    )
    names = empty_past(session, 1)
    return _prefix(session, then, dict(zip(names, _prefix(session, first), strict=True)))


def _random_answers(
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


def _gap(ours: np.ndarray[Any, Any], theirs: Tensor) -> float:
    """Largest absolute difference; NaN on either side counts as infinitely far."""
    gap = np.abs(ours - theirs.numpy())
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _size(tensor: Tensor) -> float:
    """The largest number, at least 1: pretrained keys reach hundreds, and rounding with them."""
    return float(tensor.abs().amax().clamp(min=1.0))


def state_tensors(config: ModelConfig) -> tuple[str, ...]:
    """Names of the tensors that pass from prefix to suffix: k_0, v_0, k_1, ..., and evidence."""
    cache = [f"{kind}_{layer}" for layer in range(config.layers) for kind in "kv"]
    return (*cache, *(("event_keys", "event_values") if config.evidence else ()))


def _write_graphs(model: Anchor, folder: Path) -> None:
    arrays = random_inputs(model, (3, 5, 4, 6), np.random.default_rng(0))
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state_names = state_tensors(model.config)
    with torch.no_grad():
        # contiguous: strides of a non-contiguous example would enter the graph as unknowns
        state = [x.contiguous() for x in model.prefix(*(t[name] for name in _PREFIX_INPUTS))]
    # one name for the tokens of every tensor: the graphs then work out one shape for all layers
    tokens = Dim("P", min=0)
    cache = [{0: Dim.DYNAMIC, 2: tokens}] * (2 * model.config.layers)
    evidence = [{0: Dim.DYNAMIC, 1: tokens}] * (len(state) - len(cache))
    texts = torch.arange(14).reshape(2, 7) % model.texts.vocabulary
    _write(
        _Entry(model, model.event),
        (texts,),
        [_free(0, 1)],
        folder / "event.onnx",
        ["ids"],
        ["vector"],
    )
    past = state if model.config.appends else []
    _write(
        _Entry(
            model,
            lambda vectors, features, modality, days, *past: model.prefix(
                vectors, features, modality, days, past=past
            ),
        ),
        (*(t[name] for name in _PREFIX_INPUTS), *past),
        [*[_free(0, 1)] * 4, *(cache + evidence)[: len(past)]],
        folder / "prefix.onnx",
        (*_PREFIX_INPUTS, *(f"past_{name}" for name in state_names[: len(past)])),
        state_names,
    )
    _write(
        _Entry(
            model,
            lambda ids, qlen, plen, now, context, query, prompt, *state: model.suffix(
                ids, qlen, plen, now, context, query, prompt, state
            ),
        ),
        (*(t[name] for name in _SUFFIX_INPUTS), *state),
        [_free(0, 1, 2), *[_free(0, 1)] * 5, _free(0), *cache, *evidence],
        folder / "suffix.onnx",
        (*_SUFFIX_INPUTS, *state_names),
        ["embedding"],
    )
    answers = _random_answers(model, (3, 5), np.random.default_rng(0))
    _write(
        _Entry(model, model.answer),
        tuple(torch.from_numpy(array) for array in answers),
        [_free(0, 1), _free(0), _free(0)],
        folder / "answer.onnx",
        _ANSWER_INPUTS,
        ["embedding"],
    )


def _free(*axes: int) -> dict[int, Any]:
    return dict.fromkeys(axes, Dim.DYNAMIC)


def _write(
    module: nn.Module, args: tuple[Tensor, ...], dynamic: Any, path: Path, inputs: Any, outputs: Any
) -> None:
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            args,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(tuple(dynamic),),  # one more: the arguments are one *args
            input_names=list(inputs),
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns one
    lean(program.model)
    for value in inner_values(program.model):
        if value.name in outputs:  # the token lookup is called "embedding" too
            value.name = f"inner_{value.name}"
    weights = program.model.graph.initializers.values()
    size = sum(weight.const_value.nbytes for weight in weights if weight.const_value is not None)
    program.save(path, external_data=size > EXTERNAL_ABOVE)  # beside it, as <name>.onnx.data


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns of its own internals and of packages that nobody asked for."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _weights(model: Anchor) -> dict[str, np.ndarray[Any, Any]]:
    """What prompts are tuned with; texts reach it as vectors, so their encoder stays out."""
    return {
        name: tensor.detach().cpu().contiguous().numpy()
        for name, tensor in model.state_dict().items()
        if not name.startswith("texts.")
    }


def _draft(model: Anchor, info: BundleInfo) -> Manifest:
    return Manifest(
        name=info.name,
        entity=info.entity,
        modalities=info.modalities,
        max_text_tokens=info.max_text_tokens,
        max_query_tokens=info.max_query_tokens,
        text_pad=model.texts.pad,
        event_features=EVENT_FEATURES,
        context_features=CONTEXT_FEATURES,
        sequence=sequence(model.config),
        dims=model.config.dims(),
        special_ids=model.special,
        opset=OPSET,
        state=state_tensors(model.config),
        appends=model.config.appends,
        architecture=asdict(model.config),
        training=info.training,
    )


def sequence(config: ModelConfig) -> tuple[str, ...]:
    """What stands in the decoder's sequence, in order."""
    parts = []
    if config.order == "summary first":
        parts += ["user"] if config.user_token else []
        parts += ["modalities"] if config.modal_tokens else []
    parts += ["events"]
    parts += ["query"] if config.query_tokens else []
    return (*parts, "prompt", "user_emb")
