"""InstructUE as a configuration: runs of one modality are marked, and no question is a question."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from feast_anchor.onnx_export.manifest import SpecialIds
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.parity import random_inputs, reference

SPECIAL = SpecialIds(pad=50, user_emb=51, eos=52, first_prompt=53)
CONFIG = ModelConfig(
    text=8, hidden=16, ff=24, readout=16, head_hidden=16, embedding=8,
    modal_tokens=False, evidence=False, delimiters=True,
)  # fmt: skip


def model(config: ModelConfig = CONFIG) -> Anchor:
    torch.manual_seed(0)
    return Anchor(config, SPECIAL, modalities=2).eval()


@torch.no_grad()
def test_the_first_event_of_each_run_is_marked() -> None:
    """A modality's vector is added where a run of it begins, nowhere else and not to padding."""
    marked = model()
    kinds = torch.tensor([[0, 0, 1, 0, -1, -1]])
    member = (kinds.unsqueeze(-1) == torch.arange(2)).to(torch.float32)  # [1,T,M]
    vectors, features = torch.randn(1, 6, 8), torch.zeros(1, 6, 6)
    with_marks = marked.prefix_tokens(vectors, features, member)
    assert marked.delimiter is not None
    mark = marked.delimiter.clone()
    marked.delimiter.zero_()
    added = (with_marks - marked.prefix_tokens(vectors, features, member))[0]  # [T,D]
    none = torch.zeros(16)
    expected = torch.stack([mark[0], none, mark[1], mark[0], none, none])
    torch.testing.assert_close(added, expected)


def test_without_delimiters_there_is_no_weight_for_them() -> None:
    """The switch is off by default, and then nothing is added to the model."""
    assert "delimiter" not in dict(model(replace(CONFIG, delimiters=False)).named_parameters())


@torch.no_grad()
def test_marked_histories_give_the_same_in_two_parts_and_at_once() -> None:
    """Prefix then suffix equal one plain forward, padded and empty histories among them."""
    marked = model()
    for shape in ((1, 1, 1, 1), (3, 5, 2, 4)):
        arrays = random_inputs(marked, shape, np.random.default_rng(0))
        t = {name: torch.from_numpy(array) for name, array in arrays.items()}
        state = marked.prefix(t["vectors"], t["features"], t["modality"], t["days"])
        names = ("ids", "qlen", "plen", "now", "context", "query", "prompt")
        asked = {name: t[name] for name in names}
        vectors = marked.suffix(**asked, state=state)
        assert (vectors - reference(marked, arrays)).abs().max() < 1e-5
