"""What every Hugging Face model folder holds: config.json, safetensors, a tokenizer. Each reader says what is wrong with which file.

Knows no model: what a field or a tensor means is said by who asks.
"""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

DTYPES = ("F64", "F32", "F16", "BF16")

Readers = Mapping[Path, Any]  # safetensors file -> what reads it


def json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError naming the file for anything else."""
    raw = _json(file)
    if not isinstance(raw, dict):
        raise ValueError(f"{file}: not a JSON object")
    return raw


def json_list(file: Path) -> list[Any]:
    """The list in a JSON file; ValueError naming the file for anything else."""
    raw = _json(file)
    if not isinstance(raw, list):
        raise ValueError(f"{file}: not a JSON list")
    return raw


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from None


def config(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """What config.json says, and where it is."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"no config.json in {folder}: not a Hugging Face model folder")
    return json_object(file), file


def tokenizer(folder: str | Path) -> Any:
    """tokenizers.Tokenizer of tokenizer.json as it is, or of any format that transformers converts (vocab.txt, ..).

    Raises whatever the two libraries do, nothing more special.
    """
    file = Path(folder) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(file))
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer


def open_tensors(folder: Path, stack: ExitStack) -> Readers:
    """Opens the safetensors of a folder, for as long as `stack` is."""
    return {file: _open(file, stack) for file in _files(folder)}


def match(
    readers: Readers,
    want: Mapping[str, tuple[int, ...]],
    ignored: str,
    model: str,
    folder: Path,
) -> dict[str, Path]:
    """File of every tensor in `want` (name -> shape), checked from the headers alone, before any weight is read.

    ignored: pattern of the names that may be there and are not read. model: what config.json describes, for messages.
    Raises ValueError naming tensor and file if one is missing, unexpected, mis-shaped or quantised.
    """
    found: dict[str, Path] = {}
    for file, reader in readers.items():
        for tensor in reader.keys():
            if re.fullmatch(ignored, tensor):
                continue
            if tensor not in want:
                raise ValueError(
                    f"{file}: unexpected tensor {tensor}; config.json describes {model}"
                )
            view = reader.get_slice(tensor)
            shape = tuple(view.get_shape())
            if shape != want[tensor]:
                raise ValueError(
                    f"{file}: tensor {tensor} has shape {list(shape)}, config.json asks for {list(want[tensor])}"
                )
            if view.get_dtype() not in DTYPES:
                raise ValueError(
                    f"{file}: tensor {tensor} is {view.get_dtype()}; quantised weights are not supported"
                )
            found[tensor] = file
    missing = [tensor for tensor in want if tensor not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder}: tensor {missing[0]} {list(want[missing[0]])}{more} is missing from "
            f"{', '.join(file.name for file in readers)}"
        )
    return found


def _files(folder: Path) -> list[Path]:
    """The safetensors of a folder: those of its index, else model.safetensors, else all of them."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: damaged ({error!r}); download it again") from None
        for name in names:
            if not (folder / name).is_file():
                raise ValueError(f"{index} lists {name}, which is not there; download it again")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"no safetensors in {folder}: convert the weights (.bin, .pth) first")
    return files


def _open(file: Path, stack: ExitStack) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return stack.enter_context(safe_open(file, framework="np"))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file}: damaged or incomplete safetensors ({error}); download it again"
        ) from None
