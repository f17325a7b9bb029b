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
    """Where it has it otherwise, that is said, whoever else is there."""
    of = lambda word, **more: TEACHER | json.loads(json.dumps(PRESETS[word])) | more
    names = {
        "tallrec": "tallrec, title generation",
        "collm": "collm",
        "gru4rec": "teacher gru4rec ce",
    }
    used = {word: of(word) for word in names}
    rows = [(name, 0, word) for word, name in names.items()]
    assert labels(rows, used) == [*names.values()]
    used |= {"x": of("tallrec") | {"lora.rank": 16}, "y": of("gru4rec") | {"teacher.dropout": 0.5}}
    rows += [("tallrec, title generation", 0, "x"), ("llm_srec, teacher gru4rec ce", 0, "y")]
    assert labels(rows, used) == [
        *names.values(),
        "tallrec, title generation (lora.rank=16)",
        "llm_srec, teacher gru4rec ce (teacher.dropout=0.5)",
    ]
    assert labels(rows[3:], used) == labels(rows, used)[3:]


def test_seeds_of_one_configuration_are_one():
    assert variant(TEACHER) == variant(TEACHER | {"seed": 1}) != variant(LLM)
    assert differing([TEACHER, TEACHER | {"seed": 1}]) == [{}, {}]
    assert labels([("a", 0, "x"), ("a", 1, "y")], {}) == ["a", "a"]


def test_what_is_not_known_has_its_hash():
    assert labels([("a", 0, "x"), ("a", 0, "y"), ("b", 0, "z")], {}) == ["a (x)", "a (y)", "b"]


def test_many_settings_are_counted():
    assert words({f"s{n}": n for n in range(5)}) == "s0=0, s1=1, s2=2, 2 more"
    assert words({"evaluate.ks": (1, 5)}) == "evaluate.ks=1,5"
