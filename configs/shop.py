"""The embedded default: a synthetic shop with a known best ranking, and a toy backbone. No network, no weights.

  python -m llmsrec_jax.main --config=configs/shop.py

Hardware: two CPU cores. Time: 151 s of CPU time with nothing compiled before, 40 s with `:smoke`. The backbone is a small random
LLaMA, a toy: the numbers show that the pieces work together and what distillation and uniformity do, not what a language
model adds.

Test set, sampled ranking (1 + 99), 2,000 users, seeds 0, 1, 2; a standard error of one value is at most 0.012.

                    hr@10                  ndcg@10                ndcg@10, cold items
  popularity        0.142  0.132  0.173    0.065  0.061  0.084    0.000  0.000  0.000
  teacher (SASRec)  0.681  0.719  0.706    0.390  0.395  0.400    0.151  0.190  0.175
  LLM-SRec          0.732  0.768  0.750    0.390  0.400  0.398    0.247  0.326  0.265
  its ablation      0.666  0.739  0.708    0.340  0.393  0.377    0.211  0.273  0.216
  Bayes bound       0.919  0.917  0.915    0.675  0.666  0.658    0.742  0.721  0.705

The ablation is `configs/shop.py:retrieval_only`, in the same --workdir to share data and teacher.

Words after a colon, as in configs/shop.py:smoke, are the PRESETS of llmsrec_jax/presets.py.
"""

from llmsrec_jax import config

SETTINGS = {
    "data.source": "shop",
    "data.name": "shop",
    "data.shop.users": 2000,
    "teacher.max_len": 32,  # nobody buys more than 20 times
    "teacher.epochs": 40,
    "prompts.history_len": 6,  # enough to tell tastes, half the work of 10
    "head.hidden": 256,  # 2048 is for a backbone 48 times as wide
    "train.lr": 2e-3,  # 1e-4 is for 3B parameters
    "train.batch": 32,
    "train.epochs": 8,
    "train.negatives": 7,  # titles differ in one word: harder lists teach sooner
    "train.validations_per_epoch": 1,
    "evaluate.validation_users": 300,
    # prompts are about equally long: one program for each kind, instead of minutes of compilation
    "train.length_groups": 1,
    "train.shapes": 1,
    "evaluate.shapes": 1,
}


def get_config(arg: str | None = None) -> config.Config:
    return config.preset(config.apply(config.Config(), SETTINGS), arg or "")
