"""What every model folder holds, in and out of order; the models' own tests say what is read from it."""

from contextlib import ExitStack

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmsrec_jax import hf_folder

WANT = {"a": (2, 3), "b": (4,)}


def match(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    with ExitStack() as stack:
        readers = hf_folder.open_tensors(folder, stack)
        return hf_folder.match(readers, WANT, r"head\..*", "a toy", folder)


def test_tensors_are_matched_by_name_shape_and_dtype(tmp_path):
    tensors = {name: np.zeros(shape, np.float16) for name, shape in WANT.items()}
    file = tmp_path / "model.safetensors"
    assert match(tmp_path, tensors | {"head.c": np.zeros(1, np.int8)}) == {"a": file, "b": file}
    for change, message in (
        ({"c": np.zeros(1)}, "unexpected tensor c; config.json describes a toy"),
        ({"a": np.zeros((3, 2))}, r"a has shape \[3, 2\], config.json asks for \[2, 3\]"),
        ({"b": np.zeros(4, np.int8)}, "b is I8; quantised weights are not supported"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            match(tmp_path, tensors | change)
        assert str(file) in str(error.value)
    with pytest.raises(ValueError, match=r"tensor a \[2, 3\] and 1 more is missing from model"):
        match(tmp_path, {"head.c": np.zeros(1)})


@pytest.mark.parametrize(
    "read, text, message",
    [
        (hf_folder.json_object, "[]", "not a JSON object"),
        (hf_folder.json_list, "{}", "not a JSON list"),
        (hf_folder.json_list, "[", "not valid JSON"),
        (lambda file: hf_folder.config(file.parent), "3", "config.json: not a JSON object"),
    ],
)
def test_json(tmp_path, read, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert str(file) in str(error.value)
