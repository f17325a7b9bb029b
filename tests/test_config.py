"""The config tree: names, types, legal values, keys, and the files under configs/."""

import dataclasses
import hashlib
import runpy
from pathlib import Path
from typing import get_args

import pytest

from llmsrec_jax import config, rules
from llmsrec_jax.keys import TRAIN, Keys
from llmsrec_jax.presets import PRESETS, READ_BY

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
AMAZON = {"electronics", "scientific", "movies", "cds"}


def leaves(cfg):
    return {name: value for name, value, _ in config.flatten(cfg)}


def test_every_number_has_one_range_and_every_range_names_a_number():
    numbers = sorted(
        name for name, _, declared in config.flatten(config.Config()) if declared in (int, float)
    )
    ranged = sorted(name for _, names in rules.RANGES.values() for name in names)
    assert ranged == numbers


def test_defaults_are_legal_and_complete():
    rules.validate(config.Config())
    values = leaves(config.Config())
    assert {name for name, value in values.items() if value == ""} == set(rules.MAY_BE_EMPTY)


def test_apply_changes_a_copy_and_converts_only_what_is_exact():
    base = config.Config()
    changed = config.apply(
        base, {"train.lr": 1, "evaluate.ks": [1, 10], "data.files.user_column": "who", "seed": 3}
    )
    assert (changed.train.lr, type(changed.train.lr)) == (1.0, float)
    assert changed.evaluate.ks == (1, 10)
    assert (changed.data.files.user_column, changed.seed) == ("who", 3)
    assert base == config.Config()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.lrr", 1.0, "no setting train.lrr .did you mean train.lr."),
        ("tran.lr", 1.0, "did you mean train.lr"),
        ("lr", 1.0, "did you mean teacher.lr or alignment.lr or train.lr"),
        ("train", 1.0, "train is a section; set one of train.batch"),
        ("data.files", "x", "data.files is a section; set one of data.files.interactions"),
        ("zzzzz", 1.0, "no setting zzzzz$"),
        ("train.batch", 2.5, "train.batch=2.5: must be of type int"),
        ("train.batch", "2", "train.batch='2': must be of type int"),
        ("seed", True, "must be of type int"),
        ("head.norm", 1, "must be of type bool"),
        (
            "data.ties",
            "fil",
            "data.ties='fil': must be one of random, file, item .did you mean file",
        ),
        ("evaluate.ks", 10, "must be a list of int"),
        ("evaluate.ks", (1, 2.5), "evaluate.ks=2.5: must be of type int"),
        ("lora.targets", ("q_proj", "vproj"), "lora.targets='vproj': must be one of .*mean v_proj"),
        ("lora.targets", "q_proj", "must be a list of q_proj, k_proj"),
    ],
)
def test_apply_refuses(name, value, message):
    with pytest.raises(ValueError, match=message):
        config.apply(config.Config(), {name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch": 0}, "train.batch=0: must be at least 1"),
        ({"teacher.d": -64}, "teacher.d=-64: must be at least 1"),
        ({"data.max_users": -1}, "data.max_users=-1: must be at least 0"),
        ({"train.lr": 0.0}, "train.lr=0.0: must be above 0"),
        ({"train.lr": float("nan")}, "train.lr=nan"),
        ({"distill.weight": float("inf")}, "distill.weight=inf"),
        ({"teacher.dropout": 1.0}, "teacher.dropout=1.0: must be at least 0 and below 1"),
        ({"data.user_share": 0.0}, "data.user_share=0.0: must be above 0 and at most 1"),
        ({"data.shop.order": 1.5}, "data.shop.order=1.5: must be from 0 to 1"),
        ({"evaluate.ks": ()}, r"evaluate.ks=\(\): must be different numbers"),
        ({"evaluate.ks": (10, 10)}, "must be different numbers"),
        ({"evaluate.ks": (0, 10)}, "each at least 1"),
        ({"evaluate.negatives": 19}, "evaluate.negatives=19 candidates are among the first 20"),
        ({"train.metric": "hr10"}, "train.metric='hr10': must be hr@K.*did you mean hr@10"),
        ({"train.metric": "recall@10"}, "must be hr@K, ndcg@K or mrr@K"),
        ({"train.metric": "hr@7"}, r"7 is not in evaluate.ks=\(1, 5, 10, 20\)"),
        ({"teacher.heads": 3}, "teacher.heads=3: must divide teacher.d=64"),
        (
            {"teacher.model": "gru4rec", "teacher.heads": 3},
            "teacher.heads=3: teacher.model=gru4rec does not read it: leave it at 1",
        ),
        (
            {"teacher.select": "full", "teacher.keep": "last", "teacher.patience": 0},
            "teacher.select=full: teacher.keep=last without teacher.patience chooses nothing",
        ),
        ({"teacher.gru4rec.hidden": 64}, "hidden=64: teacher.model=sasrec does not read it"),
        (
            {"teacher.model": "bert4rec", "teacher.nextitnet.dilations": (1, 2)},
            r"dilations=\(1, 2\): teacher.model=bert4rec does not read it: leave it at \(1, 4\)",
        ),
        (
            {"teacher.loss": "ce", "teacher.negatives": 2},
            "teacher.negatives=2: teacher.loss=ce does not read it: leave it at 1",
        ),
        ({"llm.path": ""}, "llm.path is empty"),
        ({"llm.revision": "main"}, "llm.revision='main': random:toy has no revisions"),
        ({"train.length_groups": 21}, "must be at most train.batch=20"),
        ({"llm.item_store_dtype": "int8"}, "nothing is stored with llm.item_store=recompute"),
        ({"llm.item_store": "hbm", "mesh.tensor": 2}, "hbm needs whole keys: use mesh.tensor=1"),
        (
            {"llm.item_store": "auto", "llm.item_store_dtype": "int8", "mesh.tensor": 2},
            "auto needs whole keys",
        ),
        ({"lora.rank": -1}, "lora.rank=-1: must be at least 0"),
        ({"lora.rank": 2, "lora.alpha": 0.0}, "lora.alpha=0.0: must be above 0"),
        ({"lora.rank": 2, "lora.dropout": 1.0}, "lora.dropout=1.0: must be at least 0 and below 1"),
        ({"lora.rank": 2, "lora.dropout": -0.1}, "lora.dropout=-0.1: must be at least 0 and below"),
        ({"lora.rank": 2, "lora.targets": ()}, r"lora.targets=\(\): must be different products"),
        ({"lora.rank": 2, "lora.targets": ("q_proj",) * 2}, "must be different products"),
        (
            {"lora.rank": 2, "lora.first": True, "llm.quant": "w8"},
            "lora.first: there is no room for it in int8 weights, llm.quant=w8",
        ),
        ({"lora.alpha": 32.0}, "lora.alpha=32.0 asks for LoRA, and lora.rank=0 is none"),
        (
            {"lora.targets": ("o_proj",)},
            r"lora.targets=\('o_proj',\) asks for LoRA, and lora.rank=0",
        ),
        (
            {"lora.rank": 2, "llm.item_store": "hbm"},
            "item_store=hbm keeps what lora.rank=2 changes with every step: use recompute",
        ),
        (
            {"lora.rank": 2, "llm.item_store": "auto", "llm.item_store_dtype": "int8"},
            "with LoRA nothing is stored",
        ),
        ({"alignment.lr": 1e-3}, "alignment.lr=0.001 is of A-LLMRec's stage 1, and there is none"),
        ({"alignment.text": "x", "alignment.middle": 0}, "alignment.middle=0: must be at least 1"),
        ({"alignment.text": "x", "alignment.lr": 0.0}, "alignment.lr=0.0: must be above 0"),
        ({"alignment.text": "x", "alignment.b2": 1.0}, "must be at least 0 and below 1"),
        (
            {"alignment.text": "x", "alignment.text_weight": -0.2},
            "alignment.text_weight=-0.2: must be at least 0",
        ),
        (
            {"alignment.text": "x", "prompts.item_repr": False},
            "alignment.text='x' makes embeddings of items, and prompts.item_repr=False shows none",
        ),
        ({"mesh.memory_gib": -1.0}, "mesh.memory_gib=-1.0: must be at least 0"),
        ({"data.source": "files"}, "data.files.interactions is empty: name your files with"),
        ({"data.files.items": "items.csv"}, "data.source='shop' ignores it"),
        (
            {"data.source": "amazon"},
            "data.category is empty: name one, as --config.data.category=E",
        ),
        ({"data.base_url": "http://x"}, "base_url is set but data.source='shop' ignores it"),
        ({"transfer.name": "x"}, "transfer.name='x' alone names no dataset: --config.transfer.cat"),
        ({"transfer.files.items": "x"}, "transfer.files.items='x' alone names no dataset"),
        ({"transfer.files.interactions": "x"}, "transfer.files.items is empty: LLM-SRec reads"),
        (
            {"transfer.files.interactions": "x", "transfer.category": "CDs_and_Vinyl"},
            "transfer.category and transfer.files.interactions: give one",
        ),
        ({"transfer.user_share": 0.0}, "transfer.user_share=0.0: must be above 0 and at most 1"),
        ({"data.manual_dir": "x"}, "manual_dir or data.base_url is set but data.source='shop' ig"),
    ],
)
def test_validate_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        rules.validate(config.apply(config.Config(), changes))


def test_a_folder_of_amazon_s_files_may_be_for_the_other_dataset():
    there = {"transfer.category": "CDs_and_Vinyl", "data.manual_dir": "x"}
    rules.validate(config.apply(config.Config(), there))


def test_validate_sees_what_was_assigned_past_apply():
    cfg = config.Config()
    cfg.train.batch = "20"
    with pytest.raises(ValueError, match="train.batch='20': must be of type int"):
        rules.validate(cfg)


@pytest.mark.parametrize("word", PRESETS)
def test_every_preset_is_legal(word):
    cfg = config.preset(config.Config(), word)
    rules.validate(cfg)
    assert all(leaves(cfg)[name] == value for name, value in PRESETS[word].items())


def test_later_words_win():
    first = config.preset(config.Config(), "smoke,llama-3.2-1b")
    last = config.preset(config.Config(), "llama-3.2-1b,smoke")
    assert first.llm.path == "meta-llama/Llama-3.2-1B-Instruct"
    assert last.llm.path == "random:toy"
    assert first.train.epochs == last.train.epochs == 1


def test_another_teacher_forgets_what_it_does_not_read():
    """What was said for the one before; what is said together with the choice stays, and is refused."""
    base = {"teacher.heads": 4, "teacher.negatives": 2, "teacher.lr": 0.1}
    given = config.apply(config.Config(), base)
    gru4rec = config.switch(given, {"teacher.model": "gru4rec"}).teacher
    assert (gru4rec.heads, gru4rec.negatives, gru4rec.lr) == (1, 2, 0.1)
    assert config.switch(given, {"teacher.loss": "ce"}).teacher.negatives == 1
    assert config.switch(given, {"teacher.d": 8}).teacher.heads == 4
    both = {"teacher.model": "nextitnet", "teacher.heads": 4}
    assert config.switch(given, both).teacher.heads == 4
    for word in ("bert4rec", "gru4rec", "nextitnet"):
        given = config.preset(given, word)
    rules.validate(given)


def test_what_is_read_by_a_choice():
    """Words that the choice has, but not all of them."""
    declared = {name: get_args(kind) for name, _, kind in config.flatten(config.Config())}
    for name, (choice, values) in READ_BY.items():
        assert {*values} < {*declared[choice]} and config.subset(config.Config(), [name])


def test_an_unknown_word_is_refused():
    with pytest.raises(
        ValueError, match="unknown argument 'papr': known are default, .*mean paper"
    ):
        config.preset(config.Config(), "default,papr")


@pytest.mark.parametrize("words", ["tallrec,llara", "collm,title,a_llmrec", "gru4rec,bert4rec"])
def test_two_systems_are_refused(words):
    """A mixture of their settings would have the name of one of them."""
    with pytest.raises(ValueError, match="and .*: a configuration is one of (tallrec|gru4rec), "):
        config.preset(config.Config(), words)


def key(cfg: config.Config, *names: str) -> str:
    return config.key(config.subset(cfg, names))


def test_key_depends_on_the_named_settings_alone():
    cfg = config.Config()
    other = config.apply(cfg, {"train.lr": 1.0})
    assert key(cfg, "data", "seed") == key(other, "seed", "data")
    assert key(cfg, "data", "train.lr") != key(other, "data", "train.lr")
    assert key(cfg, "train") != key(other, "train")
    assert key(cfg, "train.batch") == key(other, "train.batch")
    text = '{"uniformity.log": false, "uniformity.temperature": 2.0, "uniformity.weight": 1.0}'
    assert key(cfg, "uniformity") == hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@pytest.mark.parametrize("name", [name for name, of in PRESETS.items() if "lora.rank" in of])
@pytest.mark.parametrize("words", ["", ",title"])
def test_a_system_with_lora_is_none_without_a_rank(name, words):
    cfg = config.preset(config.Config(), name + words)
    rules.validate(cfg)
    with pytest.raises(ValueError, match="asks for LoRA, and lora.rank=0 is none: give a rank"):
        rules.validate(config.apply(cfg, {"lora.rank": 0}))


def test_keys_know_of_lora_only_where_it_trains():
    """So that what was made before it existed is still known by its key."""
    of = lambda changes: Keys(config.apply(config.Config(), changes))(TRAIN)
    assert not [name for name in of({}) if name.startswith("lora.")]
    first, other = of({"lora.rank": 8}), of({"lora.rank": 8, "lora.dropout": 0.0})
    assert first["lora.rank"] == 8 and first != other


def test_keys_know_of_a_text_encoder_only_where_there_is_one(tmp_path):
    of = lambda changes: Keys(config.apply(config.Config(), changes))(TRAIN)
    assert not [name for name in of({}) if name.startswith("alignment.")]
    there = {"alignment.text": str(tmp_path)}
    assert of(there)["alignment.middle"] == 128 and of(there)["alignment.text"] != str(tmp_path)
    assert of(there) != of({**there, "alignment.epochs": 1})


def test_what_stands_for_items_is_as_wide_as_stage_1_makes_it():
    assert config.Config().item_width == 64
    assert config.apply(config.Config(), {"alignment.text": "x"}).item_width == 128


def test_subset_refuses_a_name_of_nothing():
    with pytest.raises(ValueError, match="no setting or section trian"):
        config.subset(config.Config(), ("trian",))


def test_every_section_is_a_dataclass_with_a_default():
    assert dataclasses.asdict(config.Config()) == config.to_dict(config.Config())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize(
    "arg",
    [
        *(None, "smoke", "reference,llama-3.1-8b", "gru4rec,collm"),
        *(f"{word},title" for word in ("tallrec", "llara", "collm", "a_llmrec")),
    ],
)
def test_config_files(path, arg):
    cfg = runpy.run_path(str(path))["get_config"](arg)
    if path.stem == "files":
        with pytest.raises(ValueError, match="--config.data.files.interactions=PATH"):
            rules.validate(cfg)
    if path.stem in AMAZON | {"files"}:
        files = {"data.source": "files", "data.files.interactions": "a.csv"}
        rules.validate(config.apply(cfg, files))
        cfg = config.apply(cfg, files) if path.stem == "files" else cfg
    rules.validate(cfg)
    if path.stem in AMAZON and arg is None:
        assert cfg.llm.path == "meta-llama/Llama-3.2-3B-Instruct"
        assert cfg.train.batch == (16 if path.stem == "electronics" else 20)


def test_the_paper_s_datasets_are_all_there():
    assert AMAZON | {"shop", "files"} <= {path.stem for path in CONFIGS}
