"""Texts to vectors: what a vector depends on, what is said of odd texts, and how many programs there are."""

import numpy as np
import pytest

from llmsrec_jax.text import encoder
from tests.text import folders

RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(folders.WORDS, n)) for n in RNG.integers(1, 15, 300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def made(folder):
    return encoder.load(str(folder))


def test_a_vector_depends_on_its_text_alone(made):
    everyone = made.encode(TEXTS).vectors
    assert everyone.shape == (300, folders.D) and np.ptp(everyone, axis=0).min() > 0.1
    some = RNG.permutation(300)[:40]
    np.testing.assert_array_equal(made.encode([TEXTS[i] for i in some]).vectors, everyone[some])
    np.testing.assert_array_equal(made.encode(TEXTS[:1]).vectors, everyone[:1])


def test_few_programs(made):
    made.encode(TEXTS)
    programs = made._run._cache_size()
    assert programs <= sum(width <= folders.POSITIONS for width in encoder.WIDTHS) + 1
    made.encode(TEXTS[::-1] * 2)
    assert made._run._cache_size() == programs


@pytest.mark.parametrize("length, limit, width", [(1, 512, 8), (8, 512, 8), (9, 512, 12)])
def test_width(length, limit, width):
    assert encoder._width(length, limit) == width


def test_width_beyond_the_table():
    assert encoder._width(513, 4000) == 1024
    assert encoder._width(3000, 4000) == 4000


def test_long_texts_are_cut_and_counted(made):
    longest = " ".join(["red"] * (folders.POSITIONS - 2))
    got = made.encode([longest, longest + " soap", "soap"])
    assert got.cut == 1
    np.testing.assert_array_equal(got.vectors[0], got.vectors[1])


def test_what_the_folder_says_of_reading(folder, made, tmp_path):
    other = folders.write(tmp_path / "model")
    reading = {"max_seq_length": 4, "do_lower_case": True}
    folders.sentence_transformers(other, {"pooling_mode_cls_token": True}, reading, "Normalize")
    got = encoder.load(str(other)).encode(["RED Soap oil", "red soap gel"])
    assert got.cut == 2
    np.testing.assert_array_equal(got.vectors[0], got.vectors[1])
    np.testing.assert_allclose(np.linalg.norm(got.vectors, axis=1), 1, rtol=1e-6)
    assert not np.allclose(made.encode(["RED Soap"]).vectors, made.encode(["red soap"]).vectors)


def test_no_texts(made):
    assert made.encode([]).vectors.shape == (0, folders.D)


def test_something_is_read_instead_of_empty_texts(made):
    found, (wanted,) = made.encode(["", "red soap", "\u200b"], "gel"), made.encode(["gel"]).vectors
    assert (found.empty, made.encode(["red"], "gel").empty) == (2, 0)
    np.testing.assert_allclose(found.vectors[[0, 2]], [wanted, wanted], atol=1e-6)
    with pytest.raises(ValueError, match="1 of 1 texts are empty"):
        made.encode(["red soap", ""], " ")


def test_empty_texts_are_named(made):
    with pytest.raises(ValueError, match=r"3 of 5 texts are empty \(rows 0, 2, 4\)"):
        made.encode(["", "red", " \t", "soap", "\u200b\x00"])


def test_text_is_never_a_special_token(made):
    assert (
        np.abs(made.encode(["red [SEP]"]).vectors - made.encode(["red"]).vectors).max() > 1e-3
    )  # brackets and a word, all unknown
    np.testing.assert_array_equal(
        made.encode(["red [SEP]"]).vectors, made.encode(["red [xyz]"]).vectors
    )


def test_lone_surrogates(made):
    np.testing.assert_array_equal(
        made.encode(["red \ud800"]).vectors, made.encode(["red \ufffd"]).vectors
    )
