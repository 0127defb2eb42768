"""Sizes and parts of the model: what decides the shape of every weight, and nothing else.

The rule: `ModelConfig.sized()` alone describes a trained model. Where the decoder was a pretrained
one its sizes and variants stand here like those of our own (`ModelConfig.around`), so that whoever
reads the weights back needs no other file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from .decoder import DecoderConfig, RopeScaling
from .errors import SpecError
from .manifest import Dims

Size = Literal["nano", "small", "base"]
Order = Literal["events first", "summary first"]

SIZES: dict[Size, dict[str, int]] = {
    "nano": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 192},
    "small": {"hidden": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ff": 1024},
    "base": {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ff": 2048},
}
_AT_LEAST_ONE = ("text", "key", "readout", "head_hidden", "embedding")
_DECODER = tuple(field.name for field in fields(DecoderConfig))


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of the model, in numbers of floats, layers and heads.

    A size of 0 is the one that `size` names.
    """

    size: Size | None = None  # of the decoder, None: nano; a number given below goes before it
    text: int = 64  # E: width of one encoded text; a pretrained text encoder has its own
    key: int = 64  # width in which questions and events are compared
    hidden: int = 0  # D: width of the decoder
    layers: int = 0  # decoder layers
    heads: int = 0  # query heads
    kv_heads: int = 0  # key/value heads; heads must be a multiple
    head_dim: int = 0  # width of one head, even; 0: hidden / heads
    ff: int = 0  # inner width of SwiGLU
    readout: int = 256  # width in which hidden state, question and evidence meet
    head_hidden: int = 512  # inner width of the embedding head
    embedding: int = 128  # width of the vector that is served
    rope_base: float = 10_000.0  # slowest rotation: one turn in about 6 * rope_base tokens
    rope_scaling: RopeScaling | None = None  # stretched rotations (Llama 3.1 and later)
    norm_eps: float = 1e-6  # added to the mean square in the decoder's norms
    qkv_bias: bool = False  # biases on queries, keys and values (Qwen2)
    qk_norm: bool = False  # norms of query and key heads (Qwen3)
    tied: bool = True  # the table of token vectors also scores the next token
    dropout: float = 0.5  # in the readout and the head, while training
    evidence: bool = True  # question-event similarity, counts and amounts at <USER_EMB>
    query_tokens: bool = False  # the decoder reads the question word by word, not its vector only
    order: Order = "events first"  # where the summary of a history stands: see `model`
    user_token: bool = True  # "summary first": the history begins with a token for all of it
    modal_tokens: bool = True  # and with one per modality; "events first": each is summed up
    delimiters: bool = False  # the first event of each run of one modality is marked

    def __post_init__(self) -> None:
        """Raises `SpecError` for a number out of range or a part that would do nothing."""
        if self.size not in (None, *SIZES):
            raise SpecError(f"size={self.size!r}, expected one of {sorted(SIZES)}")
        for name in (*SIZES["nano"], "head_dim"):
            if getattr(self, name) < 0:
                raise SpecError(
                    f"{name}={getattr(self, name)!r}, expected at least 1, or 0 for what size says"
                )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)!r}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"dropout={self.dropout!r}, expected 0 or more, below 1")
        if not self.user_token and self.order == "events first":
            raise SpecError(
                'user_token=false does nothing with order="events first", which has no such token; '
                'leave it out, or set order="summary first"'
            )

    @property
    def appends(self) -> bool:
        """Whether events can be appended to a prefix: nothing that stands there depends on them.

        What marks the first event of a run must know the event before, which evidence keeps.
        """
        return self.order == "events first" and (self.evidence or not self.delimiters)

    def state(self) -> tuple[str, ...]:
        """Names of the tensors that pass from prefix to suffix: k_0, v_0, k_1, ..., and evidence.

        Of a configuration that is `sized`.
        """
        cache = [f"{kind}_{layer}" for layer in range(self.layers) for kind in "kv"]
        return (*cache, *(("event_keys", "event_values") if self.evidence else ()))

    def sized(self) -> ModelConfig:
        """The same with every number filled in.

        Raises `SpecError` when hidden is not a multiple of heads and no head_dim is given.
        """
        named = SIZES[self.size or "nano"]
        sizes: dict[str, Any] = {name: getattr(self, name) or named[name] for name in named}
        hidden, heads = sizes["hidden"], sizes["heads"]
        if not self.head_dim and hidden % (2 * heads):
            raise SpecError(
                f"hidden={hidden}, heads={heads}, kv_heads={sizes['kv_heads']}: expected an even "
                "hidden / heads and a whole heads / kv_heads; change them or give head_dim"
            )
        given: dict[str, Any] = {**sizes, "head_dim": self.head_dim or hidden // heads}
        return replace(self, **given)

    def around(self, decoder: DecoderConfig, *, tied: bool) -> ModelConfig:
        """The same with the sizes and variants of a pretrained decoder.

        `tied` tells whether its table of token vectors also scores the next token.
        """
        given: dict[str, Any] = {name: getattr(decoder, name) for name in _DECODER}
        return replace(self, size=None, tied=tied, **given)

    def of_decoder(self) -> list[str]:
        """Names of the settings that a pretrained decoder would decide and that are given here."""
        names = ("size", *_DECODER, "tied")
        return [name for name in names if getattr(self, name) != getattr(ModelConfig, name)]

    def decoder(self) -> DecoderConfig:
        """The sizes of the decoder inside the model. Raises `SpecError` when they do not fit."""
        sized = self.sized()
        return DecoderConfig(**{name: getattr(sized, name) for name in _DECODER})

    def dims(self) -> Dims:
        """The sizes that readers of a bundle need."""
        sized = self.sized()
        return Dims(**{name: getattr(sized, name) for name in Dims.model_fields})
