"""What came out for every test user: ranks, lists, similarities. Kept, so that any two models can be compared user by user."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmsrec_jax import beyond, config, evaluate, statistics
from llmsrec_jax.data import storage
from llmsrec_jax.data.splits import Dataset
from llmsrec_jax.evaluate import Counts
from llmsrec_jax.results import SHOWN, Record
from llmsrec_jax.schema import FLOORS_AND_BOUND, GREEDY, ORIGINAL, SHUFFLED

LISTED = 10  # items of a list of recommendations, in metrics beyond accuracy and in cases
VECTORS = "user vectors"  # stands for the protocol where no ranking is looked at
Values = dict[str, np.ndarray]  # metric -> float64 [U]


@dataclass(frozen=True)
class Outcome:
    """Of one model."""

    ranks: dict[str, Counts]  # protocol -> above, tied, int [U] each
    # int32 [U, LISTED]: best items of the whole catalogue, seen ones left out; of title generation, of the candidates
    top: np.ndarray
    lists: Values  # what is said of `top` beyond accuracy
    coverage: float  # share of the catalogue that anyone is shown; NaN where `top` are candidates
    # the same ranks for histories in other orders, int [orders, U]; and how alike what is made of them stays
    permuted: dict[str, Counts] = field(default_factory=dict)
    alike: Values = field(default_factory=dict)
    # of what is written (title generation); NaN = says nothing
    answers: Values = field(default_factory=dict)

    def values(self, protocol: str, condition: str, cfg: config.Evaluate) -> Values:
        """Every metric per user, float64 [U]; {} where nothing was measured."""
        if protocol == VECTORS:
            return self.alike
        if protocol == GREEDY:
            return self.answers if condition == ORIGINAL else {}
        ranks = self.ranks if condition == ORIGINAL else self.permuted
        if protocol not in ranks:
            return {}
        found = evaluate.values(ranks[protocol], cfg)
        return found | self.lists if (protocol, condition) == ("full", ORIGINAL) else found


@dataclass(frozen=True)
class Outcomes:
    """Of all models of one run, for the same users and candidates."""

    users: np.ndarray  # int32 [U], rows of the dataset
    people: np.ndarray  # str [U], who they are, whichever seed drew them
    candidates: str  # their hash
    slices: dict[str, np.ndarray]  # bool [U] each
    models: dict[str, Outcome]

    def right(self, model: str) -> np.ndarray:
        """bool [U]: the target is among the first LISTED of the candidates, however ties fall."""
        above, tied = self.models[model].ranks["sampled"]
        return above + tied < LISTED

    def alone(self, model: str) -> np.ndarray:
        """float64 [U]: 1 where only this model is right (Fig. 6)."""
        others = [m for m in self.models if m not in (model, *FLOORS_AND_BOUND)]
        wrong = [~self.right(other) for other in others]
        return np.all([self.right(model), *wrong], axis=0).astype(np.float64)

    def records(self, model: str, cfg: config.Config, common: Record) -> list[Record]:
        """Of one model in every condition; what another order changes is told for all users together."""
        rows, one = [], self.models[model]
        original = {p: one.values(p, ORIGINAL, cfg.evaluate) for p in (*one.ranks, GREEDY)}
        for protocol, found in original.items():
            where = common | {"condition": ORIGINAL, "protocol": protocol}
            rows += evaluate.records(found, self.slices, where)
        # a property of all lists together: no mean over users, so no standard error
        if not np.isnan(one.coverage):
            shown = {"metric": f"coverage@{LISTED}", "value": one.coverage, "se": None}
            where = common | {"condition": ORIGINAL, "protocol": "full"}
            rows.append(where | {"slice": "all", "users": len(self.users)} | shown)
        settings = {"permutations": cfg.order.permutations, "scope": cfg.order.scope}
        where = common | {"condition": SHUFFLED, **settings}
        for protocol in [*one.permuted, VECTORS]:
            found = one.values(protocol, SHUFFLED, cfg.evaluate)
            made = evaluate.records(found, self.slices, where | {"protocol": protocol})
            for row in made:
                name = row["metric"]
                if row["slice"] == "all" and name in SHOWN:
                    told = statistics.paired(original[protocol][name], found[name], cfg.seed)
                    row["change"] = told._asdict()
            rows += made
        return rows

    def save(self, path: Path) -> None:
        """One .npz."""
        arrays = {"users": self.users, "people": self.people}
        arrays["candidates"] = np.array(self.candidates)
        arrays |= {f"slices/{name}": mask for name, mask in self.slices.items()}
        for name, one in self.models.items():
            arrays |= {f"ranks/{name}/{p}": np.stack(c) for p, c in one.ranks.items()}
            arrays |= {f"permuted/{name}/{p}": np.stack(c) for p, c in one.permuted.items()}
            arrays |= {f"lists/{name}/{metric}": x for metric, x in one.lists.items()}
            arrays |= {f"top/{name}": one.top, f"coverage/{name}": np.array(one.coverage)}
            arrays |= {f"alike/{name}/{metric}": x for metric, x in one.alike.items()}
            arrays |= {f"answers/{name}/{metric}": x for metric, x in one.answers.items()}
        storage.write_arrays(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Outcomes":
        """Raises ValueError naming a missing or damaged file."""
        arrays = storage.read_arrays(path)
        under = lambda head: {
            name.removeprefix(head): x for name, x in arrays.items() if name.startswith(head)
        }
        counts = lambda head: {p: (x[0], x[1]) for p, x in under(head).items()}
        models = {
            name: Outcome(
                ranks=counts(f"ranks/{name}/"),
                top=top,
                lists=under(f"lists/{name}/"),
                coverage=float(arrays[f"coverage/{name}"]),
                permuted=counts(f"permuted/{name}/"),
                alike=under(f"alike/{name}/"),
                answers=under(f"answers/{name}/"),
            )
            for name, top in under("top/").items()
        }
        who = arrays["users"], arrays["people"]
        return cls(*who, str(arrays["candidates"]), under("slices/"), models)


def lists(dataset: Dataset, users: np.ndarray, top: np.ndarray) -> tuple[Values, float]:
    """What is said of the lists top int [U, LISTED] beyond accuracy (E24), and the coverage of the catalogue."""
    histories, counts = dataset.inputs("test", users), dataset.counts
    total = np.bincount(histories.rows, weights=counts[histories.items], minlength=len(users))
    profile = np.maximum(total / np.maximum(histories.lengths, 1), 1)
    values = {
        "novelty": beyond.novelty(top, counts),
        "serendipity": beyond.serendipity(top, dataset.targets("test", users), counts),
        "popularity_lift": beyond.popularity_lift(top, counts, profile),
    }
    named = {f"{name}@{LISTED}": x for name, x in values.items()}
    return named, beyond.coverage(top, dataset.catalog.size - 1)


def require_comparable(outcomes: Iterable[Outcomes]) -> None:
    """Raises ValueError unless all judge the same users by the same candidates: other numbers cannot be compared."""
    first, *others = outcomes
    for other in others:
        same = np.array_equal(first.users, other.users)
        if not same or first.candidates != other.candidates:
            what = "candidates" if same else "test users"
            raise ValueError(
                f"two runs with different {what} cannot be compared ({first.candidates} and "
                f"{other.candidates}): give them the same data, seed and evaluate settings"
            )
