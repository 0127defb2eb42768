from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from feast_anchor.onnx_export.bundle import Bundle, seal
from feast_anchor.onnx_export.errors import BundleError
from feast_anchor.onnx_export.manifest import read_manifest


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(bundle_folder, tmp_path / "copy")


def reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, as somebody with bad intent would."""
    seal(folder, read_manifest(folder))


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    payload = json.loads(path.read_text())
    path.write_text(json.dumps(payload | changes))


def identity_graph(**node: Any) -> onnx.ModelProto:
    """A graph that returns its input, by way of one node."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], **node)],
        "g",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def external_tensor(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_a_whole_bundle_opens(bundle_folder: Path) -> None:
    """A bundle as exported is verified and shows its name and digest."""
    bundle = Bundle.open(bundle_folder)
    assert repr(bundle) == f"Bundle('tiny', digest={bundle.manifest.digest[:12]}…)"
    assert Bundle.open(bundle_folder, expect_digest=bundle.manifest.digest) == bundle


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """A path without a bundle says how to make one."""
    with pytest.raises(BundleError, match="feast-anchor train"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["event.onnx", "suffix.onnx", "tokenizer.json", "text_tokenizer.json"]
)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    """A listed file that is not there is named."""
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        Bundle.open(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    """A file that lost its last byte is named with both sizes."""
    path = folder / "prefix.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated or changed"):
        Bundle.open(folder)


def test_a_changed_byte_is_refused(folder: Path) -> None:
    """One flipped bit in a weight is found by its SHA-256."""
    path = folder / "prefix.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256 is not the manifest's"):
        Bundle.open(folder)


def test_another_digest_than_pinned_is_refused(bundle_folder: Path) -> None:
    """A view that pinned another model does not read this one."""
    with pytest.raises(BundleError, match="another model"):
        Bundle.open(bundle_folder, expect_digest="0" * 64)


def test_a_newer_format_is_refused(folder: Path) -> None:
    """A bundle of a later version asks for an upgrade."""
    edit_manifest(folder, format_version=4)
    with pytest.raises(BundleError, match="upgrade feast-anchor"):
        Bundle.open(folder)


def test_an_older_format_is_refused(folder: Path) -> None:
    """A bundle of an earlier version says what it lacks and that training makes a new one."""
    edit_manifest(folder, format_version=2)
    with pytest.raises(BundleError, match="days of its events; .* train the bundle again"):
        Bundle.open(folder)


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    """A field that decides what vectors mean cannot be edited after export."""
    edit_manifest(folder, max_query_tokens=99)
    with pytest.raises(BundleError, match="changed after export"):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"format": "other"}'])
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    """Broken JSON, another JSON value and another format are all bundle errors."""
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_an_unknown_field_is_refused(folder: Path) -> None:
    """A field this version does not know might matter, so it is not skipped."""
    edit_manifest(folder, surprise=1)
    with pytest.raises(BundleError, match="unknown fields"):
        Bundle.open(folder)


def test_a_listed_file_outside_the_folder_is_refused(folder: Path) -> None:
    """A link that leads out of the folder is not followed."""
    outside = folder.parent / "outside.json"
    shutil.move(folder / "tokenizer.json", outside)
    (folder / "tokenizer.json").symlink_to(outside)
    with pytest.raises(BundleError, match="lies outside"):
        Bundle.open(folder)


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.ops"


def domain_in_opsets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def domain_in_a_branch(model: onnx.ModelProto) -> None:
    branch = identity_graph(domain="evil.ops").graph
    node = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)


def domain_in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["a"], ["b"], domain="evil.ops")
    opsets = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("", "f", ["a"], ["b"], [node], opsets))


@pytest.mark.parametrize(
    "change", [unknown_domain, domain_in_opsets, domain_in_a_branch, domain_in_a_function]
)
def test_operators_of_other_domains_are_refused(
    folder: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    """Custom operators are found wherever a graph can hide them."""
    model = identity_graph()
    change(model)
    (folder / "event.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(BundleError, match="uses operators of domain"):
        Bundle.open(folder)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(folder: Path, location: str) -> None:
    """A tensor that would read another file of the machine is refused, sealed or not."""
    model = identity_graph()
    model.graph.initializer.append(external_tensor(location))
    (folder / "event.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(folder)


def test_external_data_that_is_not_listed_is_refused(folder: Path) -> None:
    """External data without a SHA-256 in the manifest could be anything."""
    model = identity_graph()
    constant = helper.make_node("Constant", [], ["k"], value=external_tensor("later.bin"))
    model.graph.node.append(constant)
    (folder / "event.onnx").write_bytes(model.SerializeToString())
    reseal(folder)
    with pytest.raises(BundleError, match="does not list"):
        Bundle.open(folder)


def test_external_data_that_is_listed_is_allowed(folder: Path) -> None:
    """Large models keep their weights beside the graph, under a SHA-256 of their own."""
    model = identity_graph()
    model.graph.initializer.append(external_tensor("weights.bin"))
    (folder / "event.onnx").write_bytes(model.SerializeToString())
    (folder / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    reseal(folder)
    assert "weights.bin" in Bundle.open(folder).manifest.files


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\xff", b"hello"])
def test_a_file_that_is_no_graph_is_refused(folder: Path, content: bytes) -> None:
    """Sealed rubbish under a graph's name is not handed to ONNX Runtime."""
    (folder / "event.onnx").write_bytes(content)
    reseal(folder)
    with pytest.raises(BundleError, match="is not an ONNX file"):
        Bundle.open(folder)


def test_a_query_that_is_too_long_is_refused(bundle_folder: Path) -> None:
    """A question is never cut: half of it would be another question."""
    bundle = Bundle.open(bundle_folder)
    with pytest.raises(BundleError, match="40 tokens, expected at most 32.*max_query_tokens"):
        bundle.query_ids("will " * 40)
    with pytest.raises(BundleError, match="has no tokens"):
        bundle.query_ids(" ")


def test_a_query_is_as_long_as_whoever_reads_it_can_read(sentence_bundle_folder: Path) -> None:
    """Where only the text encoder reads it, its limit counts, special tokens included."""
    bundle = Bundle.open(sentence_bundle_folder)
    assert bundle.query_ids("wine " * 10) == []
    with pytest.raises(BundleError, match="13 tokens, expected at most 12.*max_text_tokens"):
        bundle.query_ids("wine " * 11)


def test_an_answer_is_never_cut(sentence_bundle_folder: Path) -> None:
    """Two answers that differ in their last word only may not become one."""
    bundle = Bundle.open(sentence_bundle_folder)
    assert bundle.answer_ids("wine " * 10)
    with pytest.raises(BundleError, match="answer .* has 13 tokens, expected at most 12"):
        bundle.answer_ids("wine " * 11)


def test_no_query_is_the_general_embedding(bundle_folder: Path) -> None:
    """None has no tokens, and a space of its own."""
    bundle = Bundle.open(bundle_folder)
    assert bundle.query_ids(None) == []
    assert bundle.fingerprint(None) != bundle.fingerprint("will this customer have tea?")


def test_a_texts_vector_does_not_depend_on_the_others(bundle_folder: Path) -> None:
    """Alone, among a hundred others and in another order, a text's vector has the same bits."""
    bundle = Bundle.open(bundle_folder)
    event = bundle.session("event")
    texts = [
        " ".join(["ham in meat", "tea", "apples"][: 1 + n % 3] * (1 + n % 9)) + f" {n}"
        for n in range(100)
    ]
    together = bundle.encode_texts(texts, event)
    assert together.dtype == np.float32
    assert together.shape == (100, bundle.manifest.dims.text)
    assert bundle.encode_texts(texts[::-1], event)[::-1].tobytes() == together.tobytes()
    for number in (0, 1, 26, 99):
        assert bundle.encode_texts([texts[number]], event).tobytes() == together[number].tobytes()
    assert bundle.encode_texts([], event).shape == (0, bundle.manifest.dims.text)
    assert np.isfinite(bundle.encode_texts([""])).all()


def test_a_querys_vector_is_zero_where_nothing_is_asked(bundle_folder: Path) -> None:
    """The general embedding reads zeros, a question what the event graph makes of its words."""
    bundle = Bundle.open(bundle_folder)
    vectors = bundle.query_vectors([None, "tea", None])
    assert not vectors[[0, 2]].any()
    assert vectors[1].tobytes() == bundle.encode_texts(["tea"]).tobytes()
    assert vectors[1].any()
    assert not bundle.query_vectors([None]).any()


def test_an_unknown_prompt_is_refused(bundle_folder: Path) -> None:
    """A prompt that the bundle does not have is named with those it has."""
    with pytest.raises(BundleError, match="no prompt 'churn'"):
        Bundle.open(bundle_folder).fingerprint("a question", prompt="churn")


def test_an_answer_is_read_as_in_training(bundle_folder: Path, monkeypatch: Any) -> None:
    """Each text goes into the answer graph alone: its tokens, then <EOS>, nothing padded, and its
    own text vector.
    """
    bundle = Bundle.open(bundle_folder)
    seen: list[dict[str, list[Any]]] = []

    class Recorder:
        def run(self, _: list[str], feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
            seen.append({name: array.tolist() for name, array in feed.items()})
            return [np.full((1, 16), len(seen), dtype=np.float32)]

    texts = ["Yes, produce", "no"]
    spoken = [bundle.encode_texts([text]).tolist() for text in texts]
    session = Bundle.session
    monkeypatch.setattr(
        Bundle,
        "session",
        lambda self, graph: Recorder() if graph == "answer" else session(self, graph),
    )
    vectors = bundle.answer_vectors(texts)
    asked = [bundle.tokenizer.encode(text).ids for text in ("yes produce", "no")]
    eos = bundle.manifest.special_ids.eos
    assert seen == [
        {"ids": [[*ids, eos]], "length": [len(ids) + 1], "vector": vector}
        for ids, vector in zip(asked, spoken, strict=True)
    ]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1.0] * 16, [2.0] * 16]


def test_an_answers_vector_does_not_depend_on_the_others(bundle_folder: Path) -> None:
    """Alone, among others and in another order: the same bits, each of length one."""
    bundle = Bundle.open(bundle_folder)
    texts = ["yes, produce", "no", "never, visits: ham and a great deal more of it"]
    together = bundle.answer_vectors(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert len(np.unique(together, axis=0)) == 3
    assert bundle.answer_vectors(texts[::-1])[::-1].tobytes() == together.tobytes()
    for text, vector in zip(texts, together, strict=True):
        assert bundle.answer_vectors([text]).tobytes() == vector.tobytes()
    assert bundle.answer_vectors([]).shape == (0, 16)


@pytest.mark.parametrize("text", ["", " ", "?!"])
def test_an_answer_without_tokens_is_refused(bundle_folder: Path, text: str) -> None:
    """<EOS> alone answers nothing."""
    with pytest.raises(BundleError, match="has no tokens"):
        Bundle.open(bundle_folder).answer_vectors(["yes", text])
