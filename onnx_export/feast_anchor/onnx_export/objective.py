"""From a batch to the number that training lowers: `batch_loss`, a black box to the trainer.

Four terms: a user's vector is contrasted with answers (`losses.contrastive`), it must lie nearer
to a plain "yes" than to a plain "no" where the answer says yes (that is what the zero-shot score
reads, and what all yes-or-no questions have in common), it must be the same however the question is
put, and now and then the answer is written out. Noise on the questions' text vectors stands for the
phrasings that nobody wrote down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import Batch
from .losses import MARGIN, contrastive, next_token, yes_or_no
from .model import Anchor
from .settings import TrainConfig


def batch_loss(model: Anchor, batch: Batch, config: TrainConfig, write: int) -> Tensor:
    """The objective of one batch; `write` questions also take the next-token loss, 0 for none."""
    state = _state(model, batch)
    query = _query(model, batch)
    if config.query_noise:
        asked = (batch.query >= 0).unsqueeze(-1)
        query = query + config.query_noise * query.std() * torch.randn_like(query) * asked
    users, answers = _vectors(model, batch, query, state)
    margin = MARGIN if config.mask else None
    loss = config.contrastive * contrastive(users, answers[:-2], batch.target, batch.same, margin)
    loss = loss + config.plain * yes_or_no(users, answers[-2], answers[-1], batch.says)
    if config.alike:
        loss = loss + config.alike * _apart(users, batch)
    if write:
        loss = loss + answer_loss(model, batch, query, state, write)
    return loss


def _apart(users: Tensor, batch: Batch) -> Tensor:
    """Mean of 1 - cosine between the two phrasings of each question, where both were asked."""
    both = ((batch.query[:, 0::2] >= 0) & (batch.query[:, 1::2] >= 0)).to(users.dtype)
    cosine = (users[:, 0::2] * users[:, 1::2]).sum(-1)  # [B,Q/2]
    return ((1.0 - cosine) * both).sum() / both.sum().clamp(min=1.0)


def embed(model: Anchor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 of the batch's histories and questions [B,Q,N] and its answers [A,N]."""
    users, answers = _vectors(model, batch, _query(model, batch), _state(model, batch))
    return users, answers[:-2]


def answer_loss(
    model: Anchor, batch: Batch, query: Tensor, state: Sequence[Tensor], write: int
) -> Tensor:
    """Next-token loss of the answers of the first `write` questions."""
    hidden, tokens = answer_hidden(model, batch, query, state, write)
    return next_token(model.logits(hidden), tokens, model.special.pad)


def answer_hidden(
    model: Anchor, batch: Batch, query: Tensor, state: Sequence[Tensor], write: int
) -> tuple[Tensor, Tensor]:
    """Hidden states [B,W,A,D] and the token that each has to predict [B,W,A].

    The answer stands behind `<USER_EMB>`, which is the first row and cannot see it: blocks are
    causal. Pairs without an answer have padding to predict, which counts for nothing.
    """
    pad, width = model.special.pad, batch.answers.shape[1]
    target = batch.target[:, :write]  # [B,W]
    tokens = batch.answers[target.clamp(min=0)]  # [B,W,A]
    tokens = torch.where((target >= 0).unsqueeze(-1), tokens, pad)
    ids, qlen, plen = batch.ids[:, :write], batch.qlen[:, :write], batch.plen[:, :write]
    now, context, query = batch.now[:, :write], batch.context[:, :write], query[:, :write]
    block = torch.cat((ids, torch.full_like(tokens, pad)), dim=-1)  # [B,W,L+A]
    rows = qlen.unsqueeze(-1) - 1 + torch.arange(width, device=ids.device)  # [B,W,A]
    block = block.scatter(2, rows + 1, tokens)
    found, summary = model.find_evidence(plen, now, query, state)
    x = model.suffix_tokens(block, context, query, found, summary, _no_prompt(model))
    return model.decoder.suffix(x, rows, model.lead + plen, state), tokens


def _vectors(
    model: Anchor, batch: Batch, query: Tensor, state: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    spoken = model.texts.vectors(batch.answer_texts)
    answers = model.answer(batch.answers, batch.answer_length, spoken)
    prompt = _no_prompt(model)
    asked = (batch.ids, batch.qlen, batch.plen, batch.now, batch.context, query)
    users = model.suffix(*asked, prompt, state)
    return users, answers


def _query(model: Anchor, batch: Batch) -> Tensor:
    """Text vectors of the questions [B,Q,E], zero where nothing is asked."""
    vectors = model.texts.vectors(batch.queries)[batch.query.clamp(min=0)]
    return vectors * (batch.query >= 0).unsqueeze(-1)


def _no_prompt(model: Anchor) -> Tensor:
    return torch.zeros(1, model.config.hidden, device=model.decoder.frequencies.device)


def _state(model: Anchor, batch: Batch) -> tuple[Tensor, ...]:
    vectors = model.texts.vectors(batch.texts)[batch.text]  # [N,E] -> [B,T,E]
    vectors = vectors * (batch.modality >= 0).unsqueeze(-1)
    return model.prefix(vectors, batch.features, batch.modality, batch.days)
