"""Tokenizers, and the cache of titles."""

import json

import numpy as np
import pytest

from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer, check_vocabulary
from tests.prompts import cases

SPLITTABLE = {"byte_level": True, "prepending": True, "first_only": True, "unsplittable": False}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return cases.made("byte_level")


class TestTokenizer:
    def test_training_is_deterministic(self, tokenizer):
        again = Tokenizer.train(list(cases.corpus()), 600)
        assert again.fingerprint == tokenizer.fingerprint
        assert tokenizer.vocab_size <= 600

    def test_other_texts_give_another_fingerprint(self, tokenizer):
        assert Tokenizer.train(["something else"], 600).fingerprint != tokenizer.fingerprint

    def test_trained_template_adds_begin_of_text(self, tokenizer):
        assert tokenizer.bos_ids == [0]
        assert tokenizer.encode_prompt("a") == [0, *tokenizer.encode("a")]

    def test_vocabulary_must_hold_the_bytes(self):
        with pytest.raises(ValueError, match="vocab_size=200"):
            Tokenizer.train(["a"], 200)

    @pytest.mark.parametrize("name", cases.MADE)
    def test_saved_and_loaded_is_the_same(self, name, tmp_path):
        tokenizer = cases.made(name)
        tokenizer.save(tmp_path)
        loaded = Tokenizer.load(tmp_path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.vocab_size == tokenizer.vocab_size
        for text in cases.TITLES:
            assert loaded.encode(text) == tokenizer.encode(text)
        assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]

    def test_missing_files_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=f"no readable tokenizer in {tmp_path}"):
            Tokenizer.load(tmp_path)

    def test_other_formats_are_converted(self, tokenizer, tmp_path):
        """vocab.json and merges.txt, as older byte-level models have them."""
        model = json.loads(tokenizer._json)["model"]
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [" ".join(pair) for pair in model["merges"]]
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        special = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin_of_text|>"}
        special |= dict.fromkeys(("eos_token", "unk_token"), "<|end_of_text|>")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
        assert Tokenizer.load(tmp_path).encode("red lamp") == tokenizer.encode("red lamp")

    def test_damaged_file_is_named(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(ValueError, match=f"no readable tokenizer in {tmp_path}"):
            Tokenizer.load(tmp_path)

    def test_files_limits_do_not_cut_prompts(self, tokenizer, tmp_path):
        tokenizer.save(tmp_path)
        path = tmp_path / "tokenizer.json"
        content = json.loads(path.read_text())
        content["truncation"] = {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        path.write_text(json.dumps(content))
        text = "a long enough text"
        assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)
        assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint

    @pytest.mark.parametrize("name", cases.MADE)
    def test_plain_text_makes_no_special_token(self, name):
        tokenizer = cases.made(name)
        text = "x[HistoryEmb] <|begin_of_text|> <s> [UserOut] </s> y"
        special = {*tokenizer.bos_ids, tokenizer.special_id("[HistoryEmb]")}
        for ids in ([tokenizer.encode(text)], tokenizer.encode_batch([text], after_slot=True)):
            assert not special & set(ids[0])
            assert max(ids[0]) < tokenizer.vocab_size
        assert tokenizer.special_id("[HistoryEmb]") in tokenizer.encode_prompt(text)

    @pytest.mark.parametrize("name", cases.MADE)
    def test_text_after_a_slot(self, name):
        tokenizer = cases.made(name)
        whole = tokenizer.encode_prompt("a[HistoryEmb], Item")
        slot = whole.index(tokenizer.special_id("[HistoryEmb]"))
        assert tokenizer.encode_batch([", Item"], after_slot=True) == [whole[slot + 1 :]]

    def test_text_that_is_not_unicode(self, tokenizer):
        broken = b"caf\xe9".decode("utf-8", "surrogateescape")
        assert tokenizer.encode(broken) == tokenizer.encode("caf\ufffd")

    def test_private_mark_in_a_text_is_no_slot(self, tokenizer):
        mark = "\U0010ffff slot \U0010ffff"
        assert max(tokenizer.encode(mark)) < tokenizer.vocab_size

    def test_vocabulary_must_fit_the_embeddings(self, tokenizer):
        check_vocabulary(tokenizer, tokenizer.vocab_size)
        with pytest.raises(ValueError, match="do not belong together"):
            check_vocabulary(tokenizer, tokenizer.vocab_size - 1)


class TestItemTokens:
    @pytest.mark.parametrize("name", cases.MADE)
    @pytest.mark.parametrize("wording", ["reference", "paper"])
    def test_probe_finds_out_where_to_cut(self, name, wording):
        tokens = ItemTokens.build(cases.made(name), cases.catalog(), wording, progress=iter)
        assert tokens.splittable == SPLITTABLE[name]
        assert len(tokens.lengths) == len(cases.TITLES) + 1

    def test_probe_sees_context_that_no_token_shows(self):
        tokenizer = cases.context_dependent()
        tokens = ItemTokens.build(tokenizer, cases.catalog(), progress=iter)
        assert not tokens.splittable

    def test_progress_sees_every_chunk(self, tokenizer):
        seen = []
        ItemTokens.build(
            tokenizer, cases.catalog(["a"] * 10_000), progress=lambda c: seen.append(c) or c
        )
        assert [len(chunks) for chunks in seen] == [3]

    def test_saved_and_loaded_is_the_same(self, tokenizer, tmp_path):
        built = ItemTokens.build(tokenizer, cases.catalog(), progress=iter)
        folder = tmp_path / "items"
        built.save(folder)
        built.save(folder)  # again: replaces
        loaded = ItemTokens.load(folder, tokenizer, cases.catalog())
        assert isinstance(loaded.ids, np.memmap)
        np.testing.assert_array_equal(loaded.ids, built.ids)
        np.testing.assert_array_equal(loaded.offsets, built.offsets)
        assert loaded.splittable == built.splittable and loaded.key == built.key
        assert [p.name for p in tmp_path.iterdir()] == ["items"]

    def test_others_tokens_are_refused(self, tokenizer, tmp_path):
        ItemTokens.build(tokenizer, cases.catalog(), progress=iter).save(tmp_path / "t")
        load = lambda t, c, w="reference": ItemTokens.load(tmp_path / "t", t, c, w)
        with pytest.raises(ValueError, match="another tokenizer"):
            load(cases.made("prepending"), cases.catalog())
        with pytest.raises(ValueError, match="another catalogue"):
            load(tokenizer, cases.catalog(cases.TITLES[::-1]))
        with pytest.raises(ValueError, match="another wording"):
            load(tokenizer, cases.catalog(), "paper")

    @pytest.mark.parametrize("name", ["ids.npy", "offsets.npy", "meta.json"])
    @pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
    def test_damage_is_named(self, tokenizer, tmp_path, name, damage):
        folder = tmp_path / "items"
        ItemTokens.build(tokenizer, cases.catalog(), progress=iter).save(folder)
        path = folder / name
        content = bytearray(path.read_bytes())
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            content[-9] ^= 0xFF
            path.write_bytes(content)
        else:
            path.unlink()
        with pytest.raises(ValueError, match=str(folder)):
            ItemTokens.load(folder, tokenizer, cases.catalog())
