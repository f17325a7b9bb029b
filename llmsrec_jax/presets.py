"""Settings that go together: which ones another one makes idle, and what the words of `--config=FILE.py:WORD,WORD` mean; the later ones win.

Rows of one engine: the paper's systems, its backbones, other teachers (Tables 1, 2, 6).
"""

from typing import Any

# settings that only some values of another one read -> that one, and which values
READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "teacher.heads": ("teacher.model", ("sasrec", "bert4rec")),
    "teacher.gru4rec": ("teacher.model", ("gru4rec",)),
    "teacher.bert4rec": ("teacher.model", ("bert4rec",)),
    "teacher.nextitnet": ("teacher.model", ("nextitnet",)),
    "teacher.negatives": ("teacher.loss", ("bce", "sampled_ce")),
}

# words of which a configuration has one at most, and whose settings together have a name in tables
SYSTEM_WORDS = ("tallrec", "llara", "collm", "a_llmrec")
TEACHER_WORDS = ("gru4rec", "bert4rec", "nextitnet")

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"prompts.wording": "paper", "train.lr_schedule": "constant"},
    "reference": {
        "data.kcore": "reference",
        "data.user_sample": "reference",
        "data.ties": "file",
        "teacher.keep": "last",
        "teacher.patience": 0,
        "train.patience": 5,
        "train.exclude": "history",
        "evaluate.max_users": 10_000,
        "evaluate.validation_users": 10_000,
    },
    # TALLRec (Bao et al., RecSys 2023) as the paper adapts it (2.1, Table 2 (a)): titles alone, LoRA, and no loss but that of
    # retrieval (S8). Its own is another task: an Alpaca instruction that is answered with Yes or No, judged by AUC; LLaMA-7B in
    # int8, lr 1e-4, batches of 128. LoRA's rank, alpha, dropout and targets are its own; everything else is `train`'s.
    "tallrec": {
        "prompts.item_repr": False,
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.dropout": 0.05,
        "lora.targets": ("q_proj", "v_proj"),
        "distill.weight": 0.0,
        "uniformity.weight": 0.0,
    },
    # LLaRA (Liao et al., SIGIR 2024), likewise: titles and item embeddings, Table 2 (b) (S9). LoRA is its own. Its own writes
    # titles, has a projector of Linear, GELU, Linear without our LayerNorm, warms up and decays as a cosine, and brings item
    # embeddings in step by step: `train.curriculum`, off here as in the paper's adaptation, with zeros for its placeholder token.
    "llara": {
        "lora.rank": 8,
        "lora.alpha": 32.0,
        "lora.dropout": 0.1,
        "lora.targets": (
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ),
        "distill.weight": 0.0,
        "uniformity.weight": 0.0,
    },
    # CoLLM (Zhang et al., TKDE 2025), likewise: the user representation too, Table 2 (c), and LoRA on titles before everything
    # else (S10). LoRA and the two stages are its own. Its own answers Yes or No over Vicuna-7B, maps by Linear(d, 10 d), ReLU,
    # Linear and trains nothing but that in its second stage; here heads and Out tokens train there too, since retrieval
    # reads through them.
    "collm": {
        "prompts.user_repr": True,
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.dropout": 0.05,
        "lora.targets": ("q_proj", "v_proj"),
        "lora.first": True,
        "distill.weight": 0.0,
        "uniformity.weight": 0.0,
    },
    # A-LLMRec (Kim et al., KDD 2024) as the paper adapts it (2.1, Table 2 (c)): joint embeddings of its stage 1, no LoRA, only the retrieval loss (S11)
    "a_llmrec": {
        "alignment.text": "minilm",
        "prompts.user_repr": True,
        "distill.weight": 0.0,
        "uniformity.weight": 0.0,
    },
    # what TALLRec, LLaRA, CoLLM and A-LLMRec become with it: they write the title of one of 20 candidates (Table 1, E1)
    "title": {
        "prompts.task": "title",
        "prompts.max_tokens": 2048,
        "distill.weight": 0.0,
        "uniformity.weight": 0.0,
        "train.negatives": 19,
        "train.exclude": "train",
        "train.metric": "hr@1",
        "evaluate.negatives": 19,
        "evaluate.ks": (1, 5, 10),
    },
    "retrieval_only": {"distill.weight": 0.0, "uniformity.weight": 0.0},  # Table 8, row (a)
    # other teachers, with RecBole's settings (S3-S5) but for `cut`, which is ours; each is also a system of its own (--mode=teacher)
    "gru4rec": {
        "teacher.model": "gru4rec",
        "teacher.loss": "ce",
        "teacher.b2": 0.999,
        "teacher.blocks": 1,
        "teacher.gru4rec.hidden": 128,
        "teacher.dropout": 0.3,
    },
    "bert4rec": {
        "teacher.model": "bert4rec",
        "teacher.loss": "ce",
        "teacher.b2": 0.999,
        "teacher.blocks": 2,
        "teacher.heads": 2,
        "teacher.bert4rec.inner": 256,
        "teacher.bert4rec.share": 0.2,
        "teacher.bert4rec.cut": 0.5,
        "teacher.dropout": 0.2,
    },
    "nextitnet": {
        "teacher.model": "nextitnet",
        "teacher.loss": "ce",
        "teacher.b2": 0.999,
        "teacher.blocks": 5,
        "teacher.nextitnet.kernel": 3,
        "teacher.nextitnet.dilations": (1, 4),
        "teacher.dropout": 0.0,
    },
    # the authors' 0.98 learns more slowly over a whole catalogue
    "sasrec_ce": {"teacher.loss": "ce", "teacher.b2": 0.999},
    "llama-3.2-1b": {"llm.path": "meta-llama/Llama-3.2-1B-Instruct"},
    "llama-3.2-3b": {"llm.path": "meta-llama/Llama-3.2-3B-Instruct"},
    "llama-3.1-8b": {"llm.path": "meta-llama/Llama-3.1-8B-Instruct"},  # Fig. 5, D11
    "smoke": {  # every stage in about a minute on two CPU cores; its numbers mean nothing
        "data.shop.users": 300,
        "data.shop.items": 150,
        "data.max_users": 300,
        "data.min_item": 1,
        "teacher.d": 16,
        "teacher.max_len": 32,
        "teacher.epochs": 4,
        "teacher.validate_every": 2,
        "llm.path": "random:toy",
        "head.hidden": 64,
        "head.dim": 16,
        "train.epochs": 1,
        "train.max_users": 100,
        "train.validations_per_epoch": 2,
        "train.length_groups": 1,
        "train.shapes": 1,
        "evaluate.max_users": 100,
        "evaluate.validation_users": 50,
        "evaluate.shapes": 1,
    },
}
