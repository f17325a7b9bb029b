"""tokens: the tokenizer and the catalogue's titles as token ids, once; then prompts out of them."""

from functools import cached_property
from typing import Any

from llmsrec_jax.checkpoint import Stage
from llmsrec_jax.keys import OWN_TOKENIZERS, TOKENS
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.prompts.prompts import PromptBuilder, within
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, training_texts
from llmsrec_jax.stages.preparation import Prepared
from llmsrec_jax.stages.work import Work

TRAINED_VOCABULARY = 1024  # of a tokenizer trained on the catalogue


class Tokens:
    """Text, as a backbone reads it."""

    def __init__(self, work: Work, data: Prepared):
        self._work, self._data = work, data

    def require_titles(self) -> None:
        """Stops before the long work: LLM-SRec needs a catalogue with titles."""
        if not self._data.dataset.catalog.has_title.any():
            raise ValueError(
                "LLM-SRec reads item titles and this catalogue has none: set data.files.items "
                "(and data.files.title_column), or use --mode=teacher"
            )

    def tokenize(self) -> None:
        """Makes the artefact, once."""
        self._work.once(self._work.stage("tokens", TOKENS), self._make)

    def _make(self, stage: Stage) -> dict[str, Any]:
        tokenizer = self._find()
        tokenizer.save(stage.folder / "tokenizer")
        catalog, wording = self._data.dataset.catalog, self._work.cfg.prompts.wording
        ItemTokens.build(tokenizer, catalog, wording).save(stage.folder / "items")
        return {"fingerprint": tokenizer.fingerprint, "vocabulary": tokenizer.vocab_size}

    def _find(self) -> Tokenizer:
        wanted, dataset = self._work.cfg.llm.tokenizer, self._data.dataset
        own = wanted in OWN_TOKENIZERS
        folder = self._work.keys.backbone[1] if own else llama_config.resolve(wanted)
        if wanted != "catalogue" and folder is not None:
            return Tokenizer.load(folder)
        wording = self._work.cfg.prompts.wording
        texts = training_texts(dataset.catalog, wording, dataset.train.times)
        return Tokenizer.train(texts, TRAINED_VOCABULARY)

    @cached_property
    def builder(self) -> PromptBuilder:
        folder = self._work.stage("tokens", TOKENS).folder
        tokenizer = Tokenizer.load(folder / "tokenizer")
        wording, catalog = self._work.cfg.prompts.wording, self._data.dataset.catalog
        items = ItemTokens.load(folder / "items", tokenizer, catalog, wording)
        prompts = within(self._work.cfg.prompts, self._work.keys.backbone[0].max_positions)
        return PromptBuilder(tokenizer, items, catalog, prompts)

    def say_trimmed(self, when: str) -> None:
        """Reports prompts that were too long, counted since the last report (D19)."""
        if said := self.builder.report_trimmed(when):
            self._work.writer.say(said)
