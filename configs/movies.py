r"""Amazon Reviews 2023, Movies and TV, with the paper's settings (Table 6, Table 10, App. D; S1, D34).

  python -m llmsrec_jax.main --config=configs/movies.py

Fetches the published 5-core interactions and item metadata (with resume and checksums), or takes them from a folder:

  python -m llmsrec_jax.main --config=configs/movies.py --config.data.manual_dir=DIR

Hardware: the paper used one A6000 (48 GB).
Published (99 sampled negatives): NDCG@10 0.3560, HR@10 0.5569, on 11,947 users, 17,490 items, 144,071
interactions after preprocessing. Not reproduced by this project so far.

The card of the prepared data shows our counts beside Table 10's. :reference draws users and filters as the authors did.

Words after a colon, as in configs/movies.py:reference,llama-3.1-8b, are the PRESETS of llmsrec_jax/presets.py;
:smoke shrinks everything.
"""

from llmsrec_jax import config


def get_config(arg: str | None = None) -> config.Config:
    movies = config.apply(
        config.Config(),
        {
            "data.name": "Movies_and_TV",
            "data.source": "amazon",
            "data.category": "Movies_and_TV",
            "data.user_share": 0.05,
            "llm.path": "meta-llama/Llama-3.2-3B-Instruct",
            "llm.item_store": "auto",
            "train.batch": 20,
        },
    )
    return config.preset(movies, arg or "")
