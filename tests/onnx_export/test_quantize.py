"""Bundles in int8: exact products, one scale per token, a recorded cosine, nothing else changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from feast_anchor.onnx_export.bundle import Bundle, empty_past, seal
from feast_anchor.onnx_export.bundle_prompts import add_prompt
from feast_anchor.onnx_export.cosine_gate import Closeness
from feast_anchor.onnx_export.errors import BundleError
from feast_anchor.onnx_export.int8_graph import decoder_to_int8, quantise_columns
from feast_anchor.onnx_export.manifest import read_manifest
from feast_anchor.onnx_export.model import Anchor
from feast_anchor.onnx_export.parity import random_inputs
from feast_anchor.onnx_export.quantize import quantize_bundle
from feast_anchor.onnx_export.weights import read_model

Array = np.ndarray[Any, Any]

FEW = 12  # users
HISTORY = ("vectors", "features", "modality", "days")
WIDTH, OUTPUTS = 37, 19


def product_graph(weight: Array, scope: str = "model.decoder.layers.0.out") -> onnx.ModelProto:
    """One MatMul of x and `weight` as torch exports it: it knows its module."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{scope}', 'linear']")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "product",
        [value("x", TensorProto.FLOAT, ["B", "T", weight.shape[0]])],
        [value("y", TensorProto.FLOAT, ["B", "T", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def weight() -> Array:
    """A matrix with columns of very different size, one of them empty."""
    generator = np.random.default_rng(0)
    out = generator.standard_normal((WIDTH, OUTPUTS)) * 10.0 ** generator.uniform(-3, 3, OUTPUTS)
    out[:, 3] = 0.0
    return out.astype(np.float32)


@pytest.fixture(scope="module")
def product(weight: Array) -> ort.InferenceSession:
    """The int8 form of `weight`'s product."""
    model = product_graph(weight)
    assert decoder_to_int8(model) == 1
    onnx.checker.check_model(model, full_check=True)
    return session(model)


@pytest.fixture(scope="module")
def int8_folder(shop_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's bundle in int8; do not change it."""
    out = tmp_path_factory.mktemp("int8") / "shop"
    quantize_bundle(shop_bundle, out, users=FEW)
    return out


@pytest.fixture(scope="module")
def model(shop_bundle: Path) -> Anchor:
    """The shop's model in torch."""
    return read_model(Bundle.open(shop_bundle))


@pytest.fixture(scope="module")
def answer(int8_folder: Path) -> Any:
    """Arrays of `random_inputs` -> int8 vectors [B, Q, dim], through both graphs."""
    bundle = Bundle.open(int8_folder)
    prefix, suffix = bundle.session("prefix"), bundle.session("suffix")

    def call(arrays: dict[str, Array]) -> Array:
        history = arrays | empty_past(prefix, len(arrays["modality"]))
        state = prefix.run(list(bundle.manifest.state), of(prefix, history))
        given = arrays | dict(zip(bundle.manifest.state, state, strict=True))
        vectors: Array = suffix.run(["embedding"], of(suffix, given))[0]
        return vectors

    return call


def of(session: ort.InferenceSession, arrays: dict[str, Array]) -> dict[str, Array]:
    """The inputs of one graph."""
    return {value.name: arrays[value.name] for value in session.get_inputs()}


@pytest.fixture
def folder(int8_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(int8_folder, tmp_path / "copy")


def by_hand(x: Array, weight: Array) -> Array:
    """The documented formula in numpy, its integers in int64: x[R,K] -> [R,N]."""
    int8, columns = quantise_columns(weight)
    step = np.float32(1 / 127)
    scale = np.maximum(np.abs(x).max(-1, keepdims=True) * step, np.float32(1e-30))
    tokens = np.rint(x / scale).astype(np.int64)  # [R,K]
    total = (tokens @ int8.astype(np.int64)).astype(np.float32)
    found: Array = (total * scale) * columns
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), spread=st.floats(0, 8))
def test_a_product_is_the_documented_formula_to_the_last_bit(
    product: ort.InferenceSession, weight: Array, seed: int, rows: int, spread: float
) -> None:
    """Tokens of any size, one of zeros among them, give what numpy gives with exact integers."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, WIDTH)) * 10.0 ** generator.uniform(
        -spread, spread, (rows, 1)
    )
    x[rows // 2] = 0.0
    x = x.astype(np.float32)

    (found,) = product.run(None, {"x": x[None]})

    assert np.array_equal(found[0], by_hand(x, weight))
    assert not found[0, rows // 2].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 4), tokens=st.integers(1, 20))
def test_a_token_is_the_same_bits_in_any_company(
    product: ort.InferenceSession, seed: int, blocks: int, tokens: int
) -> None:
    """Alone, among others a million times larger, in another place or behind padding."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((blocks, tokens, WIDTH)).astype(np.float32)
    x[generator.random((blocks, tokens)) < 0.3] *= 1e6
    (together,) = product.run(None, {"x": x})
    order = generator.permutation(tokens)
    (moved,) = product.run(None, {"x": x[:, order]})
    (padded,) = product.run(None, {"x": np.pad(x, [(0, 1), (0, 3), (0, 0)])})

    assert np.array_equal(moved, together[:, order])
    assert np.array_equal(padded[:blocks, :tokens], together)
    for block in range(blocks):
        for token in range(tokens):
            (alone,) = product.run(None, {"x": x[block : block + 1, token : token + 1]})
            assert np.array_equal(alone[0, 0], together[block, token])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(2, 30), st.integers(2, 5), st.integers(1, 12)),
)
def test_a_user_is_the_same_bits_alone_and_pooled_with_others(
    answer: Any, model: Anchor, seed: int, shape: tuple[int, int, int, int]
) -> None:
    """Users with histories of other lengths in one run, padded, do not move a bit of a vector."""
    arrays = random_inputs(model, shape, np.random.default_rng(seed))
    together = answer(arrays)
    for row in range(shape[0]):
        alone = {name: array[row : row + 1] for name, array in arrays.items()}
        alone["prompt"] = arrays["prompt"]
        events = max(2, int((arrays["modality"][row] >= 0).sum()))  # one alone runs as two
        for name in HISTORY:
            alone[name] = alone[name][:, :events]
        assert np.array_equal(answer(alone)[0], together[row])


def test_the_largest_products_do_not_overflow() -> None:
    """Two products of the largest activations and weights fit into the 16 bits that processors
    without VNNI add them in, and the sum of many is exact.
    """
    weight = np.ones((512, 16), dtype=np.float32)
    int8, _ = quantise_columns(weight)
    assert 2 * 255 * int8.astype(int).max() < 2**15
    model = product_graph(weight)
    decoder_to_int8(model)
    x = np.ones((1, 3, 512), dtype=np.float32)
    (found,) = session(model).run(None, {"x": x})
    np.testing.assert_allclose(found, 512.0, rtol=1e-6)


def test_other_matrices_than_the_decoders_stay_as_they_are(weight: Array) -> None:
    """A readout's product is not touched, however large."""
    model = product_graph(weight, "model.readout.head.0")
    before = model.SerializeToString()
    assert decoder_to_int8(model) == 0
    (kept,) = model.graph.initializer
    assert model.graph.node[0].op_type == "MatMul"
    assert kept.SerializeToString() in before


def test_every_matrix_of_the_decoders_layers_is_int8(int8_folder: Path) -> None:
    """Six a layer, but that the prefix needs keys and values alone of the last; a graph has no
    scale that depends on more than one token.
    """
    layers = read_manifest(int8_folder).dims.layers
    for graph, expected in (("prefix", 6 * layers - 5), ("suffix", 6 * layers)):
        model = onnx.load(int8_folder / f"{graph}.onnx")
        onnx.checker.check_model(model, full_check=True)
        operators = [node.op_type for node in model.graph.node]
        kinds = [tensor.data_type for tensor in model.graph.initializer]
        assert operators.count("MatMulInteger") == kinds.count(TensorProto.INT8) == expected
        assert "DynamicQuantizeLinear" not in operators


def test_the_manifest_records_how_near_and_from_where(shop_bundle: Path, int8_folder: Path) -> None:
    """Another digest, so other embedding spaces; source, gate and cosines stand in the record,
    which is not part of the digest.
    """
    source, found = Bundle.open(shop_bundle), Bundle.open(int8_folder)
    record = found.manifest.quantisation
    assert found.manifest.dtype == "int8 per token"
    assert found.manifest.digest != source.manifest.digest
    assert found.fingerprint(None) != source.fingerprint(None)
    assert record["source"] == source.manifest.digest
    assert record["matrices"] == {"prefix": 7, "suffix": 12}
    cosine = record["cosine"]
    assert 0.999 == record["gate"] <= cosine["hundredth"] <= cosine["mean"] <= 1.0
    assert cosine["minimum"] <= cosine["hundredth"]
    assert record["vectors"] == 7 * record["users"]
    without = found.manifest.model_copy(update={"quantisation": {}})
    assert without.digest == found.manifest.digest


def test_all_other_files_are_copied(shop_bundle: Path, int8_folder: Path) -> None:
    """Texts, answers, tokenizers, prompts and weights are those of the source, byte by byte."""
    before, after = read_manifest(shop_bundle).files, read_manifest(int8_folder).files
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"prefix.onnx", "suffix.onnx"}


def test_quantising_again_gives_the_same_digest(
    shop_bundle: Path, int8_folder: Path, tmp_path: Path
) -> None:
    """Also after a prompt was tuned, which is copied: other scenarios keep their spaces."""
    source = shutil.copytree(shop_bundle, tmp_path / "tuned")
    prompt = np.ones((2, read_manifest(source).dims.hidden), dtype=np.float32)
    add_prompt(source, "tea", prompt, {})

    found = quantize_bundle(source, tmp_path / "int8", users=FEW)

    assert found.manifest.digest == read_manifest(int8_folder).digest
    assert found.manifest.quantisation["vectors"] == 8 * FEW  # the prompt is compared as well
    assert np.array_equal(Bundle.open(tmp_path / "int8").prompts["tea"], prompt)
    assert any("99 % at least" in line for line in found.sentences())


def test_vectors_too_far_are_refused(shop_bundle: Path, tmp_path: Path) -> None:
    """A gate that is not reached leaves no bundle and says what was measured."""
    with pytest.raises(BundleError, match=r"1 % of 84 cosines .* below 0\.99.* at least 1\.0"):
        quantize_bundle(shop_bundle, tmp_path / "int8", gate=1.0, users=FEW)
    assert list(tmp_path.iterdir()) == []


def test_one_vector_in_a_hundred_decides() -> None:
    """The gate's statistic lets a rare stray vector pass, and none that is not rare."""
    right = np.zeros((200, 1, 2), dtype=np.float32)
    right[..., 0] = 1.0
    stray = right.copy()
    stray[0] = (0.0, 1.0)
    assert Closeness.of(stray, right, 1.0).hundredth == 1.0
    assert Closeness.of(stray, right, 1.0).minimum == 0.0
    stray[:5] = (0.0, 1.0)
    assert Closeness.of(stray, right, 1.0).hundredth == 0.0
    assert Closeness.of(right, stray, 1.0).between_users == pytest.approx(0.95, abs=0.01)


def test_an_int8_bundle_is_not_quantised_again(int8_folder: Path, tmp_path: Path) -> None:
    """Its weights are rounded already: the bundle it was made of is asked for."""
    with pytest.raises(BundleError, match="is int8 per token already"):
        quantize_bundle(int8_folder, tmp_path / "again")


def test_a_bundle_does_not_replace_itself(shop_bundle: Path, tmp_path: Path) -> None:
    """The fp32 bundle stays: views declared with it need it."""
    source = shutil.copytree(shop_bundle, tmp_path / "bundle")
    with pytest.raises(BundleError, match="expected another folder"):
        quantize_bundle(source, tmp_path / "." / "bundle")
    assert read_manifest(source).dtype == "float32"


def test_graphs_without_module_names_are_refused(shop_bundle: Path, tmp_path: Path) -> None:
    """Where the exporter left no names, no matrix is guessed to be the decoder's."""
    source = shutil.copytree(shop_bundle, tmp_path / "bundle")
    model = onnx.load(source / "suffix.onnx")
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, source / "suffix.onnx")
    seal(source, read_manifest(source))
    with pytest.raises(BundleError, match="no matrices of a decoder"):
        quantize_bundle(source, tmp_path / "int8")


def test_external_data_stays_external(shop_bundle: Path, int8_folder: Path, tmp_path: Path) -> None:
    """A graph whose weights lie beside it keeps them there, listed in the manifest, and computes
    the same.
    """
    source = shutil.copytree(shop_bundle, tmp_path / "bundle")
    model = onnx.load(source / "suffix.onnx")
    onnx.save_model(
        model, source / "suffix.onnx", save_as_external_data=True, location="suffix.onnx.data"
    )
    seal(source, read_manifest(source))

    found = quantize_bundle(source, tmp_path / "int8", users=FEW)

    assert "suffix.onnx.data" in found.manifest.files
    assert "prefix.onnx.data" not in found.manifest.files
    assert (
        found.manifest.quantisation["cosine"] == read_manifest(int8_folder).quantisation["cosine"]
    )
    assert found.after["suffix"] > (tmp_path / "int8" / "suffix.onnx").stat().st_size


def test_prompts_can_be_tuned_on_an_int8_bundle(shop_bundle: Path, int8_folder: Path) -> None:
    """The weights are compared with int8 graphs as closely as those were found to be."""
    tuned, source = read_model(Bundle.open(int8_folder)), read_model(Bundle.open(shop_bundle))
    for name, tensor in source.state_dict().items():
        assert tensor.equal(tuned.state_dict()[name])


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    """Int8 excuses rounding, not other weights."""
    path = folder / "weights.safetensors"
    generator = np.random.default_rng(0)
    weights = {
        name: generator.permutation(array.ravel()).reshape(array.shape)
        for name, array in load_file(path).items()
    }
    save_file(weights, path)
    seal(folder, read_manifest(folder))
    with pytest.raises(BundleError, match="are not its graphs': cosine"):
        read_model(Bundle.open(folder))
