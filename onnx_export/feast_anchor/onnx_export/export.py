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

from .bundle import Bundle, seal
from .folders import replacing
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .lean_graph import inner_values, lean
from .manifest import (
    PROMPTS_FILE,
    TEXT_TOKENIZER_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Manifest,
    ModalitySpec,
)
from .model import Anchor, ModelConfig
from .parity import (
    ANSWER_INPUTS,
    PREFIX_INPUTS,
    SUFFIX_INPUTS,
    check_parity,
    random_answers,
    random_inputs,
)

OPSET = 23
EXTERNAL_ABOVE = 1_500_000_000  # bytes of weights; protobuf refuses files of two gigabytes


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


def _write_graphs(model: Anchor, folder: Path) -> None:
    arrays = random_inputs(model, (3, 5, 4, 6), np.random.default_rng(0))
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    state_names = model.config.state()
    with torch.no_grad():
        # contiguous: strides of a non-contiguous example would enter the graph as unknowns
        state = [x.contiguous() for x in model.prefix(*(t[name] for name in PREFIX_INPUTS))]
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
        (*(t[name] for name in PREFIX_INPUTS), *past),
        [*[_free(0, 1)] * 4, *(cache + evidence)[: len(past)]],
        folder / "prefix.onnx",
        (*PREFIX_INPUTS, *(f"past_{name}" for name in state_names[: len(past)])),
        state_names,
    )
    _write(
        _Entry(
            model,
            lambda ids, qlen, plen, now, context, query, prompt, *state: model.suffix(
                ids, qlen, plen, now, context, query, prompt, state
            ),
        ),
        (*(t[name] for name in SUFFIX_INPUTS), *state),
        [_free(0, 1, 2), *[_free(0, 1)] * 5, _free(0), *cache, *evidence],
        folder / "suffix.onnx",
        (*SUFFIX_INPUTS, *state_names),
        ["embedding"],
    )
    answers = random_answers(model, (3, 5), np.random.default_rng(0))
    _write(
        _Entry(model, model.answer),
        tuple(torch.from_numpy(array) for array in answers),
        [_free(0, 1), _free(0), _free(0)],
        folder / "answer.onnx",
        ANSWER_INPUTS,
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
        state=model.config.state(),
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
