"""Which settings tell rows of a table apart, by hand."""

import json

from llmsrec_jax.presets import PRESETS
from llmsrec_jax.provenance import differing, labels, variant, words
from llmsrec_jax.schema import TOLD_BY_NAME, VARIANTS

TEACHER = {"seed": 0, "teacher.epochs": 4, "order.train": "original"}
LLM = TEACHER | {"train.epochs": 1, "distill.weight": 1.0}


def test_rows_of_other_epochs_say_so():
    """Of another name too, which says nothing of epochs; a setting counts where it is one."""
    longer = LLM | {"train.epochs": 10, "distill.weight": 0.0}
    used = {"p": {"seed": 0}, "t": TEACHER, "a": LLM, "b": longer}
    rows = [
        *(("popularity", 0, "p"), ("teacher", 0, "t")),
        *(("llm_srec", 0, "a"), ("llm_srec w/o distill", 0, "b")),
    ]
    assert labels(rows, used) == [
        *("popularity", "teacher", "llm_srec (train.epochs=1)"),
        "llm_srec w/o distill (train.epochs=10)",
    ]


def test_what_a_name_tells_is_not_said_again():
    shuffled = TEACHER | {"order.train": "shuffled"}
    assert differing([TEACHER, shuffled]) == [{}, {}]
    half = LLM | {"distill.weight": 0.5}
    assert differing([LLM, half, LLM | {"distill.weight": 0.0}]) == [
        *({"distill.weight": 1.0}, {"distill.weight": 0.5}, {}),
    ]
    assert {setting for setting, _ in VARIANTS} <= TOLD_BY_NAME.keys()


def test_what_makes_a_system_is_told_by_its_name():
    """Unless there are two of that name, which only their settings tell apart."""
    of = lambda word, **more: TEACHER | json.loads(json.dumps(PRESETS[word])) | more
    used = {word: of(word) for word in ("tallrec", "collm", "gru4rec")}
    rows = [(word, 0, word) for word in used]
    assert labels(rows, used) == ["tallrec", "collm", "gru4rec"]
    used["other"] = of("gru4rec") | {"teacher.dropout": 0.5}
    assert labels([*rows, ("gru4rec", 0, "other")], used) == [
        *("tallrec", "collm", "gru4rec (teacher.dropout=0.3)", "gru4rec (teacher.dropout=0.5)"),
    ]
    plain = {"lora.rank": 4, "distill.weight": 1.0}
    used |= {"a": TEACHER | plain, "b": TEACHER | plain | {"lora.rank": 2}}
    rows = [("tallrec", 0, "tallrec"), ("x", 0, "a"), ("x", 0, "b")]
    assert labels(rows, used) == ["tallrec", "x (lora.rank=4)", "x (lora.rank=2)"]


def test_seeds_of_one_configuration_are_one():
    assert variant(TEACHER) == variant(TEACHER | {"seed": 1}) != variant(LLM)
    assert differing([TEACHER, TEACHER | {"seed": 1}]) == [{}, {}]
    assert labels([("a", 0, "x"), ("a", 1, "y")], {}) == ["a", "a"]


def test_what_is_not_known_has_its_hash():
    assert labels([("a", 0, "x"), ("a", 0, "y"), ("b", 0, "z")], {}) == ["a (x)", "a (y)", "b"]


def test_many_settings_are_counted():
    assert words({f"s{n}": n for n in range(5)}) == "s0=0, s1=1, s2=2, 2 more"
    assert words({"evaluate.ks": (1, 5)}) == "evaluate.ks=1,5"
