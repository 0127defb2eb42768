"""Floating-point operations of the matrix products of each graph, from the model's sizes.

The rule: all products count, those of adapters, evidence and readout too, and only those; attention
over a prefix counts its full square, because the graphs compute the half behind the mask as well.
A product of [n,k] and [k,m] is 2nkm operations. Letters as in `feast_anchor.onnx_export.model`.
"""

from __future__ import annotations

from dataclasses import dataclass

from feast_anchor.onnx_export.evidence import HALF_LIVES, THRESHOLDS, Evidence
from feast_anchor.onnx_export.inputs import CONTEXT_FEATURES, EVENT_FEATURES
from feast_anchor.onnx_export.sizes import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Counts for one model with `modalities` sources of events, events first."""

    config: ModelConfig  # sized
    modalities: int

    def prefix(self, events: int) -> int:
        """One history."""
        c = self.config
        tokens = self._tokens(events) + events * c.layers * self._key_value
        square = 2 * c.heads * c.head_dim * events * events
        return 2 * (tokens + (c.layers - 1) * (events * self._rest + square))

    def suffix(self, events: int, blocks: int, tokens: int) -> int:
        """Q blocks of L tokens behind a prefix of so many events; one row of the last layer.

        What is computed once per question is computed for the first one twice.
        """
        c, asked = self.config, blocks + 1
        rows = blocks * (c.layers - 1) * tokens + asked  # of queries, attention and MLP
        seen = 2 * c.heads * c.head_dim * (events + tokens)
        decoder = blocks * c.layers * tokens * self._key_value + rows * (self._rest + seen)
        return 2 * (decoder + asked * self._asked(events))

    def cascade(self, events: int, blocks: int, tokens: int) -> int:
        """One history and Q blocks."""
        return self.prefix(events) + self.suffix(events, blocks, tokens)

    def full(self, events: int, tokens: int, *, trim: bool) -> int:
        """One pair: a causal forward over all tokens; if trimmed, one row of the last layer."""
        c, length = self.config, events + tokens
        rows = (c.layers - 1) * length + (1 if trim else length)
        seen = 2 * c.heads * c.head_dim * length
        decoder = c.layers * length * self._key_value + rows * (self._rest + seen)
        return 2 * (self._tokens(events) + decoder + self._asked(events))

    @property
    def _key_value(self) -> int:
        """Keys and values of a token in one layer."""
        c = self.config
        return 2 * c.hidden * c.kv_heads * c.head_dim

    @property
    def _rest(self) -> int:
        """Query, output and MLP of a token in one layer."""
        c = self.config
        return 2 * c.hidden * c.heads * c.head_dim + 3 * c.hidden * c.ff

    def _tokens(self, events: int) -> int:
        """From text vectors to decoder inputs, and what evidence keeps."""
        c = self.config
        adapter = (c.text + c.hidden) * c.hidden
        numbers = (len(EVENT_FEATURES) + self.modalities) * c.hidden
        kept = c.text * c.key if c.evidence else 0
        return events * (adapter + numbers + kept)

    def _asked(self, events: int) -> int:
        """One block: what it is told at `<USER_EMB>`, its evidence and its readout."""
        c = self.config
        told = (len(CONTEXT_FEATURES) + c.text) * c.hidden
        readout = (c.hidden + c.text) * c.readout + c.readout * c.readout
        head = c.readout * c.head_hidden + c.head_hidden * c.embedding
        return told + readout + head + (self._evidence(events) if c.evidence else 0)

    def _evidence(self, events: int) -> int:
        c, kinds = self.config, self.modalities
        width = Evidence.width(kinds)
        similar = c.text * c.key + events * c.key + c.key * THRESHOLDS
        sums = (THRESHOLDS + kinds) * events * (2 * len(HALF_LIVES) + 4 + kinds)
        used = width * (c.hidden + c.readout) + c.text * c.readout
        summary = kinds * c.key * (events + c.hidden) if c.modal_tokens else 0
        return similar + sums + used + summary
