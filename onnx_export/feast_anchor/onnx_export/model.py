"""The query-conditioned user model: tokens of a history and of questions around one decoder.

The law of this module: a token of the prefix never depends on the question, and a question never
depends on another question. So `prefix` runs once per history, `suffix` answers any number of
questions against the state it left, and both give what one plain causal forward over
[prefix, one question] gives. `full` is that forward, and the reference for parity.

Two orders. "Summary first" is the paper's: the user's token and one per modality, each the mean of
its events, stand before the events. They change with every event, so a prefix belongs to one
history. "Events first": nothing stands before the events, and the summary of those that a question
may see is added at `<USER_EMB>`. A token of the prefix then depends on the events before it only:
one prefix answers for every earlier as-of time (`plen`), and can be appended to.

The state of a history is the decoder's KV cache and, with evidence, a key and a few numbers per
event (`evidence`). At `<USER_EMB>` meet: the question's words (through attention), its text vector,
the numbers that depend on the as-of (`context`) and the evidence.

Letters in shape comments: B histories, T events, M modalities, P prefix tokens (T, or 1 + M + T),
Q questions, L tokens of a question, E text width, D hidden width, K key/value heads, d head width,
F event features, C context features, V values kept per event, X numbers of evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Backbone
from .decoder import Decoder, first_again
from .evidence import Evidence, Standardise
from .inputs import CONTEXT_FEATURES, EVENT_FEATURES
from .manifest import SpecialIds
from .sizes import ModelConfig
from .text_encoder import OwnTextEncoder, TextEncoder
from .words import OwnWords, PretrainedWords

__all__ = ["Anchor", "ModelConfig"]


class Anchor(nn.Module):
    """The whole model. `modalities` is M; the vocabulary is `special.pad` tokens long."""

    def __init__(
        self,
        config: ModelConfig,
        special: SpecialIds,
        modalities: int,
        texts: TextEncoder | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        """With a backbone, its decoder and words are the model's, and its sizes go before ours.

        Raises `SpecError` when the sizes do not fit each other.
        """
        super().__init__()
        if backbone is not None:
            config = config.around(backbone.config, tied=backbone.tied)
        self.texts = texts or OwnTextEncoder(special.first_prompt, config.text, special.pad)
        self.config = config = replace(config.sized(), text=self.texts.width)
        self.special, self.modalities = special, modalities
        text, hidden = config.text, config.hidden
        self.words: OwnWords | PretrainedWords
        if backbone is None:
            self.words = OwnWords(special.first_prompt, hidden, tied=config.tied)
        else:
            self.words = backbone.words(special.pad)
        self.event_in = _adapter(text, hidden)
        self.event_numbers = nn.Linear(len(EVENT_FEATURES), hidden, bias=False)
        self.evidence = Evidence(text, config.key, modalities) if config.evidence else None
        self.summary: SummaryTokens | None = None
        self.summary_in: nn.Linear | None = None
        if config.order == "summary first":
            self.summary = SummaryTokens(config, modalities)
        elif config.modal_tokens and config.evidence:
            self.summary_in = nn.Linear(modalities * config.key, hidden, bias=False)
        self.query_in = nn.Linear(text, hidden, bias=False)
        self.context_in = nn.Linear(len(CONTEXT_FEATURES), hidden)
        self.event_kind = _kinds(modalities, hidden)
        self.delimiter = _kinds(modalities, hidden) if config.delimiters else None
        self.decoder = Decoder(config.decoder()) if backbone is None else backbone.decoder()
        self.readout = Readout(config, Evidence.width(modalities) if config.evidence else 0)

    @property
    def lead(self) -> int:
        """Prefix tokens before the first event."""
        return 0 if self.summary is None else 1 + self.modalities

    def event(self, ids: Tensor) -> Tensor:
        """Encode texts: ids int64 [N, L] of the text tokenizer -> [N, E]."""
        return self.texts.forward(ids)

    def member(self, modality: Tensor) -> Tensor:
        """1 where an event is of a modality: int64 [...,T] -> [...,T,M]; zeros at padding, -1."""
        kinds = torch.arange(self.modalities, device=modality.device)
        return (modality.unsqueeze(-1) == kinds).to(torch.float32)

    def prefix_tokens(
        self, vectors: Tensor, features: Tensor, member: Tensor, newest: Tensor | None = None
    ) -> Tensor:
        """vectors[B,T,E], features[B,T,F], member[B,T,M] -> decoder inputs [B,P,D].

        newest[B,1,M] is the membership of the event before these, None for no such event.
        """
        events = self.event_in(vectors) + self.event_numbers(features) + member @ self.event_kind
        if self.delimiter is not None:
            earlier = torch.zeros_like(member[:, :1]) if newest is None else newest
            before = torch.cat((earlier, member), dim=1)[:, :-1]  # [B,T,M] of the event before
            first = member * (1.0 - before)  # 1 where a run of one modality begins
            events = events + first @ self.delimiter
        if self.summary is None:
            out: Tensor = events
            return out
        return torch.cat((self.summary(vectors, features, member), events), dim=1)

    def prefix(
        self,
        vectors: Tensor,
        features: Tensor,
        modality: Tensor,
        days: Tensor,
        *,
        past: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """The user state of vectors[B,T,E], features[B,T,F], modality int64 [B,T], days[B,T].

        Events are padded on the right with modality -1; readers of the state skip padding by
        `plen`. Returns (k_0, v_0, k_1, ...), each [B,K,P,d]; with evidence, also the events' keys
        [B,P,A] and values [B,P,V], whose rows are zero for the tokens before the first event.
        `past` is such a state, without padding, of the events before these: what is returned is
        the state of both. Only for a model that `appends`.
        """
        member = self.member(modality)
        newest = self.evidence.newest(past[-1]) if past and self.evidence is not None else None
        tokens = self.prefix_tokens(vectors, features, member, newest)
        state = self.decoder.prefix(tokens, past[: 2 * self.config.layers])
        if self.evidence is None:
            return state
        kept = self.evidence.keep(vectors, features, member, days)
        if past:
            return (*state, *(torch.cat(both, dim=1) for both in zip(past[-2:], kept, strict=True)))
        return (*state, *(F.pad(rows, (0, 0, self.lead, 0)) for rows in kept))

    def suffix(
        self,
        ids: Tensor,
        qlen: Tensor,
        plen: Tensor,
        now: Tensor,
        context: Tensor,
        query: Tensor,
        prompt: Tensor,
        state: Sequence[Tensor],
    ) -> Tensor:
        """Embeddings [B,Q,embedding], each of length 1; shapes as in `bundle`."""
        keep = (qlen - 1).clamp(min=0).unsqueeze(-1)  # [B,Q,1]: where <USER_EMB> stands
        # what is computed once per question is computed for the first one twice: see the decoder
        every = (first_again(one) for one in (plen, now, context, query))
        all_plen, all_now, all_context, all_query = every  # [B,Q+1,...]
        found, summary = self.find_evidence(all_plen, all_now, all_query, state)
        x = self.suffix_tokens(ids, all_context, all_query, found, summary, prompt)
        hidden = self.decoder.suffix(x, keep, self.lead + plen, state).squeeze(2)  # [B,Q,D]
        vectors: Tensor = self.readout(first_again(hidden), all_query, found)
        return vectors[:, :-1]

    def find_evidence(
        self, plen: Tensor, now: Tensor, query: Tensor, state: Sequence[Tensor]
    ) -> tuple[Tensor | None, Tensor | None]:
        """What each question reads of the first `plen` events, `now` [B,Q] days on.

        Returns numbers of evidence [B,Q,X] and the summary's keys [B,Q,M*A]; None for what the
        model does not have.
        """
        if self.evidence is None:
            return None, None
        keys, values = state[-2:]
        at = torch.arange(keys.shape[1], device=keys.device)
        seen = (at < self.lead + plen.unsqueeze(-1)).to(torch.float32)  # [B,Q,P]
        found = self.evidence.read(query, keys, values, seen, now)
        if self.summary_in is None:
            return found, None
        return found, self.evidence.summary(keys, values, seen)

    def suffix_tokens(
        self,
        ids: Tensor,
        context: Tensor,
        query: Tensor,
        found: Tensor | None,
        summary: Tensor | None,
        prompt: Tensor,
    ) -> Tensor:
        """Decoder inputs [B,Q,L,D].

        ids int64 [B,Q,L]; of at least as many questions context[B,Q,C], query[B,Q,E], found and
        summary as `find_evidence` gives them; prompt[R,D].
        """
        first = self.special.first_prompt
        words: Tensor = self.words(ids.clamp(max=first - 1))  # [B,Q,L,D]
        soft = prompt[(ids - first).clamp(min=0)]  # [B,Q,L,D]
        x = torch.where((ids >= first).unsqueeze(-1), soft, words)
        told: Tensor = self.context_in(context) + self.query_in(query)  # [B,Q,D]
        if found is not None:
            told = told + self.readout.to_decoder(found)
        if summary is not None and self.summary_in is not None:
            told = told + self.summary_in(summary)
        anchor = (ids == self.special.user_emb).unsqueeze(-1).to(x.dtype)  # [B,Q,L,1]
        return x + anchor * told.narrow(1, 0, ids.shape[1]).unsqueeze(2)

    def answer(self, ids: Tensor, length: Tensor, vector: Tensor) -> Tensor:
        """Encode answers without a prefix: ids int64 [A,L], length int64 [A], vector[A,E]."""
        x = self.words(ids).unsqueeze(0)  # [1,A,L,D]
        keep = (length - 1).reshape(1, -1, 1)
        plen = torch.zeros_like(length).unsqueeze(0)
        hidden = self.decoder.suffix(x, keep, plen, self.decoder.empty_state())  # [1,A,1,D]
        answers: Tensor = self.readout(hidden[0, :, 0], vector, None)
        return answers

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., first_prompt] of hidden states [..., D]."""
        return self.words.logits(hidden)

    def full(
        self,
        vectors: Tensor,
        features: Tensor,
        modality: Tensor,
        days: Tensor,
        ids: Tensor,
        now: Tensor,
        context: Tensor,
        query: Tensor,
        prompt: Tensor,
    ) -> Tensor:
        """One history, one question, nothing padded, one causal forward: [embedding].

        vectors[T,E], features[T,F], modality[T], days[T]; ids[L], now[], context[C], query[E],
        prompt[R,D].
        """
        member = self.member(modality)
        history = self.prefix_tokens(vectors[None], features[None], member[None])  # [1,P,D]
        asked, told = query[None, None], context[None, None]
        found = summary = None
        if self.evidence is not None:
            keys, values = (
                kept[None] for kept in self.evidence.keep(vectors, features, member, days)
            )
            seen = torch.ones(1, 1, keys.shape[1])
            found = self.evidence.read(asked, keys, values, seen, now[None, None])
            if self.summary_in is not None:
                summary = self.evidence.summary(keys, values, seen)
        block = self.suffix_tokens(ids[None, None], told, asked, found, summary, prompt)[0]
        hidden = self.decoder.full(torch.cat((history, block), dim=1))[:, -1:]  # [1,1,D]
        served: Tensor = self.readout(hidden, asked, found)
        return served[0, 0]


class SummaryTokens(nn.Module):
    """One token for the user and one per modality, each made of the mean of its events."""

    def __init__(self, config: ModelConfig, modalities: int) -> None:
        super().__init__()
        self.config = config
        self.modal_in = _adapter(config.text, config.hidden)
        self.modal_numbers = nn.Linear(len(EVENT_FEATURES) + 1, config.hidden, bias=False)
        self.user_in = _adapter(config.text, config.hidden)
        self.modal_kind = _kinds(modalities, config.hidden)
        self.absent = _kinds(modalities, config.hidden)

    def forward(self, vectors: Tensor, features: Tensor, member: Tensor) -> Tensor:
        """vectors[B,T,E], features[B,T,F], member[B,T,M] -> [B,1+M,D]."""
        count = member.sum(1).unsqueeze(-1)  # [B,M,1]
        per_event = member.transpose(1, 2)  # [B,M,T]
        mean = per_event @ vectors / count.clamp(min=1.0)  # [B,M,E]
        numbers = per_event @ features / count.clamp(min=1.0)  # [B,M,F]
        numbers = torch.cat((numbers, torch.log1p(count)), dim=-1)  # [B,M,F+1]
        modal = self.modal_in(mean) + self.modal_numbers(numbers) + self.modal_kind
        modal = torch.where(count > 0, modal, self.absent)  # [B,M,D]
        present = (count > 0).to(torch.float32)  # [B,M,1]
        user = (mean * present).sum(1) / present.sum(1).clamp(min=1.0)  # [B,E]
        user = self.user_in(user).unsqueeze(1)  # [B,1,D]
        if not self.config.user_token:
            user = user * 0.0
        if not self.config.modal_tokens:
            modal = modal * 0.0
        return torch.cat((user, modal), dim=1)


class Readout(nn.Module):
    """Hidden state, question and evidence to the vector that is served; answers pass it as well.

    The question decides which numbers of the evidence count and with what sign: it gates them.
    Merely added to each other, that is left to one nonlinearity, which learns it slowly.
    """

    def __init__(self, config: ModelConfig, evidence: int) -> None:
        super().__init__()
        width = config.readout
        self.hidden_in = nn.Linear(config.hidden, width)
        self.query_in = nn.Linear(config.text, width, bias=False)
        if evidence:
            self.norm = Standardise(evidence)
            self.evidence_in = nn.Linear(evidence, width, bias=False)
            self.gate = nn.Linear(config.text, width, bias=False)
            nn.init.normal_(self.gate.weight, std=0.3)  # questions differ before it is learned
            self.to_hidden = nn.Linear(evidence, config.hidden, bias=False)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Sequential(
            nn.Linear(width, config.head_hidden),
            nn.ReLU(),
            nn.Linear(config.head_hidden, config.embedding),
        )

    def to_decoder(self, found: Tensor) -> Tensor:
        """Evidence as a decoder input: [...,X] -> [...,D]."""
        told: Tensor = self.to_hidden(self.norm(found))
        return told

    def forward(self, hidden: Tensor, query: Tensor, found: Tensor | None) -> Tensor:
        """hidden[...,D], query[...,E], found[...,X] or None -> [...,embedding] of length 1."""
        x = self.hidden_in(hidden) + self.query_in(query)
        if found is not None:
            gate = 1.0 + self.gate(F.normalize(query, dim=-1, eps=1e-6))  # 1 where nothing is asked
            x = x + gate * self.evidence_in(self.norm(found))
        x = F.gelu(x)
        x = x + F.gelu(self.mix(self.dropout(x)))
        return F.normalize(self.head(self.dropout(x)), dim=-1, eps=1e-12)


def _kinds(modalities: int, hidden: int) -> nn.Parameter:
    """One vector per modality: [M,D]."""
    return nn.Parameter(0.1 * torch.randn(modalities, hidden))


def _adapter(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))
