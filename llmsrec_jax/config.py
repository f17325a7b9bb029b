"""Every setting of a run: one typed tree, complete in this file, no I/O.

Section names equal the modules (or losses) that read them. A config file is Python: `get_config(arg) -> Config`.
D and E numbers point at the table of differences between paper and released code (BUILD_NOTES.md).
"""

import copy
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from llmsrec_jax.presets import PRESETS, READ_BY, SYSTEM_WORDS, TEACHER_WORDS


@dataclass
class Files:
    """Your own files (`data.source='files'`, `transfer`): CSV, TSV, JSONL (optionally .gz) or Parquet.

    RecBole's .inter and .item and MovieLens' .dat bring their own columns and unit.
    """

    interactions: str = ""  # path; one row per interaction
    items: str = ""  # path; one row per item; '' = catalogue without titles (teacher only)
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "timestamp"
    title_column: str = "title"
    time_unit: Literal["s", "ms", "us", "iso"] = "ms"


@dataclass
class Shop:
    """The synthetic shop (`data.source='shop'`): order matters, late items exist, the best ranking is known."""

    users: int = 1200
    items: int = 400
    # share of the catalogue that appears only near the end of time (cold items)
    late_items: float = 0.15
    # 0 = the next category does not depend on the last one, 1 = it follows the chain
    order: float = 0.9


@dataclass
class Data:
    name: str = ""  # dataset name in reports; '' = the source's own
    source: Literal["shop", "files", "amazon"] = "shop"
    files: Files = field(default_factory=Files)
    shop: Shop = field(default_factory=Shop)
    # source='amazon': Amazon Reviews 2023
    category: str = ""  # any of its categories, as Electronics
    manual_dir: str = ""  # folder with the published files, where there is no network
    base_url: str = ""  # a mirror in the published layout; '' = the two published hosts
    cache_dir: str = ""  # downloads and prepared data; '' = the user's cache folder
    kcore: Literal["iterative", "reference", "none"] = "iterative"  # reference: one pass (D34)
    min_user: int = 5  # interactions per user
    min_item: int = 5  # interactions per item
    user_share: float = 1.0  # seeded sample of users before the k-core, as a share (D34)
    max_users: int = 0  # and at most this many of them; 0 = all
    # who is drawn: by a hash of the names | by the authors' draw over users in file order (D34)
    user_sample: Literal["hash", "reference"] = "hash"
    # order within equal timestamps, seeded (D39)
    ties: Literal["random", "file", "item"] = "random"
    missing_title: str = "Empty title"  # stands for a title that is absent or empty (D16)


@dataclass
class GRU4Rec:
    hidden: int = 128  # width of the state


@dataclass
class BERT4Rec:
    inner: int = 256  # hidden width of the feed-forward layers
    share: float = 0.2  # of the items of a window that are hidden, at least one
    # of the windows, cut behind any item but the first: it alone is hidden, as a user's next
    cut: float = 0.5


@dataclass
class NextItNet:
    kernel: int = 3
    dilations: tuple[int, ...] = (1, 4)  # of the residual blocks, all of them teacher.blocks times


@dataclass
class Teacher:
    """The frozen CF-SRec (S2-S5)."""

    model: Literal["sasrec", "gru4rec", "bert4rec", "nextitnet"] = "sasrec"  # (E23)
    # BCE against sampled negatives | cross-entropy over the catalogue | over the positive and its sampled negatives
    loss: Literal["bce", "ce", "sampled_ce"] = "bce"
    d: int = 64  # CF width E
    max_len: int = 128  # items in the window
    # what of longer histories is to be guessed: their last items | everything, in windows evenly spaced
    windows: Literal["last", "all"] = "last"
    blocks: int = 2  # layers
    heads: int = 1  # of attention
    gru4rec: GRU4Rec = field(default_factory=GRU4Rec)
    bert4rec: BERT4Rec = field(default_factory=BERT4Rec)
    nextitnet: NextItNet = field(default_factory=NextItNet)
    dropout: float = 0.1
    lr: float = 1e-3
    b2: float = 0.98  # Adam beta2
    batch: int = 128  # windows per step
    negatives: int = 1  # per position, for sampled losses; several weigh as much as one in bce
    epochs: int = 200
    validate_every: int = 5  # epochs between validations
    patience: int = 10  # validations without improvement before stopping; 0 = never stop early
    keep: Literal["best", "last"] = "best"  # the authors keep the last epoch (D31)
    # what is best by validation: NDCG@10 among candidates | in the whole catalogue, ranked as at the test
    select: Literal["sampled", "full"] = "sampled"


@dataclass
class LLM:
    """The frozen backbone."""

    path: str = "random:toy"  # HF folder | hub id | random:<size>
    revision: str = ""  # hub revision; '' = main
    tokenizer: str = ""  # folder or hub id; '' = the backbone's own; 'catalogue' = byte-level BPE trained on the titles
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on accelerators, fp32 on CPU (D10)
    # Weights of the layers in int8, which changes the results; w8a8: and what they are multiplied with, per token
    quant: Literal["none", "w8", "w8a8"] = "none"
    # what the backward pass recomputes (D14). names: nothing that needs a GEMM; inputs: whole layers
    remat: Literal["none", "names", "inputs"] = "names"
    # keys and values of item prompts' prefixes: made again and again | kept on the devices | in host memory |
    # the first of hbm, host that fits, where training reads them more often than once
    item_store: Literal["recompute", "hbm", "host", "auto"] = "recompute"
    item_store_dtype: Literal["auto", "bf16", "int8"] = "auto"  # auto: that of the layers, exact


@dataclass
class Lora:
    """Low-rank updates of the backbone's products, W x + alpha / rank * B A x, which train with the heads (TALLRec's, CoLLM's)."""

    rank: int = 0  # of A and B; 0 = none, the backbone stays as it is
    alpha: float = 8.0  # peft's, and no preset's: so that one whose rank is taken away is refused
    dropout: float = 0.05  # of what A reads, in training
    # products that have one, by Hugging Face's names
    targets: tuple[
        Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...
    ] = ("q_proj", "v_proj")
    # whether A and B train in a run of their own before, on prompts of titles alone, and then are part of the frozen
    # backbone (CoLLM's two stages)
    first: bool = False

    @property
    def exists(self) -> bool:
        return self.rank > 0

    @property
    def trains(self) -> bool:
        """With the heads; then nothing that the backbone computes is constant while training."""
        return self.exists and not self.first

    @property
    def drops(self) -> bool:
        return self.trains and self.dropout > 0


@dataclass
class Alignment:
    """A-LLMRec's stage 1 (S11): what it makes of the teacher's item embeddings and the titles stands for items in prompts."""

    # encoder of titles: minilm, of the extra [text] | folder of a Hugging Face one; '' = no such stage, prompts hold the teacher's
    text: str = ""
    middle: int = 128  # width of the space that both autoencoders meet in
    item_weight: float = 0.5  # of the reconstruction of the teacher's item embeddings
    text_weight: float = 0.2  # of the reconstruction of the titles' vectors
    epochs: int = 10  # the last one is kept
    lr: float = 1e-4
    b2: float = 0.98  # Adam beta2
    batch: int = 32  # users per step over all devices; the authors' paper says 64

    @property
    def trains(self) -> bool:
        return self.text != ""


@dataclass
class Prompts:
    # the authors' code | Table 2 (b) as printed (D18)
    wording: Literal["reference", "paper"] = "reference"
    # an item's title is followed by its embedding, a token that f_I, a projector, makes of the teacher's: Table 2 (b), (c);
    # without it prompts are text alone: (a)
    item_repr: bool = True
    # user prompts open with the teacher's user vector, which f_U, one more projector, makes a token of: Table 2 (c), E19
    user_repr: bool = False
    history_len: int = 10  # items in a user prompt (D17)
    # 1..10 | position in the whole history (D17)
    numbering: Literal["window", "absolute"] = "window"
    max_tokens: int = 1024  # per prompt
    # what goes first: oldest items | title ends (D19)
    truncation: Literal["history", "title"] = "history"
    # what prompts ask for: vectors, at Out slots (Table 2) | the title of the next item, one of 1 + train.negatives or
    # evaluate.negatives candidates that they list (Table 1, E1)
    task: Literal["retrieval", "title"] = "retrieval"
    title_tokens: int = 64  # of a candidate and of an answer, at most

    @property
    def retrieves(self) -> bool:
        return self.task == "retrieval"


@dataclass
class Head:
    dim: int = 128  # shared width R (d')
    hidden: int = 2048  # hidden width of the user and item heads (D1)
    norm: bool = True  # LayerNorm after the first linear (D1)
    act: Literal["leaky_relu", "gelu", "relu"] = "leaky_relu"  # (D1)


@dataclass
class Distill:
    """Eq. 2 (D2, D3, D6)."""

    weight: float = 1.0
    type: Literal["mse", "cosine", "contrastive"] = "mse"  # contrastive: Eq. 10
    normalize: bool = True  # unit vectors before the MSE
    # over all | sum over dimensions, mean over users
    reduction: Literal["mean", "sum_dim"] = "mean"
    temperature: float = 0.07  # contrastive only


@dataclass
class Uniformity:
    """Eq. 3 (D4)."""

    weight: float = 1.0
    log: bool = False
    temperature: float = 2.0


@dataclass
class Train:
    """LLM-SRec's optimisation (S1)."""

    batch: int = 20  # samples per step over all devices: users, where each has one
    # what a user is trained to predict: its last training item | every one but the first, a sample each (E21), of which those
    # whose prompts open alike follow one another
    targets: Literal["last", "all"] = "last"
    epochs: int = 10
    lr: float = 1e-4
    b2: float = 0.98  # Adam beta2
    # decay: x lr_decay at every validation (D23)
    lr_schedule: Literal["decay", "constant"] = "decay"
    lr_decay: float = 0.95
    negatives: int = 3  # per sample and step (D26)
    # whether item embeddings come into prompts little by little: all of step t's with probability t / T, else zeros (LLaRA)
    curriculum: bool = False
    # what no negative may be: training items | the inputs only, as the authors (D26)
    exclude: Literal["train", "history"] = "train"
    validations_per_epoch: int = 10
    patience: int = 10  # validations without improvement before stopping (D22); 0 = never
    metric: str = "hr@10"  # selects the checkpoint: hr@k | ndcg@k | mrr@k, sampled ranking (D24)
    max_users: int = 0  # seeded sample of training users; 0 = all
    length_groups: int = 3  # of samples of similar prompt length in a batch; items have one less
    shapes: int = 4  # compiled steps at most; 1 = that of any batch, several times as dear
    # passes through the LLM per step, of equal results; 0 = as few as fit: each needs less memory, and one more forward pass
    parts: int = 0
    save_every_s: float = 120.0  # seconds between checkpoints besides those at validations


@dataclass
class Evaluate:
    negatives: int = 99  # candidates besides the target: unique, no known positive (D40)
    sampling: Literal["uniform", "popularity"] = "uniform"  # how those negatives are drawn (D40)
    max_users: int = 0  # seeded sample of test users; 0 = all (D41)
    validation_users: int = 2000  # fixed sample of validation users; 0 = all (D24)
    ks: tuple[int, ...] = (1, 5, 10, 20)
    ties: Literal["average", "pessimistic", "optimistic"] = "average"  # (D42)
    score: Literal["dot", "cosine"] = "dot"  # (D45)
    mask_seen: bool = True  # full ranking skips the user's history
    # nearest users of SKNN and V-SKNN, two controls that nothing trains (S16); 0 = without them
    neighbours: int = 0
    batch: int = 64  # prompts per encoding step and device; more where prefixes are stored
    shapes: int = 8  # compiled shapes at most (per kind of prompt)
    show_users: int = 3  # users printed with history and top-5 titles


@dataclass
class Order:
    """What is done to the order of histories, to see which model notices (E6, E8). Items move, dates stay (D21)."""

    # of training sequences: as it was | permuted once, before the teacher is trained
    train: Literal["original", "shuffled"] = "original"
    permutations: int = 0  # of every test history, ranked beside the original; 0 = none
    # what is permuted there: whole histories | the last prompts.history_len items, so that prompts hold the same ones
    scope: Literal["history", "window"] = "history"
    # which one the experiments compare before and after (Table 5): the vector that ranks | the LLM's hidden state it is
    # made of; SASRec's vector is both
    vector: Literal["ranking", "hidden"] = "ranking"


@dataclass
class Slices:
    """Groups of test users, from training data only (E11, E12)."""

    # of the test users, those with the highest t-scores: the Transition set
    transition_share: float = 0.5
    item_share: float = 0.35  # of the catalogue: its most popular are warm, as many others cold
    # of equal scores or counts at the line: a hash of the names says which is higher | the lower row is | none belongs to the set
    ties: Literal["hash", "row", "out"] = "hash"


# what CF embeddings those items have that the teacher never saw (E13)
Unseen = Literal["random", "zero", "target", "text"]


@dataclass
class Transfer:
    """Another dataset, to evaluate on it what was trained on `data` (Table 7, E13). What is not said here is as in `data`."""

    category: str = ""  # an Amazon category
    # or your own; without interactions or category there is no transfer
    files: Files = field(default_factory=Files)
    name: str = ""  # dataset name in reports; '' = its own
    user_share: float = 1.0  # of its users, as data.user_share
    # CF embeddings of items that the teacher never saw: untrained ones of SASRec | zeros |
    # those of a SASRec trained there | a ridge regression from their titles, fitted to the items it saw
    unseen: Unseen = "random"
    # which items it knows, of those that both catalogues have by key and title: those that it was trained on | all |
    # none, as if each were another one
    known: Literal["trained", "catalogue", "none"] = "trained"


@dataclass
class Mesh:
    """How the devices share the work; changes no result."""

    devices: int = 0  # how many; 0 = all
    mode: Literal["shard_map", "pmap"] = "shard_map"  # pmap: the older door to the same program
    # A backbone that one device cannot hold: so many devices keep a part of every weight each | so many
    # also compute on the same rows, each with its own heads. Batches are cut into devices / tensor parts
    fsdp: int = 1
    tensor: int = 1
    memory_gib: float = 0.0  # of each device, for training; 0 = what is free when it begins


@dataclass
class Config:
    seed: int = 0  # the only seed
    data: Data = field(default_factory=Data)
    teacher: Teacher = field(default_factory=Teacher)
    llm: LLM = field(default_factory=LLM)
    lora: Lora = field(default_factory=Lora)
    alignment: Alignment = field(default_factory=Alignment)
    prompts: Prompts = field(default_factory=Prompts)
    head: Head = field(default_factory=Head)
    distill: Distill = field(default_factory=Distill)
    uniformity: Uniformity = field(default_factory=Uniformity)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    order: Order = field(default_factory=Order)
    slices: Slices = field(default_factory=Slices)
    transfer: Transfer = field(default_factory=Transfer)
    mesh: Mesh = field(default_factory=Mesh)

    @property
    def item_width(self) -> int:
        """Of the vectors that stand for items in prompts: the teacher's, or A-LLMRec's joint ones."""
        return self.alignment.middle if self.alignment.trains else self.teacher.d


def before(config: Config) -> Config | None:
    """The run that `lora.first` asks for: the same but for prompts of titles alone, with LoRA that trains. None = no such run."""
    if not (config.lora.exists and config.lora.first):
        return None
    titles = {"prompts.item_repr": False, "prompts.user_repr": False}
    first = apply(config, {"lora.first": False, "train.curriculum": False, **titles})
    first.alignment = Alignment()  # of item embeddings, which are not there
    return first


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, declared type) of every setting of a config or section, in order."""
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name, value, one.type


def closest(word: str, known: Sequence[str]) -> str:
    """` (did you mean x?)`, or nothing when nothing is close."""
    same_leaf = [k for k in known if k.rpartition(".")[2] == word.rpartition(".")[2]]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or same_leaf
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def check_name(name: str) -> None:
    """Raises a ValueError unless `name` is the dotted name of one setting."""
    known = [k for k, _, _ in flatten(Config())]
    inside = [k for k in known if k.startswith(name + ".")]
    if inside:
        raise ValueError(f"{name} is a section; set one of {', '.join(inside)}")
    if name not in known:
        raise ValueError(f"there is no setting {name}{closest(name, known)}")


def typed(name: str, value: Any, declared: Any) -> Any:
    """`value` as the declared type: integers become floats, lists become tuples, nothing else changes.

    Raises:
      ValueError: another type, or not one of the legal values.
    """
    if get_origin(declared) is Literal:
        legal = get_args(declared)
        if value not in legal:
            hint = closest(str(value), legal)
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(legal)}{hint}")
        return value
    if get_origin(declared) is tuple:
        kind = get_args(declared)[0]
        if not isinstance(value, list | tuple):
            what = ", ".join(get_args(kind)) or kind.__name__
            raise ValueError(f"{name}={value!r}: must be a list of {what}")
        return tuple(typed(name, v, kind) for v in value)
    if declared is float and type(value) is int:
        return float(value)
    if type(value) is not declared:
        raise ValueError(f"{name}={value!r}: must be of type {declared.__name__}")
    return value


def apply(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of `config` with {dotted name: value} changed.

    Raises:
      ValueError: an unknown name, a wrong type or an illegal word.
    """
    config = copy.deepcopy(config)
    types = {name: declared for name, _, declared in flatten(config)}
    for name, value in changes.items():
        check_name(name)
        *sections, leaf = name.split(".")
        section = config
        for part in sections:
            section = getattr(section, part)
        setattr(section, leaf, typed(name, value, types[name]))
    return config


def unread(config: Config) -> dict[str, str]:
    """{setting: the one whose value does not read it} (READ_BY)."""
    found: dict[str, str] = {}
    for name, (choice, values) in READ_BY.items():
        if subset(config, [choice])[choice] not in values:
            found |= dict.fromkeys(subset(config, [name]), choice)
    return found


def switch(config: Config, changes: Mapping[str, Any]) -> Config:
    """`apply`; what was said for another teacher, and the one that `changes` chooses does not read, is as usual again."""
    changed, usual = apply(config, changes), {name: value for name, value, _ in flatten(Config())}
    left = [name for name, choice in unread(changed).items() if choice in changes]
    return apply(changed, {name: usual[name] for name in left if name not in changes})


def preset(config: Config, words: str) -> Config:
    """A copy of `config` after the comma-separated words of PRESETS, left to right.

    Raises:
      ValueError: an unknown word, or two systems.
    """
    for either in SYSTEM_WORDS, TEACHER_WORDS:
        named = sorted(set(words.split(",")) & set(either))
        if len(named) > 1:
            raise ValueError(
                f"{' and '.join(named)}: a configuration is one of {', '.join(either)}"
            )
    for word in filter(None, words.split(",")):
        if word not in PRESETS:
            hint = closest(word, list(PRESETS))
            raise ValueError(f"unknown argument {word!r}: known are {', '.join(PRESETS)}{hint}")
        config = switch(config, PRESETS[word])
    return config


def subset(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """{dotted name: value} of the settings and whole sections in `names`, sorted.

    Raises:
      ValueError: one of `names` names nothing.
    """
    values = {name: value for name, value, _ in flatten(config)}
    found: dict[str, Any] = {}
    for name in names:
        inside = {k: v for k, v in values.items() if k == name or k.startswith(name + ".")}
        if not inside:
            raise ValueError(f"there is no setting or section {name}{closest(name, list(values))}")
        found |= inside
    return dict(sorted(found.items()))


def key(values: Mapping[str, Any]) -> str:
    """12 hex digits that stand for {dotted name: value}, in any order."""
    text = json.dumps(dict(sorted(values.items())))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values."""
    return dataclasses.asdict(config)
