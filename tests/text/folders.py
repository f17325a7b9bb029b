"""Tiny model folders, made without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "the red blue green lip eye cream soap oil gel brush of for and with long very".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCAB = len(SPECIAL) + len(WORDS)
D, F, LAYERS, POSITIONS = 12, 20, 2, 40
CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "intermediate_size": F,
    "hidden_act": "gelu",
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def tensors() -> dict[str, np.ndarray]:
    """As Hugging Face names and lays them out: matrices [out, in]."""
    rng = np.random.default_rng(0)
    layer = {
        **{f"attention.self.{name}": (D, D) for name in ("query", "key", "value")},
        "attention.output.dense": (D, D),
        "attention.output.LayerNorm": (D,),
        "intermediate.dense": (F, D),
        "output.dense": (D, F),
        "output.LayerNorm": (D,),
    }
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, D),
        "embeddings.position_embeddings.weight": (POSITIONS, D),
        "embeddings.token_type_embeddings.weight": (2, D),
        "embeddings.LayerNorm.weight": (D,),
        "embeddings.LayerNorm.bias": (D,),
    }
    for i in range(LAYERS):
        for name, shape in layer.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def tokenizer(first: str = "[CLS]", last: str = "[SEP]", words: list[str] = WORDS) -> Tokenizer:
    vocab = {token: i for i, token in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(t, vocab[t]) for t in {first, last}]
    )
    made.add_special_tokens(SPECIAL)
    return made


def write(folder: Path, change: dict | None = None) -> Path:
    """A whole BERT; `change`: settings of its config.json, None to leave one out."""
    folder.mkdir(exist_ok=True)
    raw = {name: value for name, value in (CONFIG | (change or {})).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors(), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def sentence_transformers(folder: Path, pooling: dict | None, reading: dict, *more: str) -> None:
    """Writes what sentence-transformers does beside a model."""
    kinds = ["Transformer", "Pooling", *more]
    modules = [
        {
            "idx": i,
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(reading))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
