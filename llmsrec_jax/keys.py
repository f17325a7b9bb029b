"""What each artefact of the pipeline depends on: the settings that change it, and what is in the files they name."""

from functools import cached_property
from pathlib import Path
from typing import Any

from llmsrec_jax import config
from llmsrec_jax.data import storage
from llmsrec_jax.llama import config as llama
from llmsrec_jax.text import config as text

# Settings that only change speed or display are in none of these.
DATA = ("seed", "data")
CANDIDATES = {  # split -> fields of its candidates
    "valid": (*DATA, "evaluate.negatives", "evaluate.sampling", "evaluate.validation_users"),
    "test": (*DATA, "evaluate.negatives", "evaluate.sampling", "evaluate.max_users"),
}
ORDERS = {  # what is permuted -> fields of its order
    "train": (*DATA, "order.train"),
    "test": (*DATA, "evaluate.max_users", "order.scope", "prompts.history_len"),
}
TEACHER = (*CANDIDATES["valid"], "order.train", "teacher", "evaluate.ties")
TOKENS = (
    *(*DATA, "llm.path", "llm.revision", "llm.tokenizer"),
    *("prompts.wording", "prompts.item_repr"),
)
TEXTS = (*DATA, "alignment.text")  # vectors of titles
ALIGNMENT = (*TEACHER, "alignment")
TRAIN = (
    *(*ALIGNMENT, "llm.path", "llm.revision", "llm.tokenizer", "llm.dtype", "llm.quant"),
    "llm.item_store_dtype",
    *("lora", "prompts", "head", "distill", "uniformity", "evaluate.score"),
    *("train.batch", "train.epochs", "train.lr", "train.b2", "train.lr_schedule", "train.lr_decay"),
    *("train.negatives", "train.exclude", "train.validations_per_epoch", "train.patience"),
    *("train.metric", "train.max_users", "train.targets", "train.curriculum"),
)
VECTORS = (*TRAIN, *CANDIDATES["test"])
PERMUTED = (*VECTORS, "order.scope")
TRANSFERRED = (*VECTORS, "transfer")  # vectors on another dataset, whose settings follow from these
_RULES = (
    *("order.train", "order.permutations", "order.scope", "slices"),
    *("evaluate.ties", "evaluate.mask_seen", "evaluate.score", "evaluate.ks"),
    "evaluate.neighbours",
)
JUDGED = {  # with LLM-SRec or without -> fields of what is said of the models
    True: (*VECTORS, *_RULES),
    False: (*TEACHER, *CANDIDATES["test"], *_RULES, "prompts.history_len"),
}
JUDGED_ELSEWHERE = (*JUDGED[True], "transfer")
_OF_TITLES = ("prompts.task", "prompts.title_tokens")
_OF_VECTORS = ("head.", "distill.", "uniformity.", "evaluate.score", "llm.item_store_dtype")
OWN_TOKENIZERS = ("", "catalogue")  # values of llm.tokenizer that name no folder
_TEXT_FILES = ("*.json", "*.txt", "*.model", "*/config.json")  # small ones of a text encoder


class Keys:
    """The settings of one run by the artefacts they change."""

    def __init__(self, cfg: config.Config):
        self._cfg = cfg
        self._contents: dict[str, str] = {}

    def __call__(self, names: tuple[str, ...]) -> dict[str, Any]:
        """{setting: value}; a path counts as what is in its files, so a moved file is the same and a changed one is not."""
        full = self._cfg.teacher.select == "full"
        if full and "teacher" in names:  # whose validation ranks as the test does
            names += ("evaluate.mask_seen",)
        values = config.subset(self._cfg, names)
        unsaid = () if self._cfg.lora.exists else ("lora.",)
        unsaid += () if self._cfg.alignment.trains else ("alignment.",)
        prompts = self._cfg.prompts
        unsaid += ("prompts.item_repr",) if prompts.item_repr else ()
        unsaid += () if self._cfg.teacher.windows == "all" else ("teacher.windows",)
        unsaid += () if full else ("teacher.select",)
        unsaid += tuple(config.unread(self._cfg))
        unsaid += () if self._cfg.train.curriculum else ("train.curriculum",)
        unsaid += _OF_TITLES if prompts.retrieves else _OF_VECTORS
        # settings of what is not there: keys are as if there were no such settings
        values = {name: one for name, one in values.items() if not name.startswith(unsaid)}
        for name in values.keys() & _CONTENT.keys():
            if name not in self._contents:
                self._contents[name] = _CONTENT[name](self, values[name])
            values[name] = self._contents[name]
        return values

    @cached_property
    def backbone(self) -> tuple[llama.LlamaConfig, Path | None]:
        """Shape and local folder of the backbone, fetched if it must be; no folder for a random one."""
        return llama.locate(self._cfg.llm.path, self._cfg.llm.revision)

    def _of_backbone(self, path: str) -> str:
        folder = self.backbone[1]
        return path if folder is None else llama.fingerprint(folder)

    def _of_tokenizer(self, path: str) -> str:
        return path if path in OWN_TOKENIZERS else llama.fingerprint(llama.resolve(path))

    def _of_text_encoder(self, name: str) -> str:
        """By its weights and tokenizer, and by how it reads and pools, which is in files and folders of their own."""
        folder = text.locate(name)
        found = {path for pattern in _TEXT_FILES for path in folder.glob(pattern)}
        small = {str(path.relative_to(folder)): storage.fingerprint(str(path)) for path in found}
        return config.key({"": llama.fingerprint(folder), **small})

    def _of_file(self, path: str) -> str:
        return storage.fingerprint(path)

    def _of_cache(self, path: str) -> str:
        return ""  # what is in it is the same in any place


_CONTENT = {
    "data.cache_dir": Keys._of_cache,
    "data.files.interactions": Keys._of_file,
    "data.files.items": Keys._of_file,
    "transfer.files.interactions": Keys._of_file,
    "transfer.files.items": Keys._of_file,
    "llm.path": Keys._of_backbone,
    "llm.tokenizer": Keys._of_tokenizer,
    "alignment.text": Keys._of_text_encoder,
}
