r"""Amazon Reviews 2023, Industrial and Scientific, with the paper's settings (Table 6, Table 10, App. D; S1, D34).

  python -m llmsrec_jax.main --config=configs/scientific.py

Fetches the published 5-core interactions and item metadata (with resume and checksums), or takes them from a folder:

  python -m llmsrec_jax.main --config=configs/scientific.py --config.data.manual_dir=DIR

Hardware: the paper used one A6000 (48 GB): 186 minutes per epoch, 34 per evaluation (Table 9).
Published (99 sampled negatives): NDCG@10 0.3388, HR@10 0.5532, on 23,627 users, 25,764 items, 266,164
interactions after preprocessing. Not reproduced by this project so far.

The card of the prepared data shows our counts beside Table 10's. :reference draws users and filters as the authors did.

Words after a colon, as in configs/scientific.py:reference,llama-3.1-8b, are the PRESETS of llmsrec_jax/presets.py;
:smoke shrinks everything.
"""

from llmsrec_jax import config


def get_config(arg: str | None = None) -> config.Config:
    scientific = config.apply(
        config.Config(),
        {
            "data.name": "Industrial_and_Scientific",
            "data.source": "amazon",
            "data.category": "Industrial_and_Scientific",
            "data.user_share": 1.0,
            "llm.path": "meta-llama/Llama-3.2-3B-Instruct",
            "llm.item_store": "auto",
            "train.batch": 20,
        },
    )
    return config.preset(scientific, arg or "")
