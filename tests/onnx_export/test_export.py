from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feast_anchor.onnx_export.bundle import Bundle, empty_past
from feast_anchor.onnx_export.errors import BundleError
from feast_anchor.onnx_export.export import BundleInfo, export_bundle, sequence
from feast_anchor.onnx_export.inputs import suffix_ids
from feast_anchor.onnx_export.manifest import GRAPHS, Manifest
from feast_anchor.onnx_export.model import Anchor
from feast_anchor.onnx_export.parity import check_parity, random_inputs
from feast_anchor.onnx_export.text_encoder import PretrainedTextEncoder
from tiny import TINY_MODALITIES, tiny_config, tiny_sentence_encoder

Arrays = dict[str, np.ndarray[Any, Any]]

HISTORY = ("vectors", "features", "modality", "days")
ASKED = ("ids", "qlen", "plen", "now", "context", "query", "prompt")


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    """The tiny bundle, opened."""
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def pretrained(sentence_bundle_folder: Path) -> Bundle:
    """A bundle that reads texts with a sentence encoder, opened."""
    return Bundle.open(sentence_bundle_folder)


@pytest.fixture(scope="module")
def run(bundle: Bundle) -> Any:
    """Arrays of `random_inputs` -> vectors [B, Q, N], through both graphs."""
    prefix, suffix = bundle.session("prefix"), bundle.session("suffix")

    def call(arrays: Arrays) -> np.ndarray[Any, Any]:
        history = {name: arrays[name] for name in HISTORY}
        state = prefix.run(None, history | empty_past(prefix, len(arrays["modality"])))
        feed = {name: arrays[name] for name in ASKED}
        feed |= dict(zip(bundle.manifest.state, state, strict=True))
        vectors: np.ndarray[Any, Any] = suffix.run(None, feed)[0]
        return vectors

    return call


def untrained(manifest: Manifest) -> Anchor:
    """A model of the tiny bundle's sizes with other weights."""
    return Anchor(tiny_config().model, manifest.special_ids, len(manifest.modalities)).eval()


def test_graphs_have_the_documented_inputs_and_outputs(bundle: Bundle) -> None:
    """Names of inputs and outputs are the ones that readers of a bundle rely on."""
    names = {
        graph: (
            [value.name for value in bundle.session(graph).get_inputs()],
            [value.name for value in bundle.session(graph).get_outputs()],
        )
        for graph in GRAPHS
    }
    state = ["k_0", "v_0", "k_1", "v_1", "event_keys", "event_values"]
    assert names["event"] == (["ids"], ["vector"])
    assert names["prefix"] == ([*HISTORY, *(f"past_{name}" for name in state)], state)
    assert bundle.manifest.appends
    assert names["suffix"] == ([*ASKED, *state], ["embedding"])
    assert names["answer"] == (["ids", "length", "vector"], ["embedding"])
    assert bundle.manifest.state == tiny_config().model.sized().state() == tuple(state)


def test_the_manifest_says_how_the_graphs_read(bundle: Bundle) -> None:
    """What stands in the sequence, and the padding of the text encoder's own tokenizer."""
    manifest = bundle.manifest
    assert manifest.format_version == 3
    assert manifest.sequence == ("events", "query", "prompt", "user_emb")
    assert manifest.text_pad == manifest.special_ids.pad  # it reads with the decoder's tokenizer
    config = replace(tiny_config().model, query_tokens=False)
    assert sequence(config) == ("events", "prompt", "user_emb")
    paper = replace(config, order="summary first")
    assert sequence(paper) == ("user", "modalities", "events", "prompt", "user_emb")
    assert replace(config, layers=1, evidence=False).state() == ("k_0", "v_0")


def test_graphs_run_on_single_items(bundle: Bundle, run: Any) -> None:
    """One history with one event, one question of one token: no dimension was fixed."""
    arrays = random_inputs(untrained(bundle.manifest), (1, 1, 1, 1), np.random.default_rng(0))
    arrays["prompt"] = arrays["prompt"][:1]
    vectors = run(arrays)
    assert vectors.shape == (1, 1, bundle.manifest.dims.embedding)
    assert np.linalg.norm(vectors) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (17, 2)])
def test_the_answer_graph_runs_on_any_number_of_answers(
    bundle: Bundle, shape: tuple[int, int]
) -> None:
    """One answer of one token, a long one, many: unit vectors that padding does not move."""
    special = bundle.manifest.special_ids
    ids = np.random.default_rng(0).integers(0, special.pad, shape)
    ids[:, -1] = special.eos
    length = np.full(shape[0], shape[1])
    feed = {"length": length, "vector": np.ones((shape[0], 16), dtype=np.float32)}
    (vectors,) = bundle.session("answer").run(None, {"ids": ids, **feed})
    assert vectors.shape == (shape[0], bundle.manifest.dims.embedding)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    padded = np.pad(ids, ((0, 0), (0, 5)), constant_values=special.pad)
    (same,) = bundle.session("answer").run(None, {"ids": padded, **feed})
    np.testing.assert_allclose(same, vectors, atol=1e-6, rtol=0)


def test_the_parity_of_every_graph_is_recorded(bundle: Bundle) -> None:
    """The manifest holds the largest difference of each graph, below the tolerance."""
    parity = bundle.manifest.parity
    assert parity["max_abs_difference"].keys() == {*GRAPHS, "append", "full"}
    assert max(parity["max_abs_difference"].values()) <= parity["tolerance"]


def test_another_answer_tower_fails_the_parity_check(bundle: Bundle, tmp_path: Path) -> None:
    """An answer graph that differs from the model is found, not only the graphs of vectors."""
    torch.manual_seed(0)
    model = untrained(bundle.manifest)
    info = BundleInfo("b", "customer_id", TINY_MODALITIES, 8, 8, {})
    export_bundle(model, bundle.tokenizer, info, tmp_path / "b")
    (tmp_path / "b" / "answer.onnx").write_bytes((bundle.folder / "answer.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"differ from the model by \{'answer': [^,]*\}"):
        check_parity(model, Bundle(tmp_path / "b", bundle.manifest))


def test_neighbours_and_padding_do_not_move_a_vector(bundle: Bundle, run: Any) -> None:
    """A user alone and in a padded batch of users gets the same vector, to 1e-6."""
    arrays = random_inputs(untrained(bundle.manifest), (5, 9, 4, 6), np.random.default_rng(4))
    together = run(arrays)
    for row in range(5):
        real = int((arrays["modality"][row] >= 0).sum())
        alone = {name: array[row : row + 1] for name, array in arrays.items()}
        alone["prompt"] = arrays["prompt"]
        for name in HISTORY:
            alone[name] = alone[name][:, : max(1, real)]
        np.testing.assert_allclose(run(alone)[0], together[row], atol=1e-6, rtol=0)


def test_a_history_of_padding_only_is_finite(bundle: Bundle, run: Any) -> None:
    """A batch slot without a user gives numbers, not NaN."""
    arrays = random_inputs(untrained(bundle.manifest), (2, 3, 2, 4), np.random.default_rng(0))
    arrays["modality"][:], arrays["vectors"][:], arrays["plen"][:] = -1, 0, 0
    arrays["ids"][:], arrays["qlen"][:] = bundle.manifest.special_ids.pad, 0
    assert np.isfinite(run(arrays)).all()


def test_a_prompt_row_is_addressed_by_its_id(bundle: Bundle, run: Any) -> None:
    """Ids from first_prompt on read the rows of the prompt input, and only those."""
    arrays = random_inputs(untrained(bundle.manifest), (1, 3, 2, 1), np.random.default_rng(0))
    ids, qlen = suffix_ids([[5], [5]], [range(0), range(1, 2)], bundle.manifest.special_ids)
    arrays["ids"], arrays["qlen"], arrays["context"] = ids[None], qlen[None], arrays["context"] * 0
    before = run(arrays)
    arrays["prompt"][1] += 1
    after = run(arrays)
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    assert np.abs(before[0, 1] - after[0, 1]).max() > 1e-4


def test_graphs_of_another_model_fail_the_parity_check(bundle: Bundle) -> None:
    """Graphs that do not compute what the model computes are refused with the difference."""
    torch.manual_seed(0)
    with pytest.raises(BundleError, match="differ from the model"):
        check_parity(untrained(bundle.manifest), bundle)


def test_a_failed_export_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the graphs cannot be written there is no half bundle and no temporary folder."""

    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("feast_anchor.onnx_export.export._write_graphs", fail)
    info = BundleInfo("b", "customer_id", TINY_MODALITIES, 8, 8, {})
    with pytest.raises(RuntimeError, match="disk full"):
        export_bundle(untrained(bundle.manifest), bundle.tokenizer, info, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(bundle: Bundle, tmp_path: Path) -> None:
    """A mistyped path does not cost anybody their files."""
    (tmp_path / "thesis.txt").write_text("do not lose me")
    info = replace(BundleInfo("b", "customer_id", TINY_MODALITIES, 8, 8, {}), name="c")
    with pytest.raises(BundleError, match="not empty and not a bundle"):
        export_bundle(untrained(bundle.manifest), bundle.tokenizer, info, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose me"


@torch.no_grad()
def test_a_pretrained_encoder_is_exported_with_its_own_tokenizer(pretrained: Bundle) -> None:
    """The bundle encodes texts as the sentence encoder does, whatever the decoder's tokenizer is,
    and its width and padding stand in the manifest.
    """
    encoder, tokenizer = tiny_sentence_encoder()
    assert pretrained.manifest.dims.text == 16
    assert pretrained.manifest.text_pad == encoder.config.pad == 0
    assert pretrained.manifest.special_ids.pad > 0
    texts = ["tomatoes", "fresh fresh milk", "", "a wine a milk"]
    vectors = pretrained.encode_texts(texts)
    model = PretrainedTextEncoder(encoder)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([tokenizer.encode(text).ids])
        np.testing.assert_allclose(vector, model(ids)[0].numpy(), atol=1e-5)


def test_a_text_is_cut_before_its_last_special_token(pretrained: Bundle) -> None:
    """A long text reads as its beginning, with [SEP] behind it."""
    long = "wine " * 30
    (vector,) = pretrained.encode_texts([long])
    (begun,) = pretrained.encode_texts(["wine " * 10])  # 12 tokens with [CLS] and [SEP]
    assert vector.tobytes() == begun.tobytes()
