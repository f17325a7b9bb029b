"""What a configuration may be: ranges of numbers, what may be empty, and values that go together. Reads no file."""

import math
import re
from collections.abc import Callable
from typing import Any

from llmsrec_jax.config import (
    Alignment,
    Config,
    Data,
    Lora,
    Transfer,
    closest,
    flatten,
    typed,
    unread,
)

# What a number may be; every number of the tree is in exactly one row (a test checks it).
RANGES: dict[str, tuple[Callable[[float], bool], tuple[str, ...]]] = {
    "at least 0": (
        lambda v: v >= 0,
        (
            *("seed", "data.max_users", "teacher.patience", "distill.weight", "uniformity.weight"),
            *("train.patience", "train.max_users", "train.save_every_s", "evaluate.max_users"),
            *(
                "evaluate.validation_users",
                "evaluate.show_users",
                "order.permutations",
                "mesh.devices",
            ),
            *("train.parts", "mesh.memory_gib", "evaluate.neighbours", "lora.rank"),
            *("alignment.item_weight", "alignment.text_weight"),
        ),
    ),
    "at least 1": (
        lambda v: v >= 1,
        (
            *("data.shop.users", "data.shop.items", "data.min_user", "data.min_item"),
            *("teacher.d", "teacher.max_len", "teacher.blocks", "teacher.heads", "teacher.batch"),
            *("teacher.negatives", "teacher.epochs", "teacher.validate_every"),
            *("teacher.gru4rec.hidden", "teacher.bert4rec.inner", "teacher.nextitnet.kernel"),
            *("prompts.history_len", "prompts.max_tokens", "head.dim", "head.hidden"),
            *("train.batch", "train.epochs", "train.negatives", "train.validations_per_epoch"),
            *("train.length_groups", "train.shapes", "mesh.fsdp", "mesh.tensor"),
            "prompts.title_tokens",
            *("evaluate.negatives", "evaluate.batch", "evaluate.shapes"),
            *("alignment.middle", "alignment.epochs", "alignment.batch"),
        ),
    ),
    "above 0": (
        lambda v: v > 0,
        (
            *("teacher.lr", "distill.temperature", "uniformity.temperature", "train.lr"),
            *("lora.alpha", "alignment.lr"),
        ),
    ),
    "above 0 and at most 1": (
        lambda v: 0 < v <= 1,
        ("data.user_share", "transfer.user_share", "train.lr_decay", "teacher.bert4rec.share"),
    ),
    "from 0 to 1": (
        lambda v: 0 <= v <= 1,
        ("data.shop.late_items", "data.shop.order", "teacher.bert4rec.cut"),
    ),
    "above 0 and below 1": (lambda v: 0 < v < 1, ("slices.transition_share",)),
    # warm and cold items are none twice
    "above 0 and at most 0.5": (lambda v: 0 < v <= 0.5, ("slices.item_share",)),
    "at least 0 and below 1": (
        lambda v: 0 <= v < 1,
        ("teacher.dropout", "teacher.b2", "train.b2", "lora.dropout", "alignment.b2"),
    ),
}

# Texts that may be empty; every other one must say something.
MAY_BE_EMPTY = (
    *("data.name", "data.files.interactions", "data.files.items", "data.category", "llm.revision"),
    *("data.manual_dir", "data.base_url", "data.cache_dir", "llm.tokenizer", "transfer.name"),
    *("transfer.category", "transfer.files.interactions", "transfer.files.items", "alignment.text"),
)

METRIC = re.compile(r"(hr|ndcg|mrr)@([1-9][0-9]*)")


def validate(config: Config) -> None:
    """Checks every value, and the values against each other; reads no file.

    Raises:
      ValueError: names the setting, its value and what is legal.
    """
    values = {name: typed(name, value, declared) for name, value, declared in flatten(config)}
    for rule, (holds, names) in RANGES.items():
        for name in names:
            if not (math.isfinite(values[name]) and holds(values[name])):
                raise ValueError(f"{name}={values[name]}: must be {rule}")
    for name, value in values.items():
        if value == "" and name not in MAY_BE_EMPTY:
            raise ValueError(f"{name} is empty: give it a value")
    _check_source(config.data, config.transfer)
    _check_transfer(config.transfer)
    _check_metrics(config)
    _check_lora(config)
    _check_alignment(config)
    _check_titles(config)
    _check_teacher(config)
    if config.train.curriculum and not config.prompts.item_repr:
        raise ValueError(
            "train.curriculum: prompts.item_repr=False shows no item embeddings at all"
        )
    llm, rounded = config.llm, config.llm.item_store_dtype != "auto"
    if llm.revision and llm.path.startswith("random:"):
        raise ValueError(f"llm.revision={llm.revision!r}: {llm.path} has no revisions")
    if llm.item_store == "recompute" and rounded:
        raise ValueError("llm.item_store_dtype: nothing is stored with llm.item_store=recompute")
    if (rounded or llm.item_store in ("hbm", "host")) and config.mesh.tensor > 1:
        raise ValueError(f"llm.item_store={llm.item_store} needs whole keys: use mesh.tensor=1")
    if config.train.length_groups > config.train.batch:
        raise ValueError(
            f"train.length_groups={config.train.length_groups}: "
            f"must be at most train.batch={config.train.batch}"
        )


def _check_source(data: Data, transfer: Transfer) -> None:
    files = "--config.data.files.interactions=PATH --config.data.files.items=PATH"
    how = f"--config.data.source=files {files}"
    if data.source == "amazon" and not data.category:
        raise ValueError("data.category is empty: name one, as --config.data.category=Electronics")
    fetched = data.source == "amazon" or transfer.category
    if not fetched and (data.manual_dir or data.base_url):
        what = "data.manual_dir or data.base_url"
        raise ValueError(f"{what} is set but data.source={data.source!r} ignores it")
    if data.source == "files" and not data.files.interactions:
        raise ValueError(f"data.files.interactions is empty: name your files with {how}")
    if data.source == "shop" and (data.files.interactions or data.files.items):
        raise ValueError(f"data.files is set but data.source='shop' ignores it: {how}")


def _check_transfer(transfer: Transfer) -> None:
    files = transfer.files
    how = (
        "--config.transfer.category=CDs_and_Vinyl, "
        "or --config.transfer.files.interactions=PATH --config.transfer.files.items=PATH"
    )
    if transfer.category and files.interactions:
        raise ValueError(f"transfer.category and transfer.files.interactions: give one, as {how}")
    if files.interactions and not files.items:
        raise ValueError("transfer.files.items is empty: LLM-SRec reads the titles of its items")
    for name, value in (("name", transfer.name), ("files.items", files.items)):
        if value and not (transfer.category or files.interactions):
            raise ValueError(f"transfer.{name}={value!r} alone names no dataset: {how}")


def _check_teacher(config: Config) -> None:
    values, usual = ({name: value for name, value, _ in flatten(of)} for of in (config, Config()))
    for name, choice in unread(config).items():
        if values[name] != usual[name]:
            raise ValueError(
                f"{name}={values[name]}: {choice}={values[choice]} does not read it: leave it at {usual[name]}"
            )
    teacher = config.teacher
    if teacher.d % teacher.heads:
        raise ValueError(f"teacher.heads={teacher.heads}: must divide teacher.d={teacher.d}")
    if teacher.select != "sampled" and teacher.keep == "last" and not teacher.patience:
        raise ValueError(
            f"teacher.select={teacher.select}: teacher.keep=last without teacher.patience chooses nothing"
        )
    dilations = teacher.nextitnet.dilations
    if not dilations or min(dilations) < 1:
        raise ValueError(f"teacher.nextitnet.dilations={dilations}: must be numbers of at least 1")


def _check_lora(config: Config) -> None:
    lora, store = config.lora, config.llm.item_store
    if not lora.exists:
        _refuse_unread("lora", lora, Lora(), "asks for LoRA, and lora.rank=0 is none: give a rank")
        return
    if lora.first and config.llm.quant != "none":
        raise ValueError(
            f"lora.first: there is no room for it in int8 weights, llm.quant={config.llm.quant}: use none"
        )
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        raise ValueError(f"lora.targets={lora.targets}: must be different products, at least one")
    if store in ("hbm", "host"):  # with lora.first too: its run before is one
        raise ValueError(
            f"llm.item_store={store} keeps what lora.rank={lora.rank} changes with every step: use recompute"
        )
    if config.llm.item_store_dtype != "auto":
        raise ValueError("llm.item_store_dtype: with LoRA nothing is stored")


def _check_alignment(config: Config) -> None:
    alignment = config.alignment
    if not alignment.trains:
        why = "is of A-LLMRec's stage 1, and there is none: name a text encoder (alignment.text)"
        _refuse_unread("alignment", alignment, Alignment(), why)
    elif not config.prompts.item_repr:
        raise ValueError(
            f"alignment.text={alignment.text!r} makes embeddings of items, and prompts.item_repr=False shows none"
        )


def _check_titles(config: Config) -> None:
    prompts, title = config.prompts, "prompts.task=title"
    if prompts.retrieves:
        return
    weights = {"distill": config.distill.weight, "uniformity": config.uniformity.weight}
    for name, weight in weights.items():
        if weight:
            raise ValueError(
                f"{name}.weight={weight}: {title} has no vectors to which that loss applies; use 0, or a system that generates "
                "titles, as tallrec,title"
            )
    if not (prompts.item_repr or prompts.user_repr or config.lora.trains):
        raise ValueError(f"{title} with titles alone trains nothing: give a lora.rank")
    if config.transfer.category or config.transfer.files.interactions:
        raise ValueError(
            f"transfer: {title} reads no other dataset, only prompts.task=retrieval does"
        )
    llm = config.llm
    if llm.item_store in ("hbm", "host") or llm.item_store_dtype != "auto":
        raise ValueError(
            f"llm.item_store={llm.item_store}, llm.item_store_dtype={llm.item_store_dtype}: {title} has no item prompts; "
            "leave them at auto"
        )
    if config.train.exclude == "history":
        raise ValueError(
            f"train.exclude=history draws the target as a negative too, and {title} would list it twice: use train"
        )


def _refuse_unread(section: str, given: Any, default: Any, why: str) -> None:
    """Settings of what is switched off."""
    for (name, value, _), (_, usual, _) in zip(
        flatten(given, f"{section}."), flatten(default), strict=True
    ):
        if value != usual:
            raise ValueError(f"{name}={value} {why}")


def _check_metrics(config: Config) -> None:
    ks, metric = config.evaluate.ks, config.train.metric
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"evaluate.ks={ks}: must be different numbers, each at least 1")
    if max(ks) > config.evaluate.negatives:
        raise ValueError(
            f"evaluate.ks={ks}: all of 1 + evaluate.negatives={config.evaluate.negatives} candidates "
            f"are among the first {max(ks)}; ask for more negatives or smaller numbers"
        )
    match = METRIC.fullmatch(metric)
    if not match:
        hint = closest(metric, [f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in ks])
        raise ValueError(f"train.metric={metric!r}: must be hr@K, ndcg@K or mrr@K{hint}")
    if int(match[2]) not in ks:
        raise ValueError(f"train.metric={metric!r}: {match[2]} is not in evaluate.ks={ks}")
