"""The bundle's manifest: what a model is, written down so that nothing else has to guess.

Two digests with two jobs. Each file's SHA-256 says "these are the bytes that were exported".
`Manifest.digest` says "this is the model": it covers everything that decides what a vector means
(graphs, tokenizer, modalities, token budgets, dimensions, pooling) and leaves out what does not
(soft prompts of single scenarios, the records of parity and quantisation, training provenance). So
a tuned prompt can be added to a bundle without moving any other scenario to a new embedding space.
The weights that prompts are tuned with stay out as well: they are the graphs' own numbers in
another form, no vector is computed with them, and `weights` compares them with the graphs before
it trusts them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BundleError

FORMAT = "feast-anchor-bundle"
FORMAT_VERSION = 3  # 3: events first, days of events in the state
MANIFEST_FILE = "manifest.json"
GRAPHS = ("event", "prefix", "suffix", "answer")
PROMPTS_FILE = "prompts.safetensors"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TEXT_TOKENIZER_FILE = "text_tokenizer.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModalitySpec(_Frozen):
    """One source of events as the model was trained to read it.

    `kind` is "events" (many timed rows) or "table" (a profile: only the newest row counts, and
    its clock time means nothing). `max_events` is the token budget: the newest rows are read.
    """

    name: str
    kind: Literal["events", "table"] = "events"
    text: str
    amount: bool = False
    max_events: int = Field(default=128, ge=1)


class Dims(_Frozen):
    """Sizes of the graphs, in numbers of floats or of layers and heads."""

    text: int  # width of one encoded event text
    hidden: int  # width of the decoder
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    embedding: int  # width of the vector that is served


class SpecialIds(_Frozen):
    """Token ids that no text can produce: they lie outside the tokenizer's vocabulary."""

    pad: int
    user_emb: int
    eos: int
    first_prompt: int  # prompt row r is addressed as first_prompt + r


class FileRecord(_Frozen):
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


class Manifest(_Frozen):
    """Everything a reader needs to know of a bundle; see docs/bundle.md for the fields."""

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    name: str
    entity: str  # whose vectors these are; for people, not part of the digest
    modalities: tuple[ModalitySpec, ...]
    max_text_tokens: int
    max_query_tokens: int
    text_pad: int  # of the text encoder's tokenizer
    event_features: tuple[str, ...]
    context_features: tuple[str, ...]
    sequence: tuple[str, ...]  # without "query", questions are read by their text vector alone
    dims: Dims
    special_ids: SpecialIds
    pooling: Literal["user_emb"] = "user_emb"
    normalisation: Literal["l2"] = "l2"
    dtype: Literal["float32", "int8 per token"] = "float32"  # of the decoder's products
    opset: int
    state: tuple[str, ...]  # names of the tensors that pass from prefix to suffix
    appends: bool = False  # the prefix also takes such a state, as past_<name>, and continues it
    architecture: dict[str, Any] = Field(default_factory=dict)  # `ModelConfig`, to read the weights
    files: dict[str, FileRecord] = Field(default_factory=dict)
    parity: dict[str, Any] = Field(default_factory=dict)
    quantisation: dict[str, Any] = Field(default_factory=dict)  # source and cosines, of int8
    training: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over all that decides what this model's vectors mean."""
        core = self.model_dump(mode="json", exclude=_NOT_MEANING)
        core["files"] = {
            name: record.sha256
            for name, record in self.files.items()
            if name not in (PROMPTS_FILE, WEIGHTS_FILE)
        }
        return canonical_sha256(core)

    @property
    def shares_prefixes(self) -> bool:
        """Whether the prefix of a history answers for every earlier as-of time too (`plen`)."""
        return self.sequence[0] == "events"

    def dumps(self) -> str:
        """The manifest as JSON text, with its own digest in it so that readers can check."""
        payload = self.model_dump(mode="json") | {"digest": self.digest}
        return json.dumps(payload, indent=2, sort_keys=True) + "\n"


_NOT_MEANING = {"name", "entity", "files", "architecture", "parity", "quantisation", "training"}


def canonical_sha256(payload: Any) -> str:
    """SHA-256 (hex) of a JSON value in one canonical spelling."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` alone: quick enough for `feast apply`.

    The other files are not opened here; `Bundle.open` verifies them before any is used.
    Raises `BundleError` when the manifest is missing, not ours, newer than this code or edited.
    """
    path = Path(folder) / MANIFEST_FILE
    payload = _read_json(path)
    if payload.get("format") != FORMAT:
        raise BundleError(
            f"{path} is not a feast-anchor bundle: format is {payload.get('format')!r}, "
            f"expected {FORMAT!r}"
        )
    _check_version(path, payload.get("format_version"))
    claimed = payload.pop("digest", None)
    try:
        manifest = Manifest.model_validate(payload)
    except ValidationError as error:
        raise BundleError(f"{path} has wrong or unknown fields: {error}") from error
    if claimed != manifest.digest:
        raise BundleError(
            f"{path} was changed after export: it claims digest {claimed!r} but its content "
            f"has {manifest.digest!r}; export the bundle again"
        )
    return manifest


def space_fingerprint(manifest: Manifest, query: str | None, prompt_sha256: str | None) -> str:
    """Name of the embedding space of one scenario: 32 hex characters.

    Two vectors may be compared, averaged, joined into one column or served under one name only
    if their fingerprints are equal. `query` is None for the general embedding (no question).
    """
    payload = {"bundle": manifest.digest, "query": query, "prompt": prompt_sha256}
    return canonical_sha256(payload)[:32]


def score_fingerprint(space: str, positive: Sequence[str], negative: Sequence[str]) -> str:
    """Name of what a scenario's zero-shot score means: 32 hex characters.

    Scores of different fingerprints are no more comparable than vectors of two spaces: other
    answers make another number of the same vector.

    Args:
        space: fingerprint of the scenario's embedding space.
        positive, negative: the answers, sorted: their order means nothing.
    """
    payload = {"space": space, "positive": list(positive), "negative": list(negative)}
    return canonical_sha256(payload)[:32]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"no bundle at {path.parent}: {MANIFEST_FILE} is missing; train one with "
            "`feast-anchor train` or correct the path"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}); export the bundle again") from error
    if not isinstance(payload, dict):
        raise BundleError(f"{path} holds a {type(payload).__name__}, expected an object")
    return payload


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} has format_version {version!r}, expected a whole number")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {version}, this feast-anchor reads {FORMAT_VERSION}; "
            "upgrade feast-anchor or export the bundle with this version"
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            f"{path} has format_version {version}, whose user state lacks the days of its "
            f"events; this feast-anchor reads {FORMAT_VERSION}: train the bundle again with "
            "`feast-anchor train`"
        )
