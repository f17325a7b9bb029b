"""Where the paper is silent: what is done here, and which settings decide it. Every experiment's file and report repeat it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmsrec_jax import config


@dataclass(frozen=True)
class Choice:
    """Where the paper is silent: a question, what is always done here, and what a setting decides."""

    question: str
    always: str = ""
    # {setting: {word: what it means}}; {} = the value says it all
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def answer(self, cfg: config.Config) -> str:
        """What is done with this configuration."""
        told = []
        for name, meanings in self.settings.items():
            ((_, value),) = config.subset(cfg, [name]).items()
            meaning = f": {meanings[value]}" if meanings else ""
            told.append(f"{name}={value}{meaning}")
        return ". ".join(filter(None, (*told, self.always)))


WAYS: dict[config.Unseen, str] = {  # which table7 compares
    "random": "untrained ones, as SASRec initialises them; the paper's SASRec is at chance, 10 of 100, so its numbers stand there",
    "zero": "all 0",
    "target": "of a SASRec trained on the other dataset",
    "text": "a ridge regression from the mean of the title's token embeddings in the backbone",
}
TIES = {
    "hash": "ties at the line are decided by a hash of the names, the same in every seed and order of the data",
    "row": "of those tied at the line the lower row of the data counts as the higher one",
    "out": "nobody tied at the line belongs to the set, which is then smaller",
}
CHOICES = {
    "vector": Choice(
        "Which vector is compared (Table 5)?",
        "The other one of LLM-SRec stands beside it. Means over permutations first, then over users",
        {
            "order.vector": {
                "ranking": "the one that ranks, O_u for SASRec and f_user(h_U) for LLM-SRec",
                "hidden": "h_U for LLM-SRec; O_u for SASRec, which is both",
            }
        },
    ),
    "shuffled histories": Choice(
        "What is permuted at the test?",
        "Items move with titles and vectors; numbers and dates stay; users with one item keep it. Every model sees the same permutations",
        {
            "order.scope": {
                "history": "the whole history, of which a prompt may then show other items",
                "window": "the items that a prompt shows",
            },
            "order.permutations": {},
        },
    ),
    "shuffled training": Choice(
        "What is permuted in training?",
        "The whole training sequence of every user, target included, once before the teacher is trained; validation and test "
        "keep their order",
    ),
    "transitions": Choice(
        "Which users are in the Transition set?",
        "So large a share of the test users, those with the highest mean training count of their own item-to-item "
        "transitions; users with a single item score 0",
        {"slices.transition_share": {}, "slices.ties": TIES},
    ),
    "warm and cold": Choice(
        "Which items are warm or cold?",
        "So large a share of the catalogue each, with most and with fewest training interactions, items without any included",
        {"slices.item_share": {}, "slices.ties": TIES},
    ),
    "history lengths": Choice(
        "Which histories are short or long?",
        "At most the median number of items of the test users' histories, or more",
    ),
    "made data": Choice(
        "What is timed (Table 9)?",
        "Users, items and titles that are made, as many and as long as those of the dataset; Scientific's where its sizes are not "
        "published; your own files as they are, with made titles",
    ),
    "stages": Choice(
        "Of which trainings is that an epoch (Table 9)?",
        "Of every one after the teacher's, added up: CoLLM's LoRA on titles and then its projectors, A-LLMRec's stages 1 and 2. "
        "The paper counts both of A-LLMRec's and does not say how it counts CoLLM's",
    ),
    "lists": Choice(
        "Which lists are judged beyond accuracy?",
        "The ten best of the whole catalogue for every test user, items of the history left out",
    ),
    "alone": Choice(
        "When is a model right (Fig. 6)?",
        "The target is among its first ten of the sampled candidates, ties counted against it; alone: no other model of the "
        "run is (popularity, SKNN and V-SKNN are none)",
    ),
    "unseen items": Choice(
        "Which items did the teacher never see, and what are their CF embeddings (Table 7)?",
        "The others have: " + "; ".join(f"{way}, {what}" for way, what in WAYS.items()),
        {
            "transfer.known": {
                "trained": "an item that both catalogues have, by key and title, keeps its embedding if it is in the training "
                "sequences at home",
                "catalogue": "an item that both catalogues have, by key and title, keeps its embedding, trained on or not",
                "none": "every item is unseen, even one that both catalogues have",
            }
        },
    ),
    "chosen title": Choice(
        "Which title is chosen (Table 4, Fig. 1 (a))?",
        "The one of the highest log-likelihood, the token that ends it included, among the target and 19 others that the prompt "
        "lists in a random order; equal titles tie. Beside it: what greedy decoding writes, within the candidates' titles and "
        "freely; a free answer is valid if it is, token by token, one of them",
    ),
    "targets": Choice(
        "What does auto-regressive training train on (Fig. 7)?",
        "Every position of a training sequence from the second item on, each with what precedes it (train.targets=all). "
        "Samples of one user whose prompts open alike follow one another, so that they meet in a batch",
    ),
}
