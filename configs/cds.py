r"""Amazon Reviews 2023, CDs and Vinyl, with the paper's settings (Table 6, Table 10, App. D; S1, D34).

  python -m llmsrec_jax.main --config=configs/cds.py

Fetches the published 5-core interactions and item metadata (with resume and checksums), or takes them from a folder:

  python -m llmsrec_jax.main --config=configs/cds.py --config.data.manual_dir=DIR

Hardware: the paper used one A6000 (48 GB).
Published (99 sampled negatives): NDCG@10 0.3809, HR@10 0.6085, on 18,481 users, 30,951 items, 284,695
interactions after preprocessing. Not reproduced by this project so far.

The card of the prepared data shows our counts beside Table 10's. :reference draws users and filters as the authors did.

Words after a colon, as in configs/cds.py:reference,llama-3.1-8b, are the PRESETS of llmsrec_jax/presets.py;
:smoke shrinks everything.
"""

from llmsrec_jax import config


def get_config(arg: str | None = None) -> config.Config:
    cds = config.apply(
        config.Config(),
        {
            "data.name": "CDs_and_Vinyl",
            "data.source": "amazon",
            "data.category": "CDs_and_Vinyl",
            "data.user_share": 0.33,
            "llm.path": "meta-llama/Llama-3.2-3B-Instruct",
            "llm.item_store": "auto",
            "train.batch": 20,
        },
    )
    return config.preset(cds, arg or "")
