"""From a batch to the number that training lowers: `batch_loss`, a black box to the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batches import Batch
from .losses import contrastive, next_token
from .model import Anchor


def batch_loss(model: Anchor, batch: Batch, write: int) -> Tensor:
    """The objective of one batch; `write` questions also take the next-token loss, 0 for none."""
    state = _state(model, batch)
    users, answers = _vectors(model, batch, state)
    loss = contrastive(users, answers, batch.target, batch.same)
    if write:
        loss = loss + answer_loss(model, batch, state, write)
    return loss


def embed(model: Anchor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 of the batch's histories and questions [B,Q,N] and its answers [A,N]."""
    return _vectors(model, batch, _state(model, batch))


def answer_loss(model: Anchor, batch: Batch, state: Sequence[Tensor], write: int) -> Tensor:
    """Next-token loss of the answers of the first `write` questions."""
    hidden, tokens = answer_hidden(model, batch, state, write)
    return next_token(model.logits(hidden), tokens, model.special.pad)


def answer_hidden(
    model: Anchor, batch: Batch, state: Sequence[Tensor], write: int
) -> tuple[Tensor, Tensor]:
    """Hidden states [B,W,A,D] and the token that each has to predict [B,W,A].

    The answer stands behind `<USER_EMB>`, which is the first row and cannot see it: blocks are
    causal. Pairs without an answer have padding to predict, which counts for nothing.
    """
    pad, width = model.special.pad, batch.answers.shape[1]
    target = batch.target[:, :write]  # [B,W]
    tokens = batch.answers[target.clamp(min=0)]  # [B,W,A]
    tokens = torch.where((target >= 0).unsqueeze(-1), tokens, pad)
    ids, qlen = batch.ids[:, :write], batch.qlen[:, :write]
    block = torch.cat((ids, torch.full_like(tokens, pad)), dim=-1)  # [B,W,L+A]
    rows = qlen.unsqueeze(-1) - 1 + torch.arange(width, device=ids.device)  # [B,W,A]
    block = block.scatter(2, rows + 1, tokens)
    x = model.suffix_tokens(block, batch.context[:, :write], _no_prompt(model))
    return model.decoder.suffix(x, rows, batch.plen[:, :write], state), tokens


def _vectors(model: Anchor, batch: Batch, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    answers = model.answer(batch.answers, batch.answer_length)
    users = model.suffix(batch.ids, batch.qlen, batch.plen, batch.context, _no_prompt(model), state)
    return users, answers


def _no_prompt(model: Anchor) -> Tensor:
    return torch.zeros(1, model.config.hidden, device=model.decoder.frequencies.device)


def _state(model: Anchor, batch: Batch) -> tuple[Tensor, ...]:
    vectors = model.event(batch.texts)[batch.text]  # [N,E] -> [B,T,E]
    vectors = vectors * (batch.modality >= 0).unsqueeze(-1)
    return model.prefix(vectors, batch.features, batch.modality)
