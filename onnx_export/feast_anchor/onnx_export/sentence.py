"""A pretrained sentence encoder of the BERT family, such as all-MiniLM-L6-v2, as one torch module.

The law of this module: a text's vector depends on its own tokens alone. Padding never enters a
score, a sum or a position, so the vector is the same in every batch, to rounding.

Texts have to be tokenised with their special tokens ([CLS] and [SEP]), as the encoder was trained;
`Tokenizer.encode` adds them unless it is told not to. When cutting a long text, cut before they
are added (`Tokenizer.enable_truncation` does), so that the last one stays.

Letters in shape comments: N texts, L tokens of a text, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from .errors import PretrainedError
from .pretrained import Config, Weights, read_json, read_tokenizer

_NEVER = -1e9  # a masked score: exp of it is exactly 0, and a row of nothing else is not NaN
_POOLING = "1_Pooling"
_MODULES = ("Transformer", "Pooling", "Normalize")  # what we compute, in this order
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")  # of other tasks


@dataclass(frozen=True)
class SentenceConfig:
    """Sizes and settings of a sentence encoder."""

    vocabulary: int  # tokens that have a vector
    positions: int  # longest text in tokens, special tokens included
    hidden: int  # D: width of a token and of a text's vector
    layers: int  # encoder layers
    heads: int  # H: hidden must be a multiple
    ff: int  # inner width between two layers
    norm_eps: float  # added to the variance in every layer norm
    pad: int  # id of the padding token
    pooling: str  # "mean" of a text's tokens, or "cls": its first token


class EncoderLayer(nn.Module):
    """One BERT layer: attention, then two dense maps, each added to its input and normalised."""

    def __init__(self, config: SentenceConfig) -> None:
        super().__init__()
        self.heads, hidden = config.heads, config.hidden
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.up = nn.Linear(hidden, config.ff)
        self.down = nn.Linear(config.ff, hidden)
        self.mlp_norm = nn.LayerNorm(hidden, eps=config.norm_eps)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """x[N,L,D], real bool [N,1,1,L] -> [N,L,D]."""
        both = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))  # [N,L,3,H,d]
        query, key, value = both.transpose(1, 3).unbind(2)  # [N,H,3,L,d] -> [N,H,L,d] each
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # [N,H,L,L]
        weights = torch.where(real, scores, _NEVER).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)  # [N,L,D]
        x = self.attention_norm(x + self.out(attended))
        out: Tensor = self.mlp_norm(x + self.down(F.gelu(self.up(x))))
        return out


class SentenceEncoder(nn.Module):
    """Token ids of texts in, vectors of length 1 out."""

    def __init__(self, config: SentenceConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.hidden)
        self.positions = nn.Embedding(config.positions, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts: ids int64 [N, L], right-padded with `config.pad` -> float32 [N, D].

        L is at most `config.positions`. A text of padding only gives a finite vector.
        """
        real = ids != self.config.pad  # [N,L]
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.tokens(ids) + self.positions(at))  # [N,L,D]
        for layer in self.layers:
            x = layer(x, real[:, None, None])
        return F.normalize(self._pool(x, real), dim=-1, eps=1e-12)

    def _pool(self, x: Tensor, real: Tensor) -> Tensor:
        if self.config.pooling == "cls":
            return x[:, 0]
        counted = real.unsqueeze(-1).to(x.dtype)  # [N,L,1]
        return (x * counted).sum(1) / counted.sum(1).clamp(min=1.0)  # [N,D]


def read_sentence_encoder(folder: str | Path) -> tuple[SentenceEncoder, Tokenizer]:
    """Read a sentence encoder from a local folder; see `pretrained` for its files.

    Args:
        folder: a model of type bert, as sentence-transformers saves it. Its modules.json and
            1_Pooling/config.json are followed where they exist; without them the mean is taken.
            The vectors are normalised in any case.

    Returns:
        The encoder, and its tokenizer without padding or truncation.

    Raises:
        PretrainedError: a file or tensor is missing, broken, of another shape, or not used; or
            the model is of another type or needs what this module does not have.
    """
    folder = Path(folder)
    raw = Config.read(folder / "config.json")
    config = _sentence_config(raw, _pooling(folder))
    state = _state(Weights(folder), config, raw.size("type_vocab_size", 2))
    with torch.device("meta"):  # draws no random numbers for weights that are replaced
        encoder = SentenceEncoder(config)
    encoder.load_state_dict(state, assign=True)
    tokenizer = read_tokenizer(folder, config.vocabulary)
    if not tokenizer.num_special_tokens_to_add(is_pair=False):
        raise PretrainedError(
            f"{folder / 'tokenizer.json'} puts no [CLS] and [SEP] around a text, as the encoder "
            "was trained; take the tokenizer.json that belongs to the model"
        )
    return encoder, tokenizer


def _sentence_config(raw: Config, pooling: str) -> SentenceConfig:
    raw.require("model_type", None, ("bert",))
    raw.require("hidden_act", "gelu", ("gelu",))
    raw.require("position_embedding_type", "absolute", ("absolute",))
    config = SentenceConfig(
        vocabulary=raw.size("vocab_size"),
        positions=raw.size("max_position_embeddings"),
        hidden=raw.size("hidden_size"),
        layers=raw.size("num_hidden_layers"),
        heads=raw.size("num_attention_heads"),
        ff=raw.size("intermediate_size"),
        norm_eps=raw.number("layer_norm_eps", 1e-12),
        pad=raw.get("pad_token_id", 0),
        pooling=pooling,
    )
    if config.hidden % config.heads:
        raise raw.error(f"hidden_size {config.hidden} is no multiple of {config.heads} heads")
    if config.pad not in range(config.vocabulary):
        raise raw.error(f"pad_token_id is {config.pad!r}, expected the id of a token")
    return config


def _pooling(folder: Path) -> str:
    """How token vectors become one vector; refuses modules that we would leave out."""
    if (folder / "modules.json").is_file():
        _check_modules(folder / "modules.json")
    path = folder / _POOLING / "config.json"
    if not path.is_file():
        return "mean"
    raw = Config.read(path)
    chosen = [key for key, on in raw.values.items() if key.startswith("pooling_mode_") and on]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise raw.error(f"pools by {chosen}, expected one of {list(known)}; choose another model")
    return known[chosen[0]]


def _check_modules(path: Path) -> None:
    modules = read_json(path)
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    foreign = [kind for kind in kinds if kind not in _MODULES]
    if foreign:
        raise PretrainedError(
            f"{path}: the encoder ends in {foreign}, expected nothing beyond {list(_MODULES)}; "
            "choose another model"
        )


def _state(weights: Weights, c: SentenceConfig, kinds: int) -> dict[str, Tensor]:
    """The state dict of a SentenceEncoder; `kinds` counts BERT's segment vectors."""
    width = (c.hidden,)
    segments = weights.read("embeddings.token_type_embeddings.weight", (kinds, c.hidden))
    places = weights.read("embeddings.position_embeddings.weight", (c.positions, c.hidden))
    state = {
        "tokens.weight": weights.read(
            "embeddings.word_embeddings.weight", (c.vocabulary, c.hidden)
        ),
        "positions.weight": places + segments[0],  # all our tokens are of the first segment
        "norm.weight": weights.read("embeddings.LayerNorm.weight", width),
        "norm.bias": weights.read("embeddings.LayerNorm.bias", width),
    }
    for layer in range(c.layers):
        for ours, theirs, (out, *rest) in _rows(c):
            for kind, shape in (("weight", (out, *rest)), ("bias", (out,))):
                parts = [weights.read(f"encoder.layer.{layer}.{t}.{kind}", shape) for t in theirs]
                state[f"layers.{layer}.{ours}.{kind}"] = torch.cat(parts)
    weights.finish(_UNUSED)
    return state


def _rows(c: SentenceConfig) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Our module, the modules stacked to make it, the shape of each one's weight."""
    attention = ("attention.self.query", "attention.self.key", "attention.self.value")
    return [
        ("query_key_value", attention, (c.hidden, c.hidden)),
        ("out", ("attention.output.dense",), (c.hidden, c.hidden)),
        ("attention_norm", ("attention.output.LayerNorm",), (c.hidden,)),
        ("up", ("intermediate.dense",), (c.ff, c.hidden)),
        ("down", ("output.dense",), (c.hidden, c.ff)),
        ("mlp_norm", ("output.LayerNorm",), (c.hidden,)),
    ]
