"""Pretrained causal language models of the Qwen2, Qwen3 and Llama families as our decoder.

The three families are one architecture with small differences: Qwen2 has biases on queries, keys
and values, Qwen3 a norm on every query and key head, Llama 3 stretched rotations. All pair the
halves of a head for rotation and let query head h read key head h // G, as `decoder` does, so
reading is renaming and stacking: keys over values, gate over up. What a folder asks for beyond
that is refused, never approximated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .decoder import Decoder, DecoderConfig, RopeScaling
from .errors import SpecError
from .pretrained import Config, Weights, read_tokenizer
from .words import PretrainedWords

_FAMILIES = ("qwen2", "qwen3", "llama")
_QWEN3_HEAD = 128  # where a Qwen3 config.json does not say; the others divide the hidden width
_UNUSED = (".rotary_emb.inv_freq",)  # old files store what rope_theta says already

# A row: our parameter of a layer, and the tensors that are stacked to make it.
_Row = tuple[str, tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Backbone:
    """A pretrained language model in memory; V tokens of width D."""

    config: DecoderConfig
    weights: dict[str, Tensor]  # float32, the state dict of `Decoder(config)`, final norm included
    tokens: Tensor  # float32 [V,D]: a token's vector, the decoder's input
    head: Tensor  # float32 [V,D]: scores are hidden @ head.T; the very `tokens` where tied
    tokenizer: Tokenizer  # its ids are rows of `tokens`

    @property
    def tied(self) -> bool:
        """Whether one table serves as input and as output."""
        return self.head is self.tokens

    def decoder(self) -> Decoder:
        """A decoder that holds these weights, not a copy of them. Draws no random numbers."""
        with torch.device("meta"):  # no memory and no time for weights that are replaced
            decoder = Decoder(self.config)
        decoder.load_state_dict(self.weights, assign=True)
        return decoder

    def words(self, vocabulary: int) -> PretrainedWords:
        """The words of the first `vocabulary` ids, frozen, and three new ones behind them.

        Tables are often longer than the tokenizer's vocabulary, for the hardware's sake; the rows
        past it mean nothing.
        """
        head = None if self.tied else self.head[:vocabulary]
        return PretrainedWords(self.tokens[:vocabulary], head)


def read_backbone(folder: str | Path) -> Backbone:
    """Read a causal language model from a local folder; see `pretrained` for its files.

    Args:
        folder: config.json, model.safetensors (or its index and parts) and tokenizer.json of a
            model of type qwen2, qwen3 or llama. Half precision weights become float32.

    Raises:
        PretrainedError: a file or tensor is missing, broken, of another shape, or not used; or
            the model is of another type or needs what `decoder` does not have.
    """
    folder = Path(folder)
    raw = Config.read(folder / "config.json")
    config = _decoder_config(raw)
    weights, vocabulary = Weights(folder), raw.size("vocab_size")
    table = (vocabulary, config.hidden)
    state = {"final_norm.weight": weights.read("model.norm.weight", (config.hidden,))}
    for layer in range(config.layers):
        for ours, theirs, shape in _rows(config):
            parts = [weights.read(f"model.layers.{layer}.{name}", shape) for name in theirs]
            state[f"layers.{layer}.{ours}"] = torch.cat(parts)
    tokens = weights.read("model.embed_tokens.weight", table)
    tied = bool(raw.get("tie_word_embeddings", False))
    head = tokens if tied else weights.read("lm_head.weight", table)
    weights.finish((*_UNUSED, "lm_head.weight") if tied else _UNUSED)
    return Backbone(config, state, tokens, head, read_tokenizer(folder, vocabulary))


def _rows(c: DecoderConfig) -> list[_Row]:
    query, key = c.heads * c.head_dim, c.kv_heads * c.head_dim
    rows: list[_Row] = [
        ("attention_norm.weight", ("input_layernorm.weight",), (c.hidden,)),
        ("query.weight", ("self_attn.q_proj.weight",), (query, c.hidden)),
        (
            "key_value.weight",
            ("self_attn.k_proj.weight", "self_attn.v_proj.weight"),
            (key, c.hidden),
        ),
        ("out.weight", ("self_attn.o_proj.weight",), (c.hidden, query)),
        ("mlp_norm.weight", ("post_attention_layernorm.weight",), (c.hidden,)),
        ("gate.weight", ("mlp.gate_proj.weight",), (c.ff, c.hidden)),
        ("up.weight", ("mlp.up_proj.weight",), (c.ff, c.hidden)),
        ("down.weight", ("mlp.down_proj.weight",), (c.hidden, c.ff)),
    ]
    if c.qkv_bias:
        rows.append(("query.bias", ("self_attn.q_proj.bias",), (query,)))
        rows.append(("key_value.bias", ("self_attn.k_proj.bias", "self_attn.v_proj.bias"), (key,)))
    if c.qk_norm:
        rows.append(("query_norm.weight", ("self_attn.q_norm.weight",), (c.head_dim,)))
        rows.append(("key_norm.weight", ("self_attn.k_norm.weight",), (c.head_dim,)))
    return rows


def _decoder_config(raw: Config) -> DecoderConfig:
    family = raw.require("model_type", None, _FAMILIES)
    raw.require("hidden_act", "silu", ("silu",))
    hidden, layers = raw.size("hidden_size"), raw.size("num_hidden_layers")
    heads = raw.size("num_attention_heads")
    head_dim = _QWEN3_HEAD if family == "qwen3" else hidden // heads
    if family != "llama":  # Llama's own code does not know these settings
        _refuse_windows(raw, layers)
    base, scaling = _rope(raw)
    try:
        return DecoderConfig(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=raw.size("num_key_value_heads", heads),
            head_dim=raw.size("head_dim", head_dim),
            ff=raw.size("intermediate_size"),
            rope_base=base,
            norm_eps=raw.number("rms_norm_eps", 1e-6),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            rope_scaling=scaling,
        )
    except SpecError as error:
        raise raw.error(str(error)) from error


def _refuse_windows(raw: Config, layers: int) -> None:
    """A window that no layer uses is fine: Qwen writes its size into every config.json."""
    if not raw.get("use_sliding_window", False) or raw.values.get("sliding_window", 4096) is None:
        return
    kinds = raw.get("layer_types")
    full = raw.get("max_window_layers", 28)  # the first layers that see everything
    if "sliding_attention" in kinds if kinds else full < layers:
        raise raw.error(
            "some layers attend to a sliding window, expected full attention everywhere; "
            "choose a model without use_sliding_window"
        )


def _rope(raw: Config) -> tuple[float, RopeScaling | None]:
    """Base and stretching, from `rope_parameters` or from the two older keys."""
    rope = Config(raw.path, raw.get("rope_parameters") or raw.get("rope_scaling", {}))
    base = rope.number("rope_theta", raw.number("rope_theta", 10_000.0))
    raw.require("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,))
    kind = rope.require("rope_type", rope.get("type", "default"), ("default", "llama3"))
    if kind == "default":
        return base, None
    return base, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_positions=rope.size("original_max_position_embeddings"),
    )
