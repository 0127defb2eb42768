"""transformers with `past_key_values`: the library's own way to share a prefix.

The decoder is its Llama (Qwen2 where queries, keys and values have biases) with the weights of our
model copied in; tokens, evidence and readout are ours, so that it gives the same vectors. Settings:
float32, one thread, `inference_mode`, SDPA attention, the prefixes of some users in one batch, the
cache repeated for every question, all questions of these users in one batch, no mask because
nothing is padded. As many users at once as ask 16 questions: 64 were slower. Its eager attention
was 7 % slower. The cache is repeated in memory per question: that is what the library offers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from feast_anchor.onnx_export.decoder import Decoder
from feast_anchor.onnx_export.inputs import Floats

from ..models import Subject
from ..workload import Workload

_QUESTIONS_AT_ONCE = 16


class PastKeyValues:
    """Vectors [U*Q,embedding] of a workload, user by user."""

    def __init__(self, subject: Subject) -> None:
        self._model = subject.model
        self._decoder = transformers_decoder(subject.model.decoder)

    def __call__(self, work: Workload) -> Floats:
        """All users, some at once."""
        users = max(1, _QUESTIONS_AT_ONCE // work.questions)
        starts = range(0, len(work.histories), users)
        some = [Workload(work.histories[at : at + users], work.asked) for at in starts]
        return np.concatenate([self._batch(one) for one in some])

    def _batch(self, work: Workload) -> Floats:
        """Prefixes of all users in one batch, then every question in one batch."""
        model = self._model
        with torch.inference_mode():
            vectors, features, modality, days = (
                torch.from_numpy(np.concatenate([h[name] for h in work.histories]))
                for name in ("vectors", "features", "modality", "days")
            )
            member = modality.unsqueeze(-1) == torch.arange(model.modalities)
            member = member.to(torch.float32)  # [U,T,M]
            history = model.prefix_tokens(vectors, features, member)  # [U,T,D]
            cache = self._decoder(inputs_embeds=history, use_cache=True).cache
            kept = (
                ()
                if model.evidence is None
                else model.evidence.keep(vectors, features, member, days)
            )
            return self._suffix(work, cache, kept)

    def _suffix(self, work: Workload, cache: Any, kept: tuple[Tensor, ...]) -> Floats:
        model, users, questions = self._model, len(work.histories), work.questions
        asked = {
            name: torch.from_numpy(x) if name == "prompt" else _per_user(x, users)
            for name, x in work.asked.items()
        }
        found, summary = model.find_evidence(asked["plen"], asked["now"], asked["query"], kept)
        block = model.suffix_tokens(
            asked["ids"], asked["context"], asked["query"], found, summary, asked["prompt"]
        )  # [U,Q,L,D]
        cache.batch_repeat_interleave(questions)
        out = self._decoder(inputs_embeds=block.flatten(0, 1), cache=cache)
        hidden = out.last_hidden_state[:, -1].unflatten(0, (users, questions))  # [U,Q,D]
        served: Tensor = model.readout(hidden, asked["query"], found)
        array: Floats = served.flatten(0, 1).numpy()
        return array


def transformers_decoder(decoder: Decoder) -> Any:
    """The same decoder, weights and all, as a model of `transformers`."""
    import transformers

    c = decoder.config
    sizes: dict[str, Any] = {
        "vocab_size": 1,  # tokens come as vectors
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_size": c.hidden,
        "intermediate_size": c.ff,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "attn_implementation": "sdpa",
    }
    if c.qkv_bias:
        model: Any = transformers.Qwen2Model(transformers.Qwen2Config(**sizes))
    else:
        model = transformers.LlamaModel(transformers.LlamaConfig(**sizes))
    missing = model.load_state_dict(_renamed(decoder), strict=False)
    assert missing.missing_keys == ["embed_tokens.weight"], missing
    assert not missing.unexpected_keys, missing
    return model.eval()


def _renamed(decoder: Decoder) -> dict[str, Tensor]:
    """Our parameters under the names of `transformers`: keys and values apart."""
    names = {
        "attention_norm": ("input_layernorm",),
        "query": ("self_attn.q_proj",),
        "key_value": ("self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "gate": ("mlp.gate_proj",),
        "up": ("mlp.up_proj",),
        "down": ("mlp.down_proj",),
    }
    found: dict[str, Tensor] = {"norm.weight": decoder.final_norm.weight}
    for name, tensor in decoder.layers.state_dict().items():
        layer, ours, kind = name.split(".")
        theirs = names[ours]
        for one, part in zip(theirs, tensor.chunk(len(theirs)), strict=True):
            found[f"layers.{layer}.{one}.{kind}"] = part
    return found


def _per_user(asked: np.ndarray[Any, Any], users: int) -> Tensor:
    """[1,Q,...] -> [U,Q,...]."""
    return torch.from_numpy(np.repeat(asked, users, axis=0))
