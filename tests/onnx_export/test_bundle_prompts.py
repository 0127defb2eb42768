"""A prompt comes into a bundle and nothing else of it changes; weights give back the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from feast_anchor.onnx_export import bundle_prompts
from feast_anchor.onnx_export.bundle import Bundle, empty_past, seal
from feast_anchor.onnx_export.bundle_prompts import add_prompt
from feast_anchor.onnx_export.errors import BundleError, SpecError
from feast_anchor.onnx_export.manifest import MANIFEST_FILE, PROMPTS_FILE, WEIGHTS_FILE
from feast_anchor.onnx_export.parity import random_inputs
from feast_anchor.onnx_export.weights import read_model

PROMPT = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)


@pytest.fixture
def copied(shop_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the shop's bundle."""
    return shutil.copytree(shop_bundle, tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def vectors_of(folder: Path, table: np.ndarray[Any, Any]) -> bytes:
    """Vectors of random histories and questions through both graphs, without a prompt."""
    bundle = Bundle.open(folder)
    arrays: dict[str, Any] = random_inputs(
        read_model(bundle), (2, 5, 3, 4), np.random.default_rng(1)
    )
    arrays["ids"] = np.where(
        arrays["ids"] >= bundle.manifest.special_ids.first_prompt, 0, arrays["ids"]
    )
    arrays["prompt"] = table
    for graph, names in (("prefix", bundle.manifest.state), ("suffix", ("embedding",))):
        session = bundle.session(graph)
        arrays |= empty_past(session, len(arrays["modality"]))
        feed = {value.name: arrays[value.name] for value in session.get_inputs()}
        arrays |= dict(zip(names, session.run(list(names), feed), strict=True))
    out: bytes = arrays["embedding"].tobytes()
    return out


def test_only_prompts_and_manifest_change(copied: Path) -> None:
    """Graphs, tokenizers and weights keep every byte, and nothing is left lying about."""
    before = contents(copied)
    add_prompt(copied, "tea", PROMPT, {"steps": 3})
    after = contents(copied)
    assert before.keys() == after.keys()
    assert {n for n in after if after[n] != before[n]} == {PROMPTS_FILE, MANIFEST_FILE}
    bundle = Bundle.open(copied)
    assert np.array_equal(bundle.prompts["tea"], PROMPT)
    assert bundle.manifest.training["prompts"]["tea"] == {"steps": 3}


def test_only_the_tuned_scenario_moves_to_a_new_space(copied: Path) -> None:
    """The digest and every other fingerprint stay; replacing a prompt moves its scenario again."""
    digest, spaces = Bundle.open(copied).manifest.digest, [all_spaces(copied)]
    for name, prompt in (("tea", PROMPT), ("churn", -PROMPT), ("tea", 2 * PROMPT)):
        add_prompt(copied, name, prompt, {}, replace=name in spaces[-1])
        spaces.append(all_spaces(copied))
    assert Bundle.open(copied).manifest.digest == digest
    assert len({known[None] for known in spaces}) == 1
    assert spaces[1]["tea"] == spaces[2]["tea"] != spaces[3]["tea"]
    assert spaces[2]["churn"] == spaces[3]["churn"]
    assert len(set(spaces[3].values())) == 3


def all_spaces(folder: Path) -> dict[str | None, str]:
    """Fingerprint of one question by the name of its prompt, None for none."""
    bundle = Bundle.open(folder)
    return {name: bundle.fingerprint("tea?", name) for name in (None, *bundle.prompts)}


def test_vectors_of_other_scenarios_keep_every_bit(copied: Path) -> None:
    """A prompt in the table changes no vector of a question that does not name it."""
    nothing = np.zeros((1, 32), dtype=np.float32)
    before = vectors_of(copied, nothing)
    add_prompt(copied, "tea", PROMPT, {})
    assert vectors_of(copied, np.concatenate([nothing, PROMPT])) == before


def test_a_name_that_is_taken_is_refused(copied: Path) -> None:
    """A second prompt of one name, a wrong name and a wrong shape change nothing."""
    add_prompt(copied, "tea", PROMPT, {})
    before = contents(copied)
    with pytest.raises(SpecError, match="--replace"):
        add_prompt(copied, "tea", -PROMPT, {})
    with pytest.raises(SpecError, match="letters, digits"):
        add_prompt(copied, "green tea", PROMPT, {})
    with pytest.raises(BundleError, match=r"expected float32 of \[tokens, 32\]"):
        add_prompt(copied, "churn", PROMPT[:, :8], {})
    assert contents(copied) == before


def test_a_failure_before_the_move_leaves_the_bundle_as_it_was(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while files are written beside their places: the bundle still opens."""
    before = contents(copied)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(bundle_prompts, "sha256_file", full)
    with pytest.raises(OSError, match="no space"):
        add_prompt(copied, "tea", PROMPT, {})
    assert contents(copied) == before


def test_weights_give_back_the_frozen_model(shop_bundle: Path) -> None:
    """What is read computes what the graphs do, needs no gradient and cannot encode texts."""
    bundle = Bundle.open(shop_bundle)
    model = read_model(bundle)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not [name for name in load_file(shop_bundle / WEIGHTS_FILE) if name.startswith("texts")]
    with pytest.raises(NotImplementedError, match="encode_texts"):
        model.event(torch.zeros(1, 1, dtype=torch.int64))


def test_weights_are_outside_the_digest_and_checked_against_the_graphs(copied: Path) -> None:
    """Other weights leave the digest as it is, and are refused because vectors differ."""
    manifest = Bundle.open(copied).manifest
    weights = load_file(copied / WEIGHTS_FILE)
    save_file({**weights, "words.weight": 2 * weights["words.weight"]}, copied / WEIGHTS_FILE)
    assert seal(copied, manifest).digest == manifest.digest
    with pytest.raises(BundleError, match="not its graphs'"):
        read_model(Bundle.open(copied))


def test_a_bundle_without_weights_serves_and_cannot_be_tuned(copied: Path) -> None:
    """A bundle that has no weights is the same model; tuning says what to do."""
    manifest = Bundle.open(copied).manifest
    (copied / WEIGHTS_FILE).unlink()
    assert seal(copied, manifest).digest == manifest.digest
    bundle = Bundle.open(copied)
    with pytest.raises(BundleError, match="train it again"):
        read_model(bundle)


def test_weights_of_another_architecture_are_refused(copied: Path) -> None:
    """A manifest whose sizes are not the weights' is one readable error."""
    manifest = Bundle.open(copied).manifest
    other = {**manifest.architecture, "ff": 96}
    seal(copied, manifest.model_copy(update={"architecture": other}))
    assert json.loads((copied / MANIFEST_FILE).read_text("utf-8"))["architecture"]["ff"] == 96
    with pytest.raises(BundleError, match="do not fit"):
        read_model(Bundle.open(copied))
