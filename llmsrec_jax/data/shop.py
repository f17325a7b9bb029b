"""The synthetic shop: a known process makes the data, so the best possible ranking is known too.

Items have a category, a brand and a colour, and say so in short titles. A user loves one brand and one colour for good. The
next purchase is in the category that follows the last one in its chain with probability `order`, else in any category (where
nothing is left that the user has not bought, in the next of the chain); within the category, an item on sale and not yet bought is drawn by its popularity, more often if brand or colour are the loved ones.
Late items go on sale in the last weeks: they are favourites at once, but have little or no training data, so only their text
tells what they are. Times and lengths do not depend on tastes.
"""

from dataclasses import dataclass

import numpy as np

from llmsrec_jax import config
from llmsrec_jax.data.interactions import Catalog, Interactions, UserSequences
from llmsrec_jax.data.splits import Dataset

CHAINS = (
    ("Tent", "Sleeping Bag", "Camp Stove", "Lantern"),
    ("Road Bike", "Helmet", "Bike Lock", "Repair Kit"),
    ("Camera", "Tripod", "Lens", "Photo Printer"),
)
BRANDS = ("Norvik", "Alpina", "Quanta", "Solaris", "Verdo", "Bramble")
COLOURS = ("Red", "Blue", "Green", "Black")
CATEGORIES = tuple(name for chain in CHAINS for name in chain)

LOVED_BRAND, LOVED_COLOUR = 8.0, 4.0  # times more likely than others
NEW = 4.0  # times more likely in the weeks in which an item is new
LENGTHS = (6, 20)  # purchases per user, both included
GAP_DAYS = (4.0, 12.0)  # between purchases, uniform
LAST_DAY_MS = 1_704_067_200_000  # 2024-01-01: purchases end about here
WAVES_DAYS = (14.0, 5.0)  # late items go on sale this many days before
DAY_MS = 86_400_000

_NEXT = np.asarray(
    [
        sum(len(c) for c in CHAINS[:row]) + (place + 1) % len(chain)
        for row, chain in enumerate(CHAINS)
        for place in range(len(chain))
    ]
)
_LAUNCH_MS = np.asarray([LAST_DAY_MS - int(days * DAY_MS) for days in WAVES_DAYS])
_BRAND_OF_TASTE, _COLOUR_OF_TASTE = np.divmod(np.arange(len(BRANDS) * len(COLOURS)), len(COLOURS))


@dataclass(frozen=True, eq=False)
class Shop:
    """What was generated, and the process behind it."""

    catalog: Catalog
    interactions: Interactions
    category: np.ndarray  # int64 [I]; -1 at the pad
    wave: np.ndarray  # int64 [I]; 0 = always on sale, w = from the w-th launch on
    weight: np.ndarray  # float64 [epochs, tastes, I] appeal; 0 where not on sale
    order: float

    def bayes(
        self, dataset: Dataset, users: np.ndarray, split: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """(user_factor float32 [n, Z], item_factor float32 [I, Z]) over the items of `dataset`, made of this shop.

        Their product is P(next item | history, that there is a next one) up to a factor per user, which no model can beat on
        average; items of the history are to be skipped, as the process never repeats one. Z = (epoch, taste, category). The time of
        the next purchase is unknown, so what is on sale then is averaged over the known distribution of gaps.
        """
        rows = self._rows(dataset.catalog)
        histories = dataset.inputs(split, users)
        histories = UserSequences(histories.offsets, rows[histories.items], histories.times)
        posterior, bought = self._posterior(histories)
        ends = histories.offsets[1:] - 1
        epoch = self._next_epoch(histories.times[ends])  # [n, epochs]
        category = self._next_category(self.category[histories.items[ends]])  # [n, C]
        user_factor = np.zeros((len(histories), *self.weight.shape[:2], len(CATEGORIES)))
        for e in range(len(self.weight)):
            mass = self._masses(e, bought)  # [n, tastes, C]
            chance = _moved_on(category, mass[:, 0] > 0)
            share = (epoch[:, e, None] * posterior)[:, :, None] * chance[:, None, :]
            user_factor[:, e] = np.divide(share, mass, out=np.zeros_like(mass), where=mass > 0)
        item_factor = self.weight[..., None] * self._is_category
        item_factor = np.moveaxis(item_factor, 2, 0).reshape(self.catalog.size, -1)[rows]
        item_factor[0] = 0
        user_factor = user_factor.reshape(len(histories), -1)
        return user_factor.astype(np.float32), item_factor.astype(np.float32)

    @property
    def _is_category(self) -> np.ndarray:
        """float64 [I, C]."""
        return (self.category[:, None] == np.arange(len(CATEGORIES))).astype(np.float64)

    def _rows(self, catalog: Catalog) -> np.ndarray:
        row_of = {key: row for row, key in enumerate(self.catalog.keys.tolist())}
        try:
            return np.asarray([row_of[key] for key in catalog.keys.tolist()])
        except KeyError as error:
            raise ValueError(
                f"item {error} is not of this shop: was it made by another seed or size?"
            ) from None

    def _masses(self, epoch: int, bought: np.ndarray) -> np.ndarray:
        """float64 [n, tastes, C]: appeal of all items on sale that the user (bool [n, I]) has not bought."""
        weight = self.weight[epoch]
        total = weight @ self._is_category
        gone = np.einsum("ni,zi,ic->nzc", bought, weight, self._is_category, optimize=True)
        return np.maximum(total - gone, 0) * (total - gone > 1e-9 * total)

    def _posterior(self, histories: UserSequences) -> tuple[np.ndarray, np.ndarray]:
        """P(taste | history) float64 [n, tastes] and what was bought, float64 [n, I]."""
        lengths = histories.lengths
        log_taste = np.zeros((len(histories), self.weight.shape[1]))
        bought = np.zeros((len(histories), self.catalog.size))
        for place in range(int(lengths.max(initial=0))):
            users = np.flatnonzero(lengths > place)
            at = histories.offsets[users] + place
            item, epoch = histories.items[at], epoch_at(histories.times[at])
            mates = (self.category[item][:, None] == self.category) * (1 - bought[users])  # [m, I]
            chance = np.ones((len(users), self.weight.shape[1]))
            for e in range(len(self.weight)):
                now = np.flatnonzero(epoch == e)
                appeal = self.weight[e][:, item[now]].T
                # A step that the process cannot take (of a shuffled history) tells nothing.
                possible = appeal[:, 0] * mates[now, item[now]] > 0
                mass = mates[now][possible] @ self.weight[e].T
                chance[now[possible]] = appeal[possible] / mass
            log_taste[users] += np.log(chance)
            bought[users, item] = 1
        taste = np.exp(log_taste - log_taste.max(axis=1, keepdims=True))
        return taste / taste.sum(axis=1, keepdims=True), bought

    def _next_epoch(self, last_ms: np.ndarray) -> np.ndarray:
        """P(epoch of the next purchase) float64 [n, epochs] after one at last_ms [n]."""
        low, high = (days * DAY_MS for days in GAP_DAYS)
        after = (last_ms[:, None] + high - _LAUNCH_MS) / (high - low)  # P(next time >= launch)
        edges = [np.ones((len(last_ms), 1)), np.clip(after, 0, 1), np.zeros((len(last_ms), 1))]
        return -np.diff(np.concatenate(edges, axis=1), axis=1)

    def _next_category(self, last: np.ndarray) -> np.ndarray:
        """P(category of the next purchase) float64 [n, C]."""
        chance = np.full((len(last), len(CATEGORIES)), (1 - self.order) / len(CATEGORIES))
        chance[np.arange(len(last)), _NEXT[last]] += self.order
        return chance


def _moved_on(chance: np.ndarray, has_items: np.ndarray) -> np.ndarray:
    """Chances [n, C] of the next category, those of a category without items passed on along its chain."""
    for _ in range(max(len(chain) for chain in CHAINS)):
        passed = chance * ~has_items
        chance = chance * has_items
        chance[:, _NEXT] += passed
    return chance


def epoch_at(time_ms: np.ndarray) -> np.ndarray:
    """int64: how many launches are over at that time."""
    return np.searchsorted(_LAUNCH_MS, time_ms, side="right")


def generate(cfg: config.Shop, seed: int) -> Shop:
    """A shop of cfg.users users and cfg.items items; a function of (cfg, seed). Raises ValueError for impossible sizes."""
    fewest = 2 * len(CATEGORIES) * len(BRANDS)  # so that no user can buy a whole chain
    if cfg.items < fewest:
        raise ValueError(
            f"data.shop.items={cfg.items}: at least {fewest}, two per category and brand"
        )
    if cfg.users < 1:
        raise ValueError(f"data.shop.users={cfg.users}: at least 1")
    for name, value, top in (("order", cfg.order, 1.0), ("late_items", cfg.late_items, 0.5)):
        if not 0 <= value <= top:
            raise ValueError(f"data.shop.{name}={value}: from 0 to {top}")
    random = np.random.default_rng(seed)
    catalog, category, brand, colour = _items(cfg, random)
    wave = _waves(cfg, category, random)
    weight = _weights(brand, colour, wave, random)
    interactions = _purchases(category, weight, cfg, random)
    return Shop(catalog, interactions, category, wave, weight, cfg.order)


def _items(
    cfg: config.Shop, random: np.random.Generator
) -> tuple[Catalog, *tuple[np.ndarray, ...]]:
    """The catalogue and each item's category, brand and colour (-1 at the pad), as even as the size allows."""
    place = np.arange(cfg.items)
    category, brand = place % len(CATEGORIES), place // len(CATEGORIES) % len(BRANDS)
    colour = random.permuted(place // (len(CATEGORIES) * len(BRANDS)) + place) % len(COLOURS)
    twins: dict[tuple[int, ...], int] = {}
    titles = [""]
    for cell in zip(brand.tolist(), colour.tolist(), category.tolist(), strict=True):
        twins[cell] = twins.get(cell, 0) + 1
        series = f" {twins[cell]}" if twins[cell] > 1 else ""
        titles.append(f"{BRANDS[cell[0]]} {COLOURS[cell[1]]} {CATEGORIES[cell[2]]}{series}")
    digits = len(str(cfg.items))
    keys = np.asarray(["", *(f"item{number:0{digits}d}" for number in range(1, cfg.items + 1))])
    catalog = Catalog(keys, titles, np.arange(cfg.items + 1) > 0)
    return catalog, *(np.concatenate([[-1], column]) for column in (category, brand, colour))


def _waves(cfg: config.Shop, category: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """int64 [I]: the launch of every item; late ones are spread over categories and launches."""
    late = round(cfg.late_items * cfg.items)
    shuffled = 1 + random.permutation(cfg.items)
    by_category = shuffled[np.argsort(category[shuffled], kind="stable")]
    chosen = (
        by_category[np.linspace(0, cfg.items - 1, late).astype(int)] if late else by_category[:0]
    )
    wave = np.zeros(len(category), dtype=np.int64)
    wave[chosen] = 1 + np.arange(late) % len(WAVES_DAYS)
    return wave


def _weights(
    brand: np.ndarray, colour: np.ndarray, wave: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """float64 [epochs, tastes, I]."""
    appeal = np.exp(random.normal(scale=0.5, size=len(brand)))
    appeal[0] = 0
    loved = np.where(brand == _BRAND_OF_TASTE[:, None], LOVED_BRAND, 1.0)
    loved = loved * np.where(colour == _COLOUR_OF_TASTE[:, None], LOVED_COLOUR, 1.0)
    epochs = np.arange(len(WAVES_DAYS) + 1)[:, None]
    season = np.where((wave == epochs) & (wave > 0), NEW, 1.0) * (wave <= epochs)
    return appeal * season[:, None, :] * loved


def _purchases(
    item_category: np.ndarray, weight: np.ndarray, cfg: config.Shop, random: np.random.Generator
) -> Interactions:
    """All users step by step; one row per purchase, users in order."""
    lengths = random.integers(LENGTHS[0], LENGTHS[1] + 1, size=cfg.users)
    taste = random.integers(len(_BRAND_OF_TASTE), size=cfg.users)
    low, high = (int(days * DAY_MS) for days in GAP_DAYS)
    time = LAST_DAY_MS - (lengths - 1) * (low + high) // 2
    time = time - random.integers(2 * DAY_MS, size=cfg.users)
    category = random.integers(len(CATEGORIES), size=cfg.users)
    bought = np.zeros((cfg.users, len(item_category)))
    steps: list[tuple[np.ndarray, ...]] = []
    for step in range(LENGTHS[1]):
        users = np.flatnonzero(lengths > step)
        if step:
            follow = random.random(len(users)) < cfg.order
            anywhere = random.integers(len(CATEGORIES), size=len(users))
            category[users] = np.where(follow, _NEXT[category[users]], anywhere)
            time[users] += random.integers(low, high, size=len(users))
        appeal = weight[epoch_at(time[users]), taste[users]] * (1 - bought[users])
        empty = np.ones(len(users), dtype=bool)
        while empty.any():
            empty = ~np.any((appeal > 0) & (item_category == category[users][:, None]), axis=1)
            category[users[empty]] = _NEXT[category[users[empty]]]
        total = np.cumsum(appeal * (item_category == category[users][:, None]), axis=1)
        draw = random.random(len(users)) * total[:, -1]
        item = np.argmax(total > draw[:, None], axis=1)
        bought[users, item] = 1
        steps.append((users, item, time[users]))
    user, item, moment = (np.concatenate(column) for column in zip(*steps, strict=True))
    rows = np.argsort(user, kind="stable")
    digits = len(str(cfg.users))
    keys = np.asarray([f"user{number:0{digits}d}" for number in range(1, cfg.users + 1)])
    return Interactions(
        user[rows].astype(np.int32),
        item[rows].astype(np.int32),
        moment[rows].astype(np.int64),
        keys,
    )
