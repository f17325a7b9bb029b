"""The paper's tables and figures as data: rows are models or settings, columns what is measured; cells share stages and artefacts.

A cell is the configuration of the run with the changes of its experiment, its column and its row. Systems that do not exist here
are rows too, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmsrec_jax import config
from llmsrec_jax.presets import PRESETS
from llmsrec_jax.questions import WAYS
from llmsrec_jax.schema import (
    BEYOND,
    COSINE,
    GREEDY,
    HIT_CONSTRAINED,
    HIT_FREE,
    HIT_VALID,
    VALID,
)

Changes = Mapping[str, Any]  # {dotted setting: value}
RECORDS, TRANSFER, CARD, SPEED = (
    "records",
    "transfer",
    "card",
    "speed",
)  # where values come from: see reproduce.py
OTHER = "cosine of the other vector"  # COSINE is that of the one which order.vector names
ALONE = "alone@10"  # users for whom only this model of a run is right: a number of the run, not of the model


@dataclass(frozen=True)
class Row:
    """A model, or a setting of it."""

    name: str
    model: str = "llm_srec"  # which one of a run
    changes: Changes = field(default_factory=dict)
    missing: str = ""  # why there is none


@dataclass(frozen=True)
class Column:
    """What is measured, and under which settings."""

    name: str
    metric: str = "ndcg@10"
    protocol: str = "sampled"
    slice: str = "all"
    condition: str = "original"  # of the test histories
    changes: Changes = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table or figure."""

    title: str
    source: str  # where the paper has it
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    changes: Changes = field(default_factory=dict)
    compare: tuple[tuple[str, str], ...] = ()  # columns: what the second changes, row by row
    against: str = ""  # the row that every other one is compared with, column by column
    figure: str = ""  # bars | scatter | histogram
    kind: str = RECORDS
    choices: tuple[str, ...] = ()  # names of questions.CHOICES


ABSENT = "this system is not part of this version"
SASREC = Row("SASRec", "teacher", {"teacher.model": "sasrec"})
LLM_SREC = Row("LLM-SRec")
POPULARITY = Row("popularity", "popularity")
NEIGHBOURS = tuple(
    Row(name, name.lower(), {"evaluate.neighbours": 100}) for name in ("SKNN", "V-SKNN")
)
CF_SREC = (
    *(Row(name, "teacher", PRESETS[name.lower()]) for name in ("GRU4Rec", "BERT4Rec", "NextItNet")),
    SASREC,
)


def _absent(*names: str) -> tuple[Row, ...]:
    return tuple(Row(name, missing=ABSENT) for name in names)


_LLM4REC = {"TALLRec": "tallrec", "LLaRA": "llara", "CoLLM": "collm", "A-LLMRec": "a_llmrec"}
LLM4REC = tuple(Row(name, changes=PRESETS[word]) for name, word in _LLM4REC.items())
FIVE = (SASREC, *LLM4REC, LLM_SREC)
WRITERS = tuple(
    Row(name, changes=PRESETS[word] | PRESETS["title"]) for name, word in _LLM4REC.items()
)
WITHOUT_BOTH = Row(
    "w/o distillation and uniformity",
    changes={"distill.weight": 0.0, "uniformity.weight": 0.0},
)
WITHOUT_UNIFORMITY = Row("w/o uniformity", changes={"uniformity.weight": 0.0})

# no cell asks what another order of the test's histories does to such a model
SHUFFLED_TRAINING = {"order.train": "shuffled", "order.permutations": 0}
PERMUTED = {"order.permutations": 5}  # unless the configuration says how many
ORIGINAL = Column("original")
PERMUTED_COLUMN = Column("shuffled histories", condition="shuffled")
TRAINED_SHUFFLED = Column("shuffled training", changes=SHUFFLED_TRAINING)


def _metrics(*names: str, **more: Any) -> tuple[Column, ...]:
    """A column per metric."""
    return tuple(Column(name.upper(), name, **more) for name in names)


def _by_slice(*slices: str) -> tuple[Column, ...]:
    return tuple(Column(name.replace("_", "-"), slice=name) for name in slices)


UNSEEN = tuple(
    Column(f"unseen items {way}", "hr@10", changes={"transfer.unseen": way}) for way in WAYS
)
OWN = {"llm.tokenizer": "", "llm.revision": ""}  # of another backbone
KS = ("ndcg@10", "ndcg@20", "hr@10", "hr@20")
# what those who write titles are judged on, and SASRec beside them
TWENTY = {name: value for name, value in PRESETS["title"].items() if name.startswith("evaluate.")}
WRITING = (
    Column("valid answers", VALID, GREEDY),
    Column("HR@1, free decoding", HIT_FREE, GREEDY),
    Column("HR@1 of valid answers", HIT_VALID, GREEDY),
    Column("HR@1, constrained decoding", HIT_CONSTRAINED, GREEDY),
)
EVERY_K = {"evaluate.ks": (1, 5, 10, 20, 50)}

EXPERIMENTS: dict[str, Experiment] = {
    "table3": Experiment(
        "Trained on original and on shuffled sequences, NDCG@10",
        "Table 3",
        FIVE,
        (ORIGINAL, TRAINED_SHUFFLED),
        compare=(("original", "shuffled training"),),
        figure="bars",
        choices=("shuffled training",),
    ),
    "table4": Experiment(
        "Trained on original and on shuffled sequences, title generation among 20 candidates, HR@1",
        "Table 4",
        (SASREC, *WRITERS),
        (
            Column("original", "hr@1"),
            Column("shuffled training", "hr@1", changes=SHUFFLED_TRAINING),
            *WRITING,
        ),
        TWENTY,
        compare=(("original", "shuffled training"),),
        figure="bars",
        choices=("shuffled training", "chosen title"),
    ),
    "table5": Experiment(
        "How alike user vectors stay when histories are shuffled",
        "Table 5",
        FIVE,
        (
            Column("cosine", COSINE, "user vectors", condition="shuffled"),
            Column("cosine of the other vector", OTHER, "user vectors", condition="shuffled"),
        ),
        PERMUTED,
        figure="histogram",
        choices=("vector", "shuffled histories"),
    ),
    "table6": Experiment(
        "Overall performance",
        "Table 6",
        (
            *CF_SREC,
            *_absent("CTRL", "RECFORMER"),
            *LLM4REC,
            LLM_SREC,
        ),
        _metrics(*KS),
        against="LLM-SRec",
        figure="bars",
    ),
    "table7": Experiment(
        "Trained on one dataset, tested on another without training there, HR@10",
        "Table 7",
        FIVE,
        UNSEEN,
        compare=tuple((UNSEEN[0].name, column.name) for column in UNSEEN[1:]),
        against="LLM-SRec",
        kind=TRANSFER,
        figure="bars",
        choices=("unseen items",),
    ),
    "table8": Experiment(
        "Ablation of the losses, on original and shuffled training sequences",
        "Table 8",
        (WITHOUT_BOTH, WITHOUT_UNIFORMITY, LLM_SREC),
        (
            *_metrics("ndcg@10", "ndcg@20"),
            *(
                Column(f"{name.upper()}, shuffled training", name, changes=SHUFFLED_TRAINING)
                for name in ("ndcg@10", "ndcg@20")
            ),
        ),
        compare=(
            ("NDCG@10", "NDCG@10, shuffled training"),
            ("NDCG@20", "NDCG@20, shuffled training"),
        ),
        against="LLM-SRec",
        figure="bars",
        choices=("shuffled training",),
    ),
    "table9": Experiment(
        "Minutes per training epoch and per inference of all items and test users, on this machine",
        "Table 9",
        (*LLM4REC, LLM_SREC),
        (
            *(Column("train, min/epoch", "train", ""), Column("inference, min", "inference", "")),
            Column("train, the part of earlier stages", "earlier", ""),
        ),
        kind=SPEED,
        choices=("made data", "stages"),
    ),
    "table10": Experiment(
        "The data after preprocessing",
        "Table 10",
        tuple(Row(name, "data") for name in ("users", "items", "interactions")),
        (Column("number", "number", ""),),
        kind=CARD,
    ),
    "table11": Experiment(
        "Prompts with and without the teacher's user representation",
        "Table 11",
        (Row("with user representation", changes={"prompts.user_repr": True}), LLM_SREC),
        _metrics("ndcg@10", "hr@10"),
        against="LLM-SRec",
    ),
    "table12": Experiment(
        "Contrastive distillation and MSE, tested on original and shuffled histories, NDCG@10",
        "Table 12",
        (Row("contrastive", changes={"distill.type": "contrastive"}), LLM_SREC),
        (ORIGINAL, PERMUTED_COLUMN),
        PERMUTED,
        compare=(("original", "shuffled histories"),),
        against="LLM-SRec",
        choices=("shuffled histories",),
    ),
    "fig1": Experiment(
        "Tested on original and on shuffled histories, NDCG@10",
        "Figure 1 (b)",
        FIVE,
        (ORIGINAL, PERMUTED_COLUMN),
        PERMUTED,
        compare=(("original", "shuffled histories"),),
        figure="scatter",
        choices=("shuffled histories",),
    ),
    "fig1a": Experiment(
        "Tested on original and on shuffled histories, title generation among 20 candidates, HR@1",
        "Figure 1 (a)",
        (SASREC, *WRITERS),
        (Column("original", "hr@1"), Column("shuffled histories", "hr@1", condition="shuffled")),
        PERMUTED | TWENTY,
        compare=(("original", "shuffled histories"),),
        figure="scatter",
        choices=("shuffled histories", "chosen title"),
    ),
    "fig3": Experiment(
        "Users whose histories have many and few known transitions, NDCG@10",
        "Figure 3",
        FIVE,
        _by_slice("transition", "non_transition"),
        figure="bars",
        choices=("transitions",),
    ),
    "fig4": Experiment(
        "Targets that are warm and cold items, NDCG@10",
        "Figure 4",
        FIVE,
        _by_slice("warm", "cold"),
        figure="bars",
        choices=("warm and cold",),
    ),
    "fig5": Experiment(
        "Backbones of several sizes, NDCG@10",
        "Figure 5",
        (
            LLM_SREC,
            *(
                Row(f"LLM-SRec, {word}", changes=OWN | PRESETS[word])
                for word in ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")
            ),
        ),
        _metrics("ndcg@10", "hr@10"),
        against="LLM-SRec",
        figure="bars",
    ),
    "fig6": Experiment(
        "Users for whom a model alone is right (the case study in numbers)",
        "Figure 6",
        FIVE,
        (Column("HR@10", "hr@10"), Column("alone right", ALONE)),
        choices=("alone",),
    ),
    "fig7": Experiment(
        "Trained on the last item and auto-regressively, on original and shuffled sequences, NDCG@10",
        "Figure 7",
        (LLM_SREC, Row("LLM-SRec, auto-regressive", changes={"train.targets": "all"})),
        (ORIGINAL, TRAINED_SHUFFLED),
        compare=(("original", "shuffled training"),),
        against="LLM-SRec",
        figure="bars",
        choices=("targets", "shuffled training"),
    ),
    "teachers": Experiment(
        "LLM-SRec with other teachers, and titles alone without any, tested on original and on shuffled histories, NDCG@10",
        "beside the paper",
        (
            Row("LLM-SRec, SASRec", changes={"teacher.model": "sasrec"}),
            *(
                Row(f"LLM-SRec, {name}", changes=PRESETS[name.lower()])
                for name in ("GRU4Rec", "BERT4Rec", "NextItNet")
            ),
            Row(
                "titles only, no teacher and no uniformity",
                changes={**WITHOUT_BOTH.changes, "prompts.item_repr": False},
            ),
        ),
        (ORIGINAL, PERMUTED_COLUMN),
        PERMUTED,
        compare=(("original", "shuffled histories"),),
        against="LLM-SRec, SASRec",
        figure="bars",
        choices=("shuffled histories",),
    ),
    "full_ranking": Experiment(
        "The whole catalogue ranked, beside 1 + 99 candidates",
        "beside the paper",
        (POPULARITY, *NEIGHBOURS, SASREC, LLM_SREC),
        tuple(
            Column(f"{name.upper()}, {protocol}", name, protocol)
            for name in ("ndcg@10", "hr@1", "hr@5", "hr@10", "hr@20", "hr@50", "mrr@10")
            for protocol in ("sampled", "full")
        ),
        EVERY_K,
        against="LLM-SRec",
    ),
    "beyond_accuracy": Experiment(
        "Coverage, novelty, serendipity and popularity of lists of ten",
        "2402.01339",
        (POPULARITY, *NEIGHBOURS, SASREC, LLM_SREC),
        tuple(Column(name.replace("_", " "), f"{name}@10", "full") for name in BEYOND),
        against="LLM-SRec",
        choices=("lists",),
    ),
    "order_suite": Experiment(
        "Does it understand order? One model, one dataset",
        "Tables 3, 5, Figures 1, 3",
        (POPULARITY, SASREC, LLM_SREC),
        (
            ORIGINAL,
            TRAINED_SHUFFLED,
            PERMUTED_COLUMN,
            Column("cosine of user vectors", COSINE, "user vectors", condition="shuffled"),
            *_by_slice("transition", "non_transition", "short_history", "long_history"),
        ),
        PERMUTED,
        compare=(("original", "shuffled training"), ("original", "shuffled histories")),
        figure="bars",
        choices=(
            "shuffled training",
            "shuffled histories",
            "vector",
            "transitions",
            "history lengths",
        ),
    ),
}


def find(name: str) -> Experiment:
    """Raises ValueError naming the closest one: there is no such experiment."""
    if name not in EXPERIMENTS:
        hint = config.closest(name, list(EXPERIMENTS))
        raise ValueError(f"there is no experiment {name!r}{hint}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def rows(experiment: Experiment, text: str) -> set[str]:
    """Names of the rows that `NAME,NAME` names, in any case; '' = all. Some names have a comma in them.

    Raises:
      ValueError: there is no such row; names the closest one.
    """
    plain = lambda words: ",".join(word.strip().lower() for word in words.split(","))
    known = {plain(row.name): row.name for row in experiment.rows}
    left, found = plain(text).split(",") if text else [], set()
    while left:
        ends = (n for n in range(len(left), 0, -1) if ",".join(left[:n]) in known)
        if not (end := next(ends, 0)):
            hint = config.closest(left[0], list(known))
            listed = "; ".join(known.values())
            raise ValueError(f"there is no row {left[0]!r}{hint}; this experiment has: {listed}")
        found.add(known[",".join(left[:end])])
        left = left[end:]
    return found or {*known.values()}


def has(row: Row, column: Column) -> bool:
    """Whether there is such a cell: only those who write titles are asked what they write."""
    return column.protocol != GREEDY or row.model == LLM_SREC.model


def common_changes(cfg: config.Config, experiment: Experiment) -> Changes:
    """What every cell changes, besides its column and row; as many permutations as the configuration asks for stay."""
    asked = cfg.order.permutations
    return {**experiment.changes, **({"order.permutations": asked} if asked else {})}


def cell(cfg: config.Config, experiment: Experiment, row: Row, column: Column) -> config.Config:
    """The configuration of one cell."""
    return config.switch(cfg, {**common_changes(cfg, experiment), **column.changes, **row.changes})
