r"""Your own interactions and titles: CSV, TSV, JSONL (optionally .gz) or Parquet.

  python -m llmsrec_jax.main --config=configs/files.py --workdir=runs/mine \
    --config.data.files.interactions=PATH --config.data.files.items=PATH --config.llm.path=PATH

The interactions have the columns user, item, timestamp (milliseconds); the items have item, title. Other names and
units: --config.data.files.user_column=..., .item_column, .time_column, .title_column, .time_unit=s|ms|us|iso.
Without items only the teacher can be trained: --mode=teacher.

Backbone: a small random LLaMA unless you name another: a folder as saved by Hugging Face, a hub id, or one of the
words llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, as in configs/files.py:llama-3.2-1b.

Hardware: two CPU cores for a backbone of a few million parameters, one accelerator for a billion.
Other words after the colon (smoke, paper, reference, ...): the PRESETS of llmsrec_jax/presets.py.
"""

from llmsrec_jax import config


def get_config(arg: str | None = None) -> config.Config:
    files = config.apply(config.Config(), {"data.source": "files"})
    return config.preset(files, arg or "")
