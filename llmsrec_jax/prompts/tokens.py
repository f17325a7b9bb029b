"""Token ids: the tokenizer, and the titles of a catalogue tokenised once (E2).

Ground truth is the tokenizer's own encoding of the whole prompt string, BOS included, with the slots as added special
tokens (D9). Prompts are assembled from pieces that stand between slots; with most tokenizers a cut before the space of
` "title"` is safe too, which a probe finds out. Text of titles never becomes a special token or a slot: for titles that
spell one, and only for them, ids differ from the authors'.
"""

import functools
import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmsrec_jax import hf_folder
from llmsrec_jax.data.interactions import Catalog, offsets_of
from llmsrec_jax.prompts import sentencepiece
from llmsrec_jax.prompts.templates import DAY_MS, SPECIAL, Template, template

# Stands where a slot does, so that text is encoded as it is after one. No title has this by accident.
_SLOT = "\U0010ffff slot \U0010ffff"
_SPLIT = (  # Llama-3's pre-tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_ENDS = (_EOS, "</s>", "<|endoftext|>", "<eos>")  # what tokenizers call the end of a text
_CHUNK = 4096  # titles per call and step of the progress bar


class Tokenizer:
    """A Hugging Face tokenizer as prompts need it. Plain text stays plain: no special token is read from it."""

    def __init__(self, backend: Any):
        """`backend`: a tokenizers.Tokenizer, owned by this object from now on."""
        from tokenizers import AddedToken

        backend.no_truncation()
        backend.no_padding()
        self._json: str = backend.to_str()
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()[:16]
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        backend.add_tokens([AddedToken(_SLOT, special=False, normalized=False)])
        backend.encode_special_tokens = True  # i.e. spell special tokens out as text
        self._plain = backend
        self._slot: int = backend.token_to_id(_SLOT)
        start = backend.encode(_SLOT, add_special_tokens=True).ids
        self.bos_ids: list[int] = start[: start.index(self._slot)]

    @property
    def end(self) -> int:
        """Id of the token that ends a text.

        Raises:
          ValueError: there is none.
        """
        for token in map(self._plain.token_to_id, _ENDS):
            if token is not None and token < self.vocab_size:
                return token
        raise ValueError(
            f"the tokenizer has no token that ends a text ({', '.join(_ENDS)}), which title generation needs: name another "
            "one by --config.llm.tokenizer=FOLDER"
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """From a model folder: tokenizer.json as it is, a sentencepiece tokenizer.model, or what transformers can convert.

        Raises:
          ValueError: none of them is there, or it cannot be read.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file() and path.with_name("tokenizer.model").is_file():
            return cls(sentencepiece.backend(path.with_name("tokenizer.model")))
        try:
            return cls(hf_folder.tokenizer(folder))
        except Exception as error:  # the libraries raise nothing more special
            raise ValueError(
                f"no readable tokenizer in {folder} ({error}); "
                "name a folder that has one by --config.llm.tokenizer"
            ) from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE with Llama-3's split and a begin-of-text template; the same texts give the same tokenizer.

        Raises:
          ValueError: `vocab_size` does not hold the bytes and the special tokens.
        """
        from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
        from tokenizers import Tokenizer as Backend

        if vocab_size < 256 + 2:
            raise ValueError(
                f"vocab_size={vocab_size} is below 258 (256 bytes, begin, end of text)"
            )
        backend = Backend(models.BPE(ignore_merges=True))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[_BOS, _EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(map(_clean, texts), trainer)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{_BOS} $A", special_tokens=[(_BOS, backend.token_to_id(_BOS))]
        )
        return cls(backend)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, readable by `load` and by other software."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".tokenizer.json.new"
        temporary.write_text(self._json, encoding="utf-8")
        temporary.replace(folder / "tokenizer.json")

    def encode(self, text: str) -> list[int]:
        """Ids of plain text at the start of a prompt, without BOS."""
        return self._plain.encode(_clean(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, after_slot: bool) -> list[list[int]]:
        """Ids of plain texts as they stand at the start of a prompt (without BOS) or right after a slot."""
        if not after_slot:
            encodings = self._plain.encode_batch_fast(
                [_clean(text) for text in texts], add_special_tokens=False
            )
            return [encoding.ids for encoding in encodings]
        encodings = self._plain.encode_batch_fast(
            [_SLOT + _clean(text) for text in texts], add_special_tokens=False
        )
        return [encoding.ids[1:] for encoding in encodings]

    def has_token_across(self, before: str) -> bool:
        """Whether some token spans the border between `before` and a space: no cut is safe there then."""
        across = [
            before + space for space in (" ", "\u2581", "\u0120")
        ]  # sentencepiece's and byte-level's spaces
        return any(two in token for token in self._plain.get_vocab(False) for two in across)

    def encode_prompt(self, text: str) -> list[int]:
        """Ground truth: ids of a whole prompt, BOS included, slots (and whatever spells a special token) as such."""
        return self._extended.encode(text, add_special_tokens=True).ids

    def special_id(self, token: str) -> int:
        """Id that `encode_prompt` gives to an added special token such as '[UserOut]'."""
        return self._extended.token_to_id(token)

    @functools.cached_property
    def _extended(self) -> Any:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self._json)
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
        return backend


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings.

    Raises:
      ValueError: so it is.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {vocab_size} embeddings: "
            "they do not belong together; set --config.llm.tokenizer to the model's own"
        )


def training_texts(catalog: Catalog, wording: str, times: np.ndarray) -> Iterator[str]:
    """What a catalogue's own tokenizer is trained on: all item prompts, and a history entry of every day (ms, UTC)."""
    form = template(wording)
    for title in catalog.titles[1:]:
        yield form.item_intro + form.titled(title) + form.item_outro
    for i, day in enumerate(np.unique(np.asarray(times) // DAY_MS).tolist()):
        yield form.opening(i % 10 + 1, form.date(day), first=i % 2 == 0)
        yield form.close + form.user_outro


@dataclass(frozen=True, eq=False)
class ItemTokens:
    """Tokenised titles of a catalogue, row = item id (CSR).

    `splittable`: rows are the pieces ` "title"`; else rows are whole openings of item prompts (BOS, intro and title).
    """

    ids: np.ndarray  # int32 [N]
    offsets: np.ndarray  # int64 [I+1]
    splittable: bool
    key: dict[str, str]  # tokenizer, catalogue, wording

    @property
    def lengths(self) -> np.ndarray:
        """int64 [I]."""
        return np.diff(self.offsets)

    @classmethod
    def build(
        cls,
        tokenizer: Tokenizer,
        catalog: Catalog,
        wording: str = "reference",
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> "ItemTokens":
        """Tokenises every title. `progress` wraps the iterable of chunks (default: a tqdm bar on terminals)."""
        form, titles = template(wording), catalog.titles
        csr = _title_pieces(tokenizer, form, titles, _bar(progress, len(titles)))
        splittable = csr is not None and _probe(tokenizer, form, titles, *csr)
        if csr is None or not splittable:
            csr = _item_openings(tokenizer, form, titles, _bar(progress, len(titles)))
        return cls(*csr, splittable, _key(tokenizer, catalog, wording))

    def save(self, folder: str | Path) -> None:
        """Writes ids.npy, offsets.npy, meta.json: all or nothing."""
        folder = Path(folder)
        temporary = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        np.save(temporary / "ids.npy", self.ids)
        np.save(temporary / "offsets.npy", self.offsets)
        meta = {**self.key, "splittable": self.splittable, "crc32": self._crc32()}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    @classmethod
    def load(
        cls, folder: str | Path, tokenizer: Tokenizer, catalog: Catalog, wording: str = "reference"
    ) -> "ItemTokens":
        """Opens a saved cache by mmap.

        Raises:
          ValueError: absent, damaged, or made with another tokenizer, catalogue or wording.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text())
            ids = np.load(folder / "ids.npy", mmap_mode="r")
            offsets = np.load(folder / "offsets.npy", mmap_mode="r")
            tokens = cls(ids, offsets, meta["splittable"], {name: meta[name] for name in _KEY})
            intact = tokens._crc32() == meta["crc32"]
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ValueError(
                f"item tokens in {folder} are absent or damaged ({error!r}); delete the folder"
            ) from error
        if not intact:
            raise ValueError(f"item tokens in {folder} are damaged (checksum); delete the folder")
        for name, value in _key(tokenizer, catalog, wording).items():
            if tokens.key[name] != value:
                raise ValueError(
                    f"item tokens in {folder} are of another {name}; delete the folder"
                )
        return tokens

    def _crc32(self) -> int:
        return zlib.crc32(self.offsets.tobytes(), zlib.crc32(self.ids.tobytes()))


_KEY = ("tokenizer", "catalogue", "wording")


def _key(tokenizer: Tokenizer, catalog: Catalog, wording: str) -> dict[str, str]:
    digest = hashlib.sha256()
    for title in catalog.titles:
        digest.update(_clean(title).encode() + b"\0")
    values = (tokenizer.fingerprint, digest.hexdigest()[:16], wording)
    return dict(zip(_KEY, values, strict=True))


def _clean(text: str) -> str:
    """Text that can be encoded: no lone surrogates (from bytes that were not UTF-8), no private slot mark."""
    if text.isascii():
        return text
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace(_SLOT, "\ufffd")


def _bar(progress: Callable[[Iterable[Any]], Iterable[Any]] | None, total: int) -> Iterable[slice]:
    chunks = [slice(i, i + _CHUNK) for i in range(0, total, _CHUNK)]
    if progress is not None:
        return progress(chunks)
    from tqdm import tqdm

    return tqdm(chunks, desc="titles", unit=f"x{_CHUNK}", disable=None)


class _Csr:
    """Collects rows of ids."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._lengths: list[int] = []

    def extend(self, rows: list[list[int]]) -> None:
        self._lengths += [len(row) for row in rows]
        self._ids.append(np.fromiter(itertools.chain.from_iterable(rows), np.int32))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self._ids), offsets_of(np.array(self._lengths))


def _title_pieces(
    tokenizer: Tokenizer, form: Template, titles: list[str], chunks: Iterable[slice]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids of every ` "title"` behind the character that precedes it; None where that is not a place to cut."""
    before = form.head[-1]
    if tokenizer.has_token_across(before):
        return None
    (context,) = tokenizer.encode_batch([before], after_slot=True)
    pieces = _Csr()
    for chunk in chunks:
        texts = [before + form.titled(title) for title in titles[chunk]]
        encoded = tokenizer.encode_batch(texts, after_slot=True)
        if any(ids[: len(context)] != context for ids in encoded):
            return None
        pieces.extend([ids[len(context) :] for ids in encoded])
    return pieces.arrays()


def _item_openings(
    tokenizer: Tokenizer, form: Template, titles: list[str], chunks: Iterable[slice]
) -> tuple[np.ndarray, np.ndarray]:
    openings = _Csr()
    for chunk in chunks:
        texts = [form.item_intro + form.titled(title) for title in titles[chunk]]
        encoded = tokenizer.encode_batch(texts, after_slot=False)
        openings.extend([tokenizer.bos_ids + ids for ids in encoded])
    return openings.arrays()


def _probe(
    tokenizer: Tokenizer,
    form: Template,
    titles: list[str],
    ids: np.ndarray,
    offsets: np.ndarray,
) -> bool:
    """Whether what precedes a title and the title, encoded apart, equal both encoded together, on titles of all sorts."""
    odd = [i for i, title in enumerate(titles) if not title[:1].isalnum()][:64]
    rows = sorted({*odd, *np.linspace(0, len(titles) - 1, 64).astype(int).tolist()})
    heads = [(form.item_intro, False), (form.opening(1, form.date(10956), first=True), False)]
    heads += [
        (form.opening(n, form.date(day), first=False), True) for n, day in ((2, 16256), (10, 19367))
    ]
    for head, after_slot in heads:
        (start,) = tokenizer.encode_batch([head], after_slot=after_slot)
        texts = [head + form.titled(titles[row]) for row in rows]
        for row, whole in zip(
            rows, tokenizer.encode_batch(texts, after_slot=after_slot), strict=True
        ):
            if whole != start + ids[offsets[row] : offsets[row + 1]].tolist():
                return False
    return True
