"""Shape of a LLaMA: read from a Hugging Face config.json, or taken from SIZES for random weights.

`locate` is the one door from `--config.llm.path` to a shape and a folder: a local folder, a hub id, or `random:<size>`.
"""

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmsrec_jax import hf_folder

HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*_map.json"]
RANDOM = "random:"
EDGE = 1 << 24  # bytes


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; the last four fields are read by kind 'llama3' only."""

    theta: float = 10_000.0
    kind: Literal["default", "llama3"] = "default"
    factor: float = 1.0  # context was stretched by this much
    low: float = 1.0  # wavelengths above original/low are divided by factor
    high: float = 4.0  # wavelengths below original/high are kept
    original: int = 8192  # positions before stretching


@dataclass(frozen=True)
class LlamaConfig:
    vocab: int
    d: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    eps: float = 1e-5
    rope: Rope = Rope()
    tied: bool = True  # tokens are predicted by the table of embeddings, else by an lm_head
    max_positions: int = 2048
    writes: bool = False  # whether tokens are predicted at all

    def __post_init__(self):
        for name in ("vocab", "d", "layers", "heads", "kv_heads", "head_dim", "ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"LLaMA config: {name} is {getattr(self, name)}, must be positive")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"LLaMA config: heads {self.heads} is no multiple of kv_heads {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"LLaMA config: head_dim {self.head_dim} is odd, RoPE turns pairs")


def _meta(
    d: int, layers: int, heads: int, ff: int, factor: float, head_dim: int = 128, tied: bool = True
) -> LlamaConfig:
    """Llama 3.1 and 3.2: one vocabulary, 8 key/value heads, context stretched from 8k to 128k."""
    rope = Rope(theta=500_000.0, kind="llama3", factor=factor)
    return LlamaConfig(128_256, d, layers, heads, 8, head_dim, ff, 1e-5, rope, tied, 131_072)


SIZES: dict[str, LlamaConfig] = {
    "tiny": LlamaConfig(vocab=64, d=32, layers=3, heads=4, kv_heads=2, head_dim=8, ff=48),
    "toy": LlamaConfig(vocab=1024, d=64, layers=3, heads=4, kv_heads=2, head_dim=16, ff=176),
    # for measuring without an accelerator: the 3B's shares of attention and of logits in the work of a 300-token prompt
    "bench": LlamaConfig(2560, 512, 4, 4, 2, 32, 1376, rope=Rope(500_000.0, "llama3", 32.0)),
    "llama-3.2-1b": _meta(d=2048, layers=16, heads=32, ff=8192, factor=32.0, head_dim=64),
    "llama-3.2-3b": _meta(d=3072, layers=28, heads=24, ff=8192, factor=32.0),
    "llama-3.1-8b": _meta(d=4096, layers=32, heads=32, ff=14_336, factor=8.0, tied=False),
}


def size(name: str) -> LlamaConfig:
    """The shape behind `random:<name>`; ValueError with a suggestion for an unknown name."""
    if name in SIZES:
        return SIZES[name]
    close = difflib.get_close_matches(name.lower(), SIZES, n=1)
    hint = f"did you mean random:{close[0]}? " if close else ""
    raise ValueError(f"llm.path: no size {name!r} ({hint}sizes: {', '.join(SIZES)})")


def from_hf(folder: str | Path) -> LlamaConfig:
    """Reads `folder`/config.json (old and transformers-5 style).

    Raises ValueError naming file and field for anything that is not a plain LlamaForCausalLM.
    """
    raw, file = hf_folder.config(folder)
    _refuse_foreign(raw, file)
    try:
        d, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
        head_dim = raw.get("head_dim")
        if head_dim is None and d % heads:
            raise ValueError(
                f"hidden_size {d} is no multiple of num_attention_heads {heads} "
                "and there is no head_dim"
            )
        return LlamaConfig(
            vocab=int(raw["vocab_size"]),
            d=d,
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(head_dim or d // heads),
            ff=int(raw["intermediate_size"]),
            eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope=_rope(raw),
            tied=bool(raw.get("tie_word_embeddings", False)),
            max_positions=int(raw.get("max_position_embeddings", 2048)),
        )
    except KeyError as error:
        raise ValueError(f"{file}: field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def _refuse_foreign(raw: dict[str, Any], file: Path) -> None:
    architectures = raw.get("architectures") or ["LlamaForCausalLM"]
    if "LlamaForCausalLM" not in architectures or raw.get("model_type", "llama") != "llama":
        found = f"{', '.join(architectures)} (model_type {raw.get('model_type')!r})"
        raise ValueError(f"{file}: {found} is not supported, only LlamaForCausalLM is")
    plain = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for name, value in plain.items():
        if raw.get(name, value) != value:
            raise ValueError(f"{file}: {name}={raw[name]!r} is not supported, only {value!r} is")
    if raw.get("quantization_config"):
        raise ValueError(
            f"{file}: quantised checkpoints are not supported, use the original weights"
        )


def _rope(raw: dict[str, Any]) -> Rope:
    """transformers < 5: `rope_theta` + `rope_scaling`; from 5 on: `rope_parameters` with all of it."""
    scaling = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta", raw.get("rope_theta", 10_000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if float(scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ValueError("partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return Rope(theta=theta)
    if kind == "llama3":
        return Rope(
            theta=theta,
            kind="llama3",
            factor=float(scaling["factor"]),
            low=float(scaling["low_freq_factor"]),
            high=float(scaling["high_freq_factor"]),
            original=int(scaling["original_max_position_embeddings"]),
        )
    raise ValueError(f"rope type {kind!r} is not supported, only 'default' and 'llama3' are")


def locate(path: str, revision: str = "") -> tuple[LlamaConfig, Path | None]:
    """Shape and folder behind `llm.path`; the folder is None for `random:<size>`."""
    if path.startswith(RANDOM):
        return size(path.removeprefix(RANDOM)), None
    folder = resolve(path, revision)
    return from_hf(folder), folder


def is_here(path: str, revision: str = "") -> bool:
    """Whether nothing has to be downloaded for `llm.path`."""
    if path.startswith(RANDOM) or Path(path).expanduser().is_dir():
        return True
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        found = try_to_load_from_cache(path, "config.json", revision=revision or None)
    except errors.HFValidationError:  # no hub id: there is nothing to download either
        return False
    return isinstance(found, str)


def resolve(path: str, revision: str = "") -> Path:
    """Local folder of a model: `path` itself, or the hub's snapshot, downloaded once.

    Raises a one-line ValueError that says what to do when it cannot be had.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"llm.path: {path} is a file; give the folder that holds config.json")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
        raise ValueError(
            f"llm.path: no folder {path!r}; give a folder, a hub id (org/name) or random:<size>"
        )
    return _download(path, revision)


def fingerprint(folder: Path) -> str:
    """Digest of a model's folder: files up to 32 MiB whole; of weights their size, their beginning and their end.

    Reading 16 GB at every start would take longer than what it protects from: other training changes every tensor.
    """
    digest = hashlib.blake2b(digest_size=16)
    found = {path for pattern in HUB_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(found):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(size - EDGE, EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def _download(repo: str, revision: str) -> Path:
    from huggingface_hub import errors, snapshot_download

    at = f" at revision {revision!r}" if revision else ""
    local = "or give a local copy: --config.llm.path=DIR"
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=HUB_FILES))
    except errors.GatedRepoError:
        reason = (
            "is gated: accept its licence on huggingface.co, then `hf auth login` or set HF_TOKEN"
        )
    except errors.RevisionNotFoundError:
        reason = "is not there: check llm.revision"
    except errors.RepositoryNotFoundError:
        reason = "does not exist (a private one needs `hf auth login` or HF_TOKEN)"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "is not in the local cache and the hub cannot be reached: go online once"
    except errors.HFValidationError as error:
        reason = f"is no hub id ({error})"
    except (errors.HfHubHTTPError, OSError) as error:
        reason = f"could not be downloaded ({str(error).splitlines()[0]}): try again"
    raise ValueError(
        f"llm.path: no folder {repo!r} here, and the hub model of that name{at} {reason}, {local}"
    )
