"""tokens: the tokenizer and the catalogue's titles as token ids, once; then prompts out of them."""

from functools import cached_property
from pathlib import Path
from typing import Any

from llmsrec_jax import config, title_loaders
from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.keys import OWN_TOKENIZERS, TOKENS
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.prompts.prompts import PromptBuilder, within
from llmsrec_jax.prompts.templates import named
from llmsrec_jax.prompts.titles import TitlePrompts
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, training_texts
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.work import Work

TRAINED_VOCABULARY = 1024  # of a tokenizer trained on the catalogue


class Tokens:
    """Text, as a backbone reads it."""

    def __init__(self, work: Work, data: Prepared, home: "Tokens | None" = None):
        """home: of the data that the model was trained on, where it is to read these ones; it knows no other tokenizer."""
        self._work, self._data, self._home = work, data, home

    def require_titles(self) -> None:
        """Stops before the long work: LLM-SRec needs a catalogue with titles."""
        if not self._data.dataset.catalog.has_title.any():
            raise ValueError(
                "LLM-SRec reads item titles and this catalogue has none: set data.files.items "
                "(and data.files.title_column), or use --mode=teacher"
            )

    def tokenize(self) -> None:
        """Makes the artefact, once."""
        self._work.once(self._stage, self._make)

    @cached_property
    def _stage(self) -> Stage:
        home = self._home if self._folder is None else None  # a tokenizer that was trained there
        more = {} if home is None else {"tokenizer": home.tokenizer.fingerprint}
        return self._work.stage("tokens", TOKENS, **more)

    def _make(self, stage: Stage) -> dict[str, Any]:
        tokenizer = self._find()
        tokenizer.save(stage.folder / "tokenizer")
        catalog = self._data.dataset.catalog
        ItemTokens.build(tokenizer, catalog, self._wording).save(stage.folder / "items")
        return {"fingerprint": tokenizer.fingerprint, "vocabulary": tokenizer.vocab_size}

    def _find(self) -> Tokenizer:
        if self._home is not None:
            return self._home.tokenizer
        if self._folder is not None:
            return Tokenizer.load(self._folder)
        # of prompts with or without embeddings: a backbone that both read (lora.first) knows one vocabulary
        dataset, wording = self._data.dataset, self._work.cfg.prompts.wording
        texts = training_texts(dataset.catalog, wording, dataset.train.times)
        return Tokenizer.train(texts, TRAINED_VOCABULARY)

    @property
    def _wording(self) -> str:
        prompts = self._work.cfg.prompts
        return named(prompts.wording, prompts.item_repr)

    @property
    def _folder(self) -> Path | None:
        """Of the tokenizer; None = it is trained on the catalogue."""
        wanted = self._work.cfg.llm.tokenizer
        if wanted not in OWN_TOKENIZERS:
            return llama_config.resolve(wanted)
        return None if wanted == "catalogue" else self._work.keys.backbone[1]

    @property
    def _prompts(self) -> config.Prompts:
        """As the configuration wants them, within what the backbone reads."""
        return within(self._work.cfg.prompts, self._work.keys.backbone[0].max_positions)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self._stage.folder / "tokenizer")

    @cached_property
    def builder(self) -> PromptBuilder:
        folder, catalog = self._stage.folder / "items", self._data.dataset.catalog
        items = ItemTokens.load(folder, self.tokenizer, catalog, self._wording)
        return PromptBuilder(self.tokenizer, items, catalog, self._prompts)

    @cached_property
    def titles(self) -> TitlePrompts:
        """Of prompts that ask for one."""
        most = title_loaders.listed(self._work.cfg)
        return TitlePrompts(self.builder, self._data.dataset.catalog, self._prompts, most)

    def say_trimmed(self, when: str) -> None:
        """Reports prompts that were too long, counted since the last report (D19)."""
        if said := self.builder.report_trimmed(when):
            self._work.writer.say(said)
