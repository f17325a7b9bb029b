"""Parity with transformers on tiny random models of every family: hidden states, and vectors of whole texts.

Limit: 2e-6 of each array's largest value.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax.text import config, encoder, weights
from tests.text import folders

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": folders.VOCAB, "hidden_size": 24, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "intermediate_size": 40}
CASES = {
    "bert": ("BertConfig", {"max_position_embeddings": 30}),
    "relu, wide eps": ("BertConfig", {"hidden_act": "relu", "layer_norm_eps": 1e-2}),
    "tanh gelu": ("BertConfig", {"hidden_act": "gelu_new", "type_vocab_size": 1}),
    "distilbert": ("DistilBertConfig", {"hidden_dim": 40}),
    "roberta": ("RobertaConfig", {"max_position_embeddings": 34, "pad_token_id": 0}),
    "xlm-roberta": ("XLMRobertaConfig", {"max_position_embeddings": 34, "pad_token_id": 3}),
}
TEXTS = [
    "red lip cream",
    "soap",
    "oil and [SEP] gel and nothing known",
    "green " * 25,
]


def close(got, want):
    assert np.isfinite(want).all() and np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def theirs(name: str, head: str = ""):
    """A random model of transformers, biases and norms random too."""
    kind, change = CASES[name]
    cfg = getattr(transformers, kind)(**(SIZES | change))
    family = kind.removesuffix("Config")
    torch.manual_seed(0)
    model = getattr(transformers, family + (head or "Model"))(cfg).eval()
    with torch.no_grad():
        for leaf in model.parameters():
            leaf.add_(0.3 * torch.randn(leaf.shape))
    return model


def base(model):
    return getattr(model, model.base_model_prefix, model)


@torch.no_grad()
def states(model, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    mask = np.arange(ids.shape[1]) < length[:, None]
    ids = np.where(mask, ids, model.config.pad_token_id)
    answer = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())
    return answer.last_hidden_state.numpy()


@pytest.mark.parametrize("name", CASES)
def test_hidden_states(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    cfg = config.from_hf(tmp_path)
    graphdef, state = nnx.split(weights.load(tmp_path, cfg))
    rng, length = np.random.default_rng(0), np.array([28, 1, 9, 17])
    ids = rng.integers(4, folders.VOCAB, (4, 28)).astype(np.int32)
    got = jax.jit(lambda state: nnx.merge(graphdef, state)(ids, length))(state)
    real = np.arange(28) < length[:, None]
    close(np.asarray(got)[real], states(model, ids, length)[real])


@pytest.mark.parametrize(
    "name, head",
    [
        ("bert", "ForMaskedLM"),
        ("bert", "ForSequenceClassification"),
        ("distilbert", "ForMaskedLM"),
        ("roberta", "ForMaskedLM"),
    ],
)
def test_the_encoder_inside_another_model(name, head, tmp_path):
    model = theirs(name, head)
    model.save_pretrained(tmp_path)
    got = weights.load(tmp_path, config.from_hf(tmp_path))
    ids, length = np.array([[5, 9, 7], [8, 6, 4]], np.int32), np.array([3, 3])
    close(got(ids, length), states(base(model), ids, length))


@pytest.mark.parametrize("name, unit, mode", [("bert", True, "mean"), ("roberta", False, "cls")])
def test_vectors_of_texts(name, unit, mode, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path)
    tokenizer = folders.tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    flag = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[mode]
    more = ["Normalize"] * unit
    folders.sentence_transformers(tmp_path, {flag: True}, {"max_seq_length": 20}, *more)
    got = encoder.load(str(tmp_path)).encode(TEXTS)
    assert got.cut == 1
    tokenizer.enable_truncation(20)
    tokenizer.encode_special_tokens = True
    for vector, text in zip(got.vectors, TEXTS, strict=True):
        ids = np.array([tokenizer.encode(text).ids])
        (want,) = states(model, ids, np.array([ids.shape[1]]))
        want = want.mean(0) if mode == "mean" else want[0]
        close(vector, want / np.linalg.norm(want) if unit else want)
