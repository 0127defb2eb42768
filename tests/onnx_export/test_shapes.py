"""The graphs of models of many sizes: what shares a run, what came before, changes no bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.bundle import Bundle, empty_past
from feast_anchor.onnx_export.export import BundleInfo, export_bundle
from feast_anchor.onnx_export.manifest import ModalitySpec
from feast_anchor.onnx_export.model import Anchor, ModelConfig
from feast_anchor.onnx_export.parity import random_inputs, reference
from feast_anchor.onnx_export.vocabulary import special_ids, train_tokenizer

Arrays = dict[str, Any]

HISTORY = ("vectors", "features", "modality", "days")
ASKED = ("ids", "qlen", "plen", "now", "context", "query")
MODALITIES = tuple(ModalitySpec(name=name, text="{x}") for name in "ab")
_LITTLE: dict[str, Any] = {"text": 16, "readout": 32, "head_hidden": 32, "embedding": 16, "key": 8}
CONFIGS = {
    "one layer, one kv head": ModelConfig(hidden=32, layers=1, kv_heads=1, ff=48, **_LITTLE),
    # ONNX Runtime folds leading axes into rows where the right side has none of them but 1
    "two layers, one kv head": ModelConfig(
        hidden=32, layers=2, kv_heads=1, ff=48, query_tokens=True, **_LITTLE
    ),
    "one head per group": ModelConfig(
        hidden=24, layers=2, heads=2, kv_heads=2, ff=48, query_tokens=True, **_LITTLE
    ),
    "small": ModelConfig(size="small", query_tokens=True),
    "wide heads": ModelConfig(
        hidden=64,
        layers=3,
        heads=2,
        kv_heads=2,
        head_dim=128,
        qkv_bias=True,
        qk_norm=True,
        query_tokens=True,
        **_LITTLE,
    ),
    "delimiters": ModelConfig(hidden=32, ff=48, delimiters=True, **(_LITTLE | {"key": 128})),
    "no evidence": ModelConfig(hidden=32, ff=48, evidence=False, query_tokens=True, **_LITTLE),
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=list(CONFIGS))
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Anchor, Bundle]:
    """A random model and its bundle."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["will this customer have fresh milk or wine"], 300)
    model = Anchor(request.param, special_ids(tokenizer), len(MODALITIES)).eval()
    out = tmp_path_factory.mktemp("shapes") / "bundle"
    export_bundle(model, tokenizer, BundleInfo("x", "u", MODALITIES, 12, 32, {}), out)
    return model, Bundle.open(out)


class Graphs:
    """Prefix and suffix by name."""

    def __init__(self, bundle: Bundle) -> None:
        self.names = bundle.manifest.state
        self.prefix, self.suffix = bundle.session("prefix"), bundle.session("suffix")

    def read(self, arrays: Arrays, past: Arrays | None = None) -> Arrays:
        """The state of some histories."""
        before = empty_past(self.prefix, len(arrays["modality"]))
        if past is not None:
            before = {f"past_{name}": value for name, value in past.items()}
        feed = {name: arrays[name] for name in HISTORY}
        return dict(zip(self.names, self.prefix.run(None, feed | before), strict=True))

    def ask(self, arrays: Arrays, state: Arrays) -> Any:
        """Vectors of some questions behind a state."""
        feed = {name: arrays[name] for name in (*ASKED, "prompt")}
        return self.suffix.run(None, feed | state)[0]


def draw(model: Anchor, seed: int) -> Arrays:
    """Random histories and questions of random shapes, at least two events and questions."""
    generator = np.random.default_rng(seed)
    batch, events, questions, length = generator.integers((1, 2, 2, 1), (5, 40, 9, 14))
    events *= 8 if seed == 5 else 1  # past the widths at which kernels change
    return random_inputs(model, (batch, events, questions, length), generator)


def cut(arrays: Arrays, histories: slice, events: slice, questions: Any = slice(None)) -> Arrays:
    """Some histories, some of their events and some of the questions."""
    kept = {name: arrays[name][histories, events] for name in HISTORY}
    asked = {name: arrays[name][histories][:, questions] for name in ASKED}
    return kept | asked | {"prompt": arrays["prompt"]}


SEEDS = range(12)
WHOLE = slice(None)


def test_vectors_are_those_of_a_full_forward(exported: tuple[Anchor, Bundle]) -> None:
    """Prefix and suffix agree with one plain causal forward per question to 1e-5."""
    model, graphs = exported[0], Graphs(exported[1])
    for seed in SEEDS:
        arrays = draw(model, seed)
        with torch.no_grad():
            full = reference(model, arrays).numpy()
        np.testing.assert_allclose(graphs.ask(arrays, graphs.read(arrays)), full, atol=1e-5)


def test_what_shares_a_run_changes_no_bit(exported: tuple[Anchor, Bundle]) -> None:
    """Each history alone, without its padding, and with some questions, has the bits of all."""
    model, graphs = exported[0], Graphs(exported[1])
    for seed in SEEDS:
        arrays = draw(model, seed)
        together = graphs.ask(arrays, graphs.read(arrays))
        least = -(-2 // arrays["ids"].shape[2])  # a block of one token needs another beside it
        questions = np.random.default_rng(seed).permutation(arrays["ids"].shape[1])[:least]
        for row in range(len(together)):
            real = max(2, int((arrays["modality"][row] >= 0).sum()))
            own = cut(arrays, slice(row, row + 1), slice(real), questions)
            alone = graphs.ask(own, graphs.read(own))
            assert alone[0].tobytes() == together[row, questions].tobytes(), (seed, row)


def test_snapshots_equal_separate_runs(exported: tuple[Anchor, Bundle]) -> None:
    """A question about the first events has the bits of a prefix of just these."""
    model, graphs = exported[0], Graphs(exported[1])
    for seed in SEEDS:
        arrays = draw(model, seed)
        shared = graphs.ask(arrays, graphs.read(arrays))
        for row, question in np.ndindex(arrays["plen"].shape):
            seen = max(2, int(arrays["plen"][row, question]))
            asked = np.repeat(question, -(-2 // arrays["ids"].shape[2]))
            own = cut(arrays, slice(row, row + 1), slice(seen), asked)
            vector = graphs.ask(own, graphs.read(own))[0, 0]
            assert vector.tobytes() == shared[row, question].tobytes(), (seed, row, question)


def test_append_equals_recompute(exported: tuple[Anchor, Bundle]) -> None:
    """A state read in pieces of two or more events has the bits of one read at once."""
    model, graphs = exported[0], Graphs(exported[1])
    assert exported[1].manifest.appends
    for seed in SEEDS:
        arrays = draw(model, seed)
        events = arrays["modality"].shape[1]
        whole, state = graphs.read(arrays), None
        edges = np.random.default_rng(seed).choice(range(2, events + 1), 3) // 2 * 2
        edges = np.unique([0, *edges[edges < events - 1], events])
        for start, end in pairwise(edges):
            state = graphs.read(cut(arrays, WHOLE, slice(start, end)), state)
        assert state is not None
        for name, tensor in whole.items():
            assert tensor.tobytes() == state[name].tobytes(), (seed, name)
