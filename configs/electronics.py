r"""Amazon Reviews 2023, Electronics, with the paper's settings (Table 6, Table 10, App. D; S1, D34).

  python -m llmsrec_jax.main --config=configs/electronics.py

Fetches the published 5-core interactions and item metadata (with resume and checksums), or takes them from a folder:

  python -m llmsrec_jax.main --config=configs/electronics.py --config.data.manual_dir=DIR

Hardware: the paper used one A6000 (48 GB): 218 minutes per epoch, 28 per evaluation (Table 9).
Published (99 sampled negatives): NDCG@10 0.3044, HR@10 0.4885, on 27,601 users, 31,533 items, 292,308
interactions after preprocessing. Not reproduced by this project so far.

Evaluated on another dataset without training there (Table 7), its users sampled as in configs/cds.py:

  python -m llmsrec_jax.main --config=configs/electronics.py --mode=reproduce --experiment=table7 \
    --config.transfer.category=CDs_and_Vinyl --config.transfer.user_share=0.33

The card of the prepared data shows our counts beside Table 10's. :reference draws users and filters as the authors did.

Words after a colon, as in configs/electronics.py:reference,llama-3.1-8b, are the PRESETS of llmsrec_jax/presets.py;
:smoke shrinks everything.
"""

from llmsrec_jax import config


def get_config(arg: str | None = None) -> config.Config:
    electronics = config.apply(
        config.Config(),
        {
            "data.name": "Electronics",
            "data.source": "amazon",
            "data.category": "Electronics",
            "data.user_share": 0.05,
            "llm.path": "meta-llama/Llama-3.2-3B-Instruct",
            "llm.item_store": "auto",
            "train.batch": 16,
        },
    )
    return config.preset(electronics, arg or "")
