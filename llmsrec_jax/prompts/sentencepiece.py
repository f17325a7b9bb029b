"""Reads a sentencepiece tokenizer.model (Llama-2 and its kin) into a `tokenizers` BPE, as the published tokenizer.json has it.

Own reader of the few protobuf fields that matter: it needs neither sentencepiece nor protobuf, and ranks merges by the
pieces' scores (the converter of transformers 5.23 ranks by id, which splits runs of spaces differently).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_BPE = 2  # trainer_spec.model_type
_UNKNOWN, _CONTROL = 2, 3  # piece types
_SPACE = "\u2581"  # stands for a space in pieces


def backend(path: Path) -> Any:
    """tokenizers.Tokenizer of a tokenizer.model with BPE pieces, byte fallback and a leading space, BOS by template.

    Raises:
      ValueError: not such a file.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    try:
        pieces, trainer, normalizer = _read(path.read_bytes())
        if not pieces or trainer.get(3, 1) != _BPE:
            raise ValueError("no BPE pieces")
        if normalizer.get(2) or not normalizer.get(3, 1) or normalizer.get(4, 1):
            raise ValueError("it normalises text")
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a sentencepiece model as Llama-2's ({error}); "
            "put the tokenizer.json of the model beside it"
        ) from error
    vocabulary = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    unknown = next(piece for piece, _, kind in pieces if kind == _UNKNOWN)
    result = Tokenizer(
        models.BPE(
            vocabulary, _merges(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    result.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    result.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [piece for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    result.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    bos = pieces[trainer.get(41, 1)][0]
    result.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return result


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best piece first."""
    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = []
    for piece, score, _ in pieces:
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                merges.append((-score, left, right))
    return [(pieces[left][0], pieces[right][0]) for _, left, right in sorted(merges)]


def _read(data: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """(pieces as (text, score, type), trainer_spec, normalizer_spec) of a ModelProto."""
    pieces, specs = [], {2: {}, 3: {}}
    for number, value in _fields(data):
        if number == 1:
            fields = dict(_fields(value))
            pieces.append((fields[1].decode(), fields.get(2, 0.0), fields.get(3, 1)))
        elif number in specs:
            specs[number] = dict(_fields(value))
    return pieces, specs[2], specs[3]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: int, bytes or float."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
            if len(value) < size:
                raise ValueError("cut short")
        elif wire == _FIXED32:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif wire == _FIXED64:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        else:
            raise ValueError("not protobuf")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
