"""A file appears whole or not at all."""

import numpy as np
import pytest

from llmsrec_jax.data import storage


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "made" / "records.jsonl"
    storage.write_records(path, [{"title": "é"}])
    with pytest.raises(TypeError):
        storage.write_records(path, [{"title": "new"}, {"title": object()}])
    assert storage.read_records(path) == [{"title": "é"}]
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


def test_arrays_keep_types(tmp_path):
    arrays = {
        "a": np.arange(3, dtype=np.int32),
        "names": np.asarray(["x", "yy"]),
        "none": np.zeros(0),
    }
    storage.write_arrays(tmp_path / "a.npz", **arrays)
    again = storage.read_arrays(tmp_path / "a.npz")
    assert {k: (v.dtype, v.tolist()) for k, v in again.items()} == {
        k: (v.dtype, v.tolist()) for k, v in arrays.items()
    }


def test_damaged_and_missing_records(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'{"a": 1}\n{"a"\n')
    with pytest.raises(ValueError, match="r.jsonl is damaged"):
        storage.read_records(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match="q.jsonl is missing"):
        storage.read_records(tmp_path / "q.jsonl")
