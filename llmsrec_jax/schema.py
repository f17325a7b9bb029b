"""What is fixed in results files, for those who write them and those who read them: the schema's number, and names."""

from collections.abc import Mapping
from typing import Any

SCHEMA = 1  # of results.json, cases.json and experiments/*.json
STUDIES = ("cases.json", "cases_transfer.json")  # of the dataset that is trained on; of another one
ORIGINAL, SHUFFLED = "original", "shuffled"  # conditions: order of the test histories
POPULARITY, SKNN, V_SKNN, TEACHER = "popularity", "sknn", "v-sknn", "teacher"
BOUND = "bayes bound"
# in tables: baselines first, the bound last
PLACE = {POPULARITY: -4, SKNN: -3, V_SKNN: -2, TEACHER: -1, BOUND: 1}
FLOORS_AND_BOUND = (POPULARITY, SKNN, V_SKNN, BOUND)  # nothing in them was trained
VARIANTS = {  # (setting, value) -> words in a model's name (Tables 11, 12, Fig. 7)
    ("prompts.item_repr", False): "titles only",
    ("prompts.user_repr", True): "user representation",
    ("distill.type", "contrastive"): "contrastive",
    ("train.targets", "all"): "auto-regressive",
    ("prompts.task", "title"): "title generation",
    ("train.curriculum", True): "curriculum",
}
TEACHERS = {  # (setting, value) -> words (E23); SASRec with BCE needs none
    ("teacher.model", "gru4rec"): "gru4rec",
    ("teacher.model", "bert4rec"): "bert4rec",
    ("teacher.model", "nextitnet"): "nextitnet",
    ("teacher.loss", "ce"): "ce",
    ("teacher.loss", "sampled_ce"): "sampled_ce",
    ("teacher.windows", "all"): "all windows",
    ("teacher.select", "full"): "best in full ranking",
}
TOLD_BY_NAME: dict[
    str, tuple[Any, ...] | None
] = {  # setting -> values that a model's name tells; None = all
    **{setting: (value,) for setting, value in VARIANTS},
    **dict.fromkeys(("distill.weight", "uniformity.weight"), (0.0,)),
    "order.train": ("shuffled",),
    **dict.fromkeys(("transfer.unseen", *(setting for setting, _ in TEACHERS))),
}
# metrics of title generation (E1): whether greedy decoding over the whole vocabulary writes a candidate's title; HR@1 of what
# it writes, and the same over the users for whom it does; HR@1 of greedy decoding within the candidates' titles
GREEDY = "greedy decoding"  # stands for the protocol where nothing is ranked
WRITTEN = ("valid@1", "hr_free@1", "hr_of_valid@1", "hr_constrained@1")
VALID, HIT_FREE, HIT_VALID, HIT_CONSTRAINED = WRITTEN
BEYOND = ("coverage", "novelty", "serendipity", "popularity_lift")  # metrics beyond accuracy (E24)
# metrics (E9): how alike the vector that ranks stays, and the hidden state that it is made of
COSINE, COSINE_HIDDEN = "cosine", "cosine_hidden"
IDENTITY = ("model", "config_hash", "candidates_hash", "dataset", "split", "seed", "condition")


def identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a record is of: a model, its settings, what it was judged on. Records of one identity take each other's place."""
    # where it was trained, and what was permuted, are told of some records only
    return (*(record[name] for name in IDENTITY), record.get("trained_on"), record.get("scope"))
