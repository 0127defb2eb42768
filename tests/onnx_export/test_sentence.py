from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from feast_anchor.onnx_export.errors import PretrainedError
from feast_anchor.onnx_export.sentence import SentenceEncoder, read_sentence_encoder
from tiny import BERT_WORDS

TEXTS = ["tomatoes", "fresh fresh milk", "wine", "a milk a wine a tomatoes", ""]


@pytest.fixture
def checkpoint(bert: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the checkpoint, to be changed."""
    shutil.copytree(bert[0], tmp_path / "copy")
    return tmp_path / "copy"


def padded(tokenizer: Tokenizer, texts: Sequence[str], width: int = 0, pad: int = 0) -> Tensor:
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    width = max(width, *map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@torch.no_grad()
def expected(model: Any, ids: Tensor, pooling: str) -> Tensor:
    real = (ids != 0).to(torch.int64)
    hidden = model(input_ids=ids, attention_mask=real).last_hidden_state
    mean = (hidden * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
    vector = hidden[:, 0] if pooling == "cls" else mean
    normal: Tensor = vector / vector.norm(dim=-1, keepdim=True)
    return normal


def pool_by(folder: Path, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {"word_embedding_dimension": 16, "include_prompt": True} | modes
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def test_vectors_are_those_of_transformers(bert: tuple[Path, Any]) -> None:
    """Without a pooling file the vectors are the normalised means of BERT's hidden states."""
    encoder, tokenizer = read_sentence_encoder(bert[0])
    ids = padded(tokenizer, TEXTS)
    assert (encoder(ids) - expected(bert[1], ids, "mean")).abs().max() < 1e-5


@torch.no_grad()
def test_pooling_file_is_followed(bert: tuple[Path, Any], checkpoint: Path) -> None:
    """A folder that pools by its first token gives the first token's hidden state."""
    pool_by(checkpoint, pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    encoder, tokenizer = read_sentence_encoder(checkpoint)
    ids = padded(tokenizer, TEXTS)
    assert (encoder(ids) - expected(bert[1], ids, "cls")).abs().max() < 1e-5


@torch.no_grad()
def test_padding_and_neighbours_do_not_move_a_vector(bert: tuple[Path, Any]) -> None:
    """A text alone, unpadded, and in a wide batch has the same vector, of length one."""
    encoder, tokenizer = read_sentence_encoder(bert[0])
    wide = encoder(padded(tokenizer, TEXTS, width=20))
    for text, vector in zip(TEXTS, wide, strict=True):
        alone = encoder(padded(tokenizer, [text]))[0]
        torch.testing.assert_close(alone, vector, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide.norm(dim=-1), torch.ones(len(TEXTS)))


@torch.no_grad()
def test_a_row_of_padding_only_is_finite(bert: tuple[Path, Any]) -> None:
    """An empty slot of a batch gives numbers, not NaN."""
    encoder, _ = read_sentence_encoder(bert[0])
    assert torch.isfinite(encoder(torch.zeros(2, 5, dtype=torch.int64))).all()


def test_tokenizer_keeps_special_tokens_and_all_words(bert: tuple[Path, Any]) -> None:
    """[CLS] and [SEP] stand around a text, which is neither cut nor padded."""
    _, tokenizer = read_sentence_encoder(bert[0])
    assert tokenizer.encode("tomatoes").tokens == ["[CLS]", "tomato", "##es", "[SEP]"]
    assert len(tokenizer.encode("a wine a milk").ids) == 6


def exported(encoder: SentenceEncoder, path: Path) -> Any:
    import onnxruntime as ort

    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own internals
        program = torch.onnx.export(
            encoder.eval(),
            (torch.tensor([[2, 4, 3, 0, 0], [2, 7, 6, 5, 3]]),),
            dynamo=True,
            opset_version=23,
            dynamic_shapes=(free,),
            input_names=["ids"],
            output_names=["vector"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_the_exported_graph_gives_the_same_vectors(
    checkpoint: Path, tmp_path: Path, pooling: str
) -> None:
    """ONNX Runtime agrees with torch for any number of texts and any width."""
    pool_by(checkpoint, **{f"pooling_mode_{pooling}": True})
    encoder, _ = read_sentence_encoder(checkpoint)
    session = exported(encoder, tmp_path / "sentence.onnx")
    generator = np.random.default_rng(0)
    for texts, width in [(1, 1), (1, 7), (5, 20), (3, 2)]:
        ids = generator.integers(1, len(BERT_WORDS), (texts, width))
        ids[np.arange(width) >= generator.integers(1, width + 1, (texts, 1))] = 0
        with torch.no_grad():
            vectors = encoder(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(session.run(None, {"ids": ids})[0], vectors, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', expected one of ['bert']"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 3}, "hidden_size 16 is no multiple of 3 heads"),
        ({"pad_token_id": 11}, "pad_token_id is 11, expected the id of a token"),
        ({"num_hidden_layers": 1}, "16 tensors that we have no place for"),
    ],
)
def test_an_encoder_that_would_run_wrong_is_refused(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    """A setting that our encoder does not follow is named, never ignored."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(PretrainedError) as caught:
        read_sentence_encoder(checkpoint)
    assert message in str(caught.value)


@pytest.mark.parametrize("modes", [{"max_tokens": True}, {"mean_tokens": True, "cls_token": True}])
def test_pooling_that_we_lack_is_refused(checkpoint: Path, modes: dict[str, bool]) -> None:
    """Another way of pooling is named instead of taking the mean."""
    pool_by(checkpoint, **{f"pooling_mode_{mode}": on for mode, on in modes.items()})
    with pytest.raises(PretrainedError, match="pools by"):
        read_sentence_encoder(checkpoint)


def test_modules_that_we_lack_are_refused(checkpoint: Path) -> None:
    """A projection behind the pooling is named instead of being left out."""
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(PretrainedError, match="ends in .'Dense'."):
        read_sentence_encoder(checkpoint)


def test_a_tokenizer_without_special_tokens_is_refused(checkpoint: Path) -> None:
    """Texts without [CLS] and [SEP] would be encoded a little wrong, so reading says so."""
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    with pytest.raises(PretrainedError, match="puts no .CLS. and .SEP. around"):
        read_sentence_encoder(checkpoint)


@torch.no_grad()
def test_minilm_knows_that_tomatoes_are_produce(text_encoder: Path) -> None:
    """The real all-MiniLM-L6-v2 puts tomatoes nearer to fresh produce than to gasoline."""
    encoder, tokenizer = read_sentence_encoder(text_encoder)
    vectors = encoder(padded(tokenizer, ["tomatoes", "fresh produce", "gasoline"]))
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
