"""The user state as bytes: what a store keeps of a user, so that new questions cost no history.

The rule: a packed state says all that is needed to answer from it or to append to it, and nothing
else can be answered from it: bytes of another model, another version or another length are
refused. The format is documented to the byte in docs/user_state.md.

Keys and values are kept as float32, or as int8 with one scale per row (token and head), a quarter
of the size. A state read back from int8 answers with slightly other vectors; one in float32 answers
with the very bits of a history read anew. `event_values` (days and amounts) stay float32 always:
they are few, and no one scale fits days and amounts.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from feast_anchor.onnx_export.errors import StateError
from feast_anchor.onnx_export.inputs import Clock, Floats, dropped
from feast_anchor.onnx_export.manifest import Manifest

Encoding = Literal["float32", "int8"]

MAGIC = b"FAUS"  # feast-anchor user state
VERSION = 1
# magic, version, encoding, modalities, bundle digest, timed, events counted, first, last,
# history_end, rows; little-endian, no padding
_HEADER = struct.Struct("<4sBBH32sIIqqqI")
_ENCODINGS: tuple[Encoding, ...] = ("float32", "int8")
_EXACT = ("event_values",)  # never int8


@dataclass(frozen=True)
class UserState:
    """A user's prefix: the state of the events that a window holds.

    Times are microseconds since the epoch, UTC.
    """

    bundle: str  # `Manifest.digest`: which model's; every space of it shares the state
    tensors: Mapping[str, Floats]  # by the manifest's names: [1,K,P,d] or [1,P,...]
    clock: Clock  # of the events in it
    history_end: int  # the newest event in it
    seen: tuple[int, ...]  # per modality all events so far, also those that windows dropped

    @property
    def events(self) -> int:
        """P: events in the state."""
        return int(next(iter(self.tensors.values())).shape[-2])

    def keeps(self, manifest: Manifest, new: tuple[int, ...]) -> bool:
        """Whether the window still begins with this state's events when `new` ones arrive.

        `new` counts the arriving events per modality. False means that the aligned window
        (`inputs.window`) drops events: the history must be read anew.
        """
        return all(
            dropped(seen + more, spec.max_events) == dropped(seen, spec.max_events)
            for seen, more, spec in zip(self.seen, new, manifest.modalities, strict=True)
        )

    def pack(self, encoding: Encoding = "int8") -> bytes:
        """The state as bytes."""
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            _ENCODINGS.index(encoding),
            len(self.seen),
            bytes.fromhex(self.bundle),
            self.clock.timed,
            self.clock.events,
            self.clock.first,
            self.clock.last,
            self.history_end,
            self.events,
        )
        parts = [header, np.array(self.seen, dtype="<u4").tobytes()]
        for name, tensor in self.tensors.items():
            if encoding == "int8" and name not in _EXACT:
                parts += [array.tobytes() for array in _quantised(tensor)]
            else:
                parts.append(tensor.astype("<f4", copy=False).tobytes())
        return b"".join(parts)

    @classmethod
    def unpack(cls, packed: bytes, bundle: str, shapes: Mapping[str, Any]) -> UserState:
        """Read a packed state of one bundle.

        Args:
            packed: what `pack` wrote, in either encoding.
            bundle: digest of the bundle that is to answer.
            shapes: of the state's tensors by name, with None for the number of events.

        Raises:
            StateError: not a packed state, of another version or bundle, or not of its size.
        """
        fields = _header(packed, bundle)
        encoding, modalities = _ENCODINGS[fields[2]], fields[3]
        rows = fields[10]
        at = _HEADER.size + 4 * modalities
        expected = at + _size(shapes, rows, encoding)
        if len(packed) != expected or rows < 1:
            raise StateError(
                f"a user state of {rows} events has {expected} bytes, got {len(packed)}: it was "
                "cut or changed; read the history anew"
            )
        seen = np.frombuffer(packed, "<u4", modalities, _HEADER.size)
        tensors = {}
        for name, wanted in shapes.items():
            shape = tuple(rows if size is None else size for size in wanted)
            count = int(np.prod(shape))
            if encoding == "int8" and name not in _EXACT:
                scale = np.frombuffer(packed, "<f4", count // shape[-1], at)
                values = np.frombuffer(packed, "i1", count, at + scale.nbytes)
                at += scale.nbytes + values.nbytes
                tensor = values.reshape(shape) * scale.reshape(*shape[:-1], 1)
            else:
                tensor = np.frombuffer(packed, "<f4", count, at).reshape(shape)
                at += tensor.nbytes
            tensors[name] = tensor
        return cls(
            bundle=fields[4].hex(),
            tensors=tensors,
            clock=Clock(bool(fields[5]), *fields[6:9]),
            history_end=fields[9],
            seen=tuple(seen.tolist()),
        )


def _header(packed: bytes, bundle: str) -> tuple[Any, ...]:
    if len(packed) < _HEADER.size or packed[:4] != MAGIC:
        raise StateError(
            f"{len(packed)} bytes beginning with {packed[:4]!r} are no user state, expected "
            f"{MAGIC!r}; read the history anew"
        )
    fields = _HEADER.unpack_from(packed)
    if fields[1] != VERSION or fields[2] >= len(_ENCODINGS):
        raise StateError(
            f"a user state of version {fields[1]} and encoding {fields[2]}, this feast-anchor "
            f"reads version {VERSION}; read the history anew"
        )
    if fields[4].hex() != bundle:
        raise StateError(
            f"a user state of bundle {fields[4].hex()[:12]}…, expected {bundle[:12]}…: another "
            "model cannot read it; read the history anew with this bundle"
        )
    return fields


def _size(shapes: Mapping[str, Any], rows: int, encoding: Encoding) -> int:
    """Bytes of all tensors."""
    total = 0
    for name, wanted in shapes.items():
        count = int(np.prod([rows if size is None else size for size in wanted]))
        exact = encoding == "float32" or name in _EXACT
        total += 4 * count if exact else count + 4 * (count // wanted[-1])
    return total


def _quantised(tensor: Floats) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scales [...] and int8 values [..., d] with values * scale close to the tensor [..., d]."""
    scale = np.abs(tensor).max(axis=-1, keepdims=True) / np.float32(127)
    values = np.rint(tensor / np.where(scale > 0, scale, 1)).astype(np.int8)
    return scale.astype("<f4"), values
