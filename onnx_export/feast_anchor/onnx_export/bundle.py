"""A bundle: the folder an export writes and everything else reads. No torch here.

The rule: no file of a bundle is used before it is verified. Declaring a view reads manifest,
tokenizers and prompts and verifies these (`Bundle.declared`). Before any graph runs, `Bundle.open`
checks the manifest, every file's size and SHA-256, that no file or external tensor lies outside
the folder, and that the graphs use standard operators only. After that all of it can be trusted to
be what was exported, and a run can pin it by one digest.

    event.onnx   ids[N,L]                                            -> vector[N,E]
    prefix.onnx  vectors[B,T,E], features[B,T,F], modality[B,T],
                 days[B,T], past state        -> k_i, v_i [B,KV,P,hd], event_keys[B,P,A],
                                                 event_values[B,P,V]
    suffix.onnx  ids[B,Q,L], qlen[B,Q], plen[B,Q], now[B,Q],
                 context[B,Q,C], query[B,Q,E], prompt[R,D], state    -> embedding[B,Q,dim]
    answer.onnx  ids[A,L], length[A], vector[A,E]                    -> embedding[A,dim]

    The state is what prefix returns, under the names that the manifest lists; a model without
    evidence has no event_keys and event_values. Where the manifest says `appends`, prefix also
    takes a state without padding, as past_<name>, and returns that of its events and the new ones;
    a state of no rows (P = 0) begins anew (`empty_past`). query and vector are what event.onnx
    makes of a question and of an answer; a query of zeros asks nothing.
    P = T, or 1 + modalities + T where summary tokens stand before the events. plen counts the
    events that a question may see: all, or with the events first any number of the first ones.
    days are counted from the first event, and now is the as-of on that clock. qlen counts the real
    suffix tokens, of which the last is <USER_EMB>; length counts the real tokens of an answer, of
    which the last is <EOS>. modality is -1 where an event slot is padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import BundleError
from .manifest import (
    GRAPHS,
    MANIFEST_FILE,
    PROMPTS_FILE,
    TEXT_TOKENIZER_FILE,
    TOKENIZER_FILE,
    FileRecord,
    Manifest,
    read_manifest,
    space_fingerprint,
)
from .onnxcheck import check_graph
from .text import answer_ids, tokenize

if TYPE_CHECKING:
    import onnxruntime as ort
    from tokenizers import Tokenizer

REQUIRED_FILES = (
    *(f"{graph}.onnx" for graph in GRAPHS),
    TOKENIZER_FILE,
    TEXT_TOKENIZER_FILE,
    PROMPTS_FILE,
)

_PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    # TF32 keeps 10 bits of a number: vectors would not be those of the CPU
    "cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}
_TEXTS_PER_RUN = 64
_WIDTH_STEP = 8  # tokens; a text is padded to a multiple of this


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder. Make one with `Bundle.open`, or `Bundle.declared` for its words."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path, *, expect_digest: str | None = None) -> Bundle:
        """Verify a bundle folder and return it.

        Args:
            folder: the bundle's folder.
            expect_digest: the `Manifest.digest` that a view pinned, if any.

        Raises:
            BundleError: a file is missing, changed, truncated, of a newer format, outside the
                folder, or not allowed; or the digest is not the expected one.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if expect_digest is not None and manifest.digest != expect_digest:
            raise BundleError(
                f"bundle at {folder} is another model than the view was declared with: digest "
                f"{manifest.digest[:12]}…, expected {expect_digest[:12]}…; put the old bundle "
                "back, or declare a new view name for the new model and run `feast apply`"
            )
        _check_required(folder, manifest)
        for name, record in manifest.files.items():
            _check_file(folder, name, record)
        for graph in GRAPHS:
            check_graph(folder / f"{graph}.onnx", frozenset(manifest.files))
        return cls(folder, manifest)

    @classmethod
    def declared(cls, folder: str | Path) -> Bundle:
        """A bundle for declaring views: manifest, tokenizers and prompts verified, graphs not.

        Quick enough for `feast apply`; the graphs are verified by `open` before they are used.
        Raises `BundleError` like `open`.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        _check_required(folder, manifest)
        for name in (TOKENIZER_FILE, TEXT_TOKENIZER_FILE, PROMPTS_FILE):
            _check_file(folder, name, manifest.files[name])
        return cls(folder, manifest)

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name!r}, digest={self.manifest.digest[:12]}…)"

    def session(self, graph: str, device: Literal["cpu", "cuda"] = "cpu") -> ort.InferenceSession:
        """A single-threaded ONNX Runtime session of one graph, safe to share between threads.

        Run it from as many threads as there are cores: that scales where threads inside one run
        do not, and it keeps every result independent of the number of threads.

        Raises `BundleError` when ONNX Runtime cannot load the graph or start the device.
        """
        import onnxruntime as ort  # slow to import, and `feast apply` never needs it

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.use_deterministic_compute = device == "cuda"
        path = self.folder / f"{graph}.onnx"
        try:
            session = ort.InferenceSession(str(path), options, providers=_PROVIDERS[device])
        except Exception as error:  # onnxruntime raises its own untyped classes
            raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
        if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise BundleError(
                f"ONNX Runtime {ort.__version__} could not start its CUDA provider for {path}, it "
                f"has {session.get_providers()}; install the CUDA and cuDNN that it was built for "
                "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or score with device='cpu'"
            )
        return session

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The decoder's tokenizer of queries and answers."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / TOKENIZER_FILE))

    @cached_property
    def text_tokenizer(self) -> Tokenizer:
        """The text encoder's tokenizer of events, queries and answers."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / TEXT_TOKENIZER_FILE))

    def encode_texts(
        self,
        texts: Sequence[str],
        event: ort.InferenceSession | None = None,
        pool: Executor | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Encode texts with the event graph: float32 [len(texts), E].

        A text's width depends on its own length and every run has the same number of rows, so its
        bits do not depend on the other texts. `event` is a session to use, or one is made; `pool`
        runs several at once.
        """
        event = event or self.session("event")
        pad, limit = self.manifest.text_pad, self.manifest.max_text_tokens
        ids = tokenize(self.text_tokenizer, texts, limit, pad)  # [N, limit]
        widths = np.minimum(limit, -(-(ids != pad).sum(1) // _WIDTH_STEP) * _WIDTH_STEP)
        out = np.empty((len(texts), self.manifest.dims.text), dtype=np.float32)
        runs = []
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            runs += np.split(rows, range(_TEXTS_PER_RUN, len(rows), _TEXTS_PER_RUN))

        def encode(rows: np.ndarray[Any, Any]) -> None:
            feed = np.full((_TEXTS_PER_RUN, max(1, widths[rows[0]])), pad, dtype=np.int64)
            feed[: len(rows)] = ids[rows, : feed.shape[1]]
            out[rows] = event.run(["vector"], {"ids": feed})[0][: len(rows)]

        list((pool.map if pool else map)(encode, runs))
        return out

    @cached_property
    def prompts(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Tuned soft prompts by name, each float32 [tokens, hidden]."""
        from safetensors.numpy import load_file

        return load_file(self.folder / PROMPTS_FILE)

    def query_ids(self, query: str | None) -> list[int]:
        """Token ids of a scenario query, without `<USER_EMB>`; [] for the general embedding.

        Also [] for a model that reads a question by its text vector alone.

        Raises `BundleError` when the query has more tokens than the text encoder, or a decoder that
        reads it word by word, was built for: it is never cut silently, because half a question is
        another question.
        """
        if query is None:
            return []
        ids = list(self.tokenizer.encode(query, add_special_tokens=False).ids)
        if not ids:
            raise BundleError(
                f"query {query[:60]!r} has no tokens; write words that the tokenizer reads, or "
                "None for the general embedding"
            )
        self._check_text("query", query)
        if "query" not in self.manifest.sequence:
            return []
        self._check_length("query", query, len(ids), "max_query_tokens")
        return ids

    def query_vectors(
        self, queries: Sequence[str | None], event: ort.InferenceSession | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What the suffix reads of each query beside its tokens: float32 [len(queries), E].

        Zeros for None, the general embedding.
        """
        out = np.zeros((len(queries), self.manifest.dims.text), dtype=np.float32)
        asked = [row for row, query in enumerate(queries) if query is not None]
        if asked:
            out[asked] = self.encode_texts([queries[row] or "" for row in asked], event)
        return out

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer, `<EOS>` last.

        Raises `BundleError` when it has no other token, or more than the text encoder reads.
        """
        (ids,) = answer_ids(self.tokenizer, [answer], self.manifest.special_ids.eos)
        if len(ids) == 1:
            raise BundleError(
                f"answer {answer!r} has no tokens; write words that the tokenizer reads"
            )
        self._check_text("answer", answer)
        return ids

    def answer_vectors(self, answers: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors of answer texts: float32 [len(answers), dim], unit length.

        Each runs alone and unpadded, so its bits do not depend on the others. Raises `BundleError`
        when an answer has no tokens or too many.
        """
        session = self.session("answer")
        out = np.empty((len(answers), self.manifest.dims.embedding), dtype=np.float32)
        for row, answer in zip(out, answers, strict=True):
            ids = np.array([self.answer_ids(answer)], dtype=np.int64)  # [1, L]
            length = np.array([ids.shape[1]], dtype=np.int64)
            feed = {"ids": ids, "length": length, "vector": self.encode_texts([answer])}
            row[:] = session.run(["embedding"], feed)[0][0]
        return out

    def fingerprint(self, query: str | None, prompt: str | None = None) -> str:
        """Fingerprint of the embedding space of one scenario of this bundle."""
        return space_fingerprint(self.manifest, query, self._prompt_sha256(prompt))

    def prompt(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tuned prompt, float32 [tokens, hidden]. Raises `BundleError` for an unknown one."""
        if name not in self.prompts:
            raise BundleError(
                f"bundle {self.manifest.name!r} has no prompt {name!r}; it has "
                f"{sorted(self.prompts)}"
            )
        return self.prompts[name]

    def _check_text(self, what: str, text: str) -> None:
        """Refuse a text that `encode_texts` would cut: half a question is another question."""
        tokens = len(self.text_tokenizer.encode(text).ids)
        self._check_length(what, text, tokens, "max_text_tokens")

    def _check_length(self, what: str, text: str, tokens: int, setting: str) -> None:
        limit = getattr(self.manifest, setting)
        if tokens > limit:
            raise BundleError(
                f"{what} {text[:60]!r} has {tokens} tokens, expected at most {limit}; shorten it "
                f"or train a bundle with a larger {setting}"
            )

    def _prompt_sha256(self, prompt: str | None) -> str | None:
        return None if prompt is None else hashlib.sha256(self.prompt(prompt).tobytes()).hexdigest()


def empty_past(prefix: ort.InferenceSession, histories: int) -> dict[str, np.ndarray[Any, Any]]:
    """The past state of histories that begin anew: inputs of a prefix session by name.

    {} for a bundle whose prefix cannot be continued.
    """
    return {
        given.name: np.empty(
            [histories, *(size if isinstance(size, int) else 0 for size in given.shape[1:])],
            dtype=np.float32,
        )
        for given in prefix.get_inputs()
        if given.name.startswith("past_")
    }


def seal(folder: str | Path, draft: Manifest) -> Manifest:
    """Record every file of `folder` in the manifest and write it: the last step of an export."""
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): FileRecord(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    manifest = draft.model_copy(update={"files": files})
    _check_required(folder, manifest)
    (folder / MANIFEST_FILE).write_text(manifest.dumps(), encoding="utf-8")
    return manifest


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_required(folder: Path, manifest: Manifest) -> None:
    for name in REQUIRED_FILES:
        if name not in manifest.files:
            raise BundleError(
                f"the manifest in {folder} does not list {name!r}, which every bundle has; "
                "export the bundle again"
            )


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"bundle file {name!r} lies outside {folder}; export the bundle again")
    if not path.is_file():
        raise BundleError(f"bundle file {name!r} is missing from {folder}; export it again")
    size = path.stat().st_size
    if size != record.bytes:
        raise BundleError(
            f"bundle file {path} has {size} bytes, the manifest says {record.bytes}: it was "
            "truncated or changed; copy or export the bundle again"
        )
    if sha256_file(path) != record.sha256:
        raise BundleError(
            f"bundle file {path} was changed: its SHA-256 is not the manifest's; copy or export "
            "the bundle again"
        )
