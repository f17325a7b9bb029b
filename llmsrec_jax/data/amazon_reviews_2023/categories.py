"""The categories of Amazon Reviews 2023: names, published sizes, and the paper's counts."""

import difflib
from typing import NamedTuple


class Size(NamedTuple):
    """Thousands of raw items and ratings, as published with the data."""

    items: float
    ratings: float


SIZES: dict[str, Size] = {
    "All_Beauty": Size(112.6, 701.5),
    "Amazon_Fashion": Size(825.9, 2_500),
    "Appliances": Size(94.3, 2_100),
    "Arts_Crafts_and_Sewing": Size(801.3, 9_000),
    "Automotive": Size(2_000, 20_000),
    "Baby_Products": Size(217.7, 6_000),
    "Beauty_and_Personal_Care": Size(1_000, 23_900),
    "Books": Size(4_400, 29_500),
    "CDs_and_Vinyl": Size(701.7, 4_800),
    "Cell_Phones_and_Accessories": Size(1_300, 20_800),
    "Clothing_Shoes_and_Jewelry": Size(7_200, 66_000),
    "Digital_Music": Size(70.5, 130.4),
    "Electronics": Size(1_600, 43_900),
    "Gift_Cards": Size(1.1, 152.4),
    "Grocery_and_Gourmet_Food": Size(603.2, 14_300),
    "Handmade_Products": Size(164.7, 664.2),
    "Health_and_Household": Size(797.4, 25_600),
    "Health_and_Personal_Care": Size(60.3, 494.1),
    "Home_and_Kitchen": Size(3_700, 67_400),
    "Industrial_and_Scientific": Size(427.5, 5_200),
    "Kindle_Store": Size(1_600, 25_600),
    "Magazine_Subscriptions": Size(3.4, 71.5),
    "Movies_and_TV": Size(747.8, 17_300),
    "Musical_Instruments": Size(213.6, 3_000),
    "Office_Products": Size(710.4, 12_800),
    "Patio_Lawn_and_Garden": Size(851.7, 16_500),
    "Pet_Supplies": Size(492.7, 16_800),
    "Software": Size(89.2, 4_900),
    "Sports_and_Outdoors": Size(1_600, 19_600),
    "Subscription_Boxes": Size(0.641, 16.2),
    "Tools_and_Home_Improvement": Size(1_500, 27_000),
    "Toys_and_Games": Size(890.7, 16_300),
    "Unknown": Size(13_200, 63_800),
    "Video_Games": Size(137.2, 4_600),
}
# Nothing of these is left after the publishers' 5-core: only a 0-core file exists, and data.kcore filters it.
WITHOUT_5CORE = (
    *("Amazon_Fashion", "Appliances", "Digital_Music", "Handmade_Products"),
    *("Health_and_Personal_Care", "Subscription_Boxes"),
)
# Table 10: users, items, interactions after the authors' preprocessing (D34).
TABLE_10 = {
    "Movies_and_TV": (11_947, 17_490, 144_071),
    "Industrial_and_Scientific": (23_627, 25_764, 266_164),
    "Electronics": (27_601, 31_533, 292_308),
    "CDs_and_Vinyl": (18_481, 30_951, 284_695),
}
_META_BYTES = 775  # per raw item in the .jsonl.gz: Electronics has 1.24 GB for 1.6 M
_ROW_BYTES = 56  # per interaction in a CSV
_KEPT = 0.35  # of the ratings are in the 5-core of Electronics
_PACKED = 0.5  # gzip of such rows


def resolve(name: str) -> str:
    """The category of that name, in any case and with spaces or underscores.

    Raises:
      ValueError: there is none; says which one is close.
    """
    plain = {category.lower(): category for category in SIZES}
    word = name.strip().lower().replace(" ", "_").replace("-", "_").replace("&", "and")
    if word in plain:
        return plain[word]
    near = difflib.get_close_matches(word, plain, n=1, cutoff=0.5)
    near = near or [known for known in plain if word and word in known][:1]
    hint = f" (did you mean {plain[near[0]]}?)" if near else ""
    raise ValueError(
        f"data.category={name!r} is no category of Amazon Reviews 2023{hint}: "
        f"use one of {', '.join(SIZES)}"
    )


def core(category: str) -> str:
    """The published filtering that exists for a category."""
    return "0core" if category in WITHOUT_5CORE else "5core"


def about_bytes(category: str, metadata: bool, packed: bool) -> int:
    """Rough size of a category's interactions or metadata file, for messages."""
    size = SIZES[category]
    if metadata:
        return int(size.items * 1000 * _META_BYTES * (1 if packed else 4))
    rows = size.ratings * 1000 * (_KEPT if core(category) == "5core" else 1)
    return int(rows * _ROW_BYTES * (_PACKED if packed else 1))
