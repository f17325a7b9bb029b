"""Reading config.json, old and new; finding a model; what a user is told when it cannot be had."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from llmsrec_jax.llama import config

PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "rms_norm_eps": 1e-6,
    "rope_theta": 20000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(tmp_path, **changes):
    raw = {key: value for key, value in {**PLAIN, **changes}.items() if value != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return config.from_hf(tmp_path)


def test_plain(tmp_path):
    assert read(tmp_path) == config.LlamaConfig(
        vocab=100,
        d=48,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=12,
        ff=80,
        eps=1e-6,
        rope=config.Rope(theta=20000.0),
        tied=True,
        max_positions=512,
    )


def test_absent_fields_take_the_defaults_of_hf(tmp_path):
    cfg = read(
        tmp_path,
        num_key_value_heads="absent",
        rope_theta="absent",
        tie_word_embeddings="absent",
        head_dim=None,
    )
    assert (cfg.kv_heads, cfg.rope.theta, cfg.tied, cfg.head_dim) == (4, 10000.0, False, 12)
    assert read(tmp_path, head_dim=16).head_dim == 16


@pytest.mark.parametrize(
    "style",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_theta": "absent", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    ],
)
def test_llama3_rope_old_and_new_style(tmp_path, style):
    want = config.Rope(theta=5e5, kind="llama3", factor=32.0, low=1.0, high=4.0, original=8192)
    assert read(tmp_path, **style).rope == want


def test_new_style_default_rope(tmp_path):
    style = {"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert read(tmp_path, **style).rope == config.Rope(theta=7.0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*only LlamaForCausalLM"),
        ({"model_type": "llama4"}, "llama4.*only LlamaForCausalLM"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor' is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": "absent"}, "'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "config.json.*wide"),
        ({"hidden_size": 50}, "no multiple of num_attention_heads"),
        ({"num_key_value_heads": 3}, "no multiple of kv_heads"),
        ({"head_dim": 11}, "odd"),
        ({"num_hidden_layers": 0}, "layers is 0"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **changes)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_damaged_or_absent_config(tmp_path):
    with pytest.raises(ValueError, match="no config.json in"):
        config.from_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        config.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        config.from_hf(tmp_path)


def test_random_sizes():
    assert config.locate("random:toy") == (config.SIZES["toy"], None)
    with pytest.raises(ValueError, match=r"did you mean random:llama-3\.2-1b\?"):
        config.locate("random:llama-3.2-1")
    with pytest.raises(ValueError, match=r"no size 'xyz' \(sizes: tiny, toy"):
        config.locate("random:xyz")


def test_local_folder_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    cfg = read(tmp_path)
    assert config.locate(str(tmp_path)) == (cfg, tmp_path)


@pytest.mark.parametrize("path", ["missing", "/no/such", "./no/such", "../x", "a/b/c", "randm:toy"])
def test_a_local_path_that_does_not_exist(path):
    with pytest.raises(ValueError, match="no folder .* a hub id .* or random:<size>"):
        config.resolve(path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        config.resolve(str(tmp_path / "config.json"))


def test_hub_is_asked_once_for_what_is_needed(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repo, revision, allow_patterns):
        calls.append((repo, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cfg = read(tmp_path)
    assert config.locate("org/model", "v1") == (cfg, tmp_path)
    assert calls == [("org/model", "v1", config.HUB_FILES)]
    config.resolve("org/model")
    assert calls[1][1] is None


RESPONSE = SimpleNamespace(headers={}, request=None)
HTTP = {"response": RESPONSE}


@pytest.mark.parametrize(
    "error, message",
    [
        (
            errors.GatedRepoError("403", **HTTP),
            "gated: accept its licence .*hf auth login.*HF_TOKEN",
        ),
        (errors.RepositoryNotFoundError("404", **HTTP), "does not exist .*HF_TOKEN"),
        (
            errors.RevisionNotFoundError("404", **HTTP),
            "revision 'v9' is not there: check llm.revision",
        ),
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached: go online once"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached: go online once"),
        (errors.HFValidationError("bad name"), "no hub id"),
        (errors.HfHubHTTPError("500 broken\nmore", **HTTP), r"\(500 broken\): try again"),
        (ConnectionResetError("reset"), r"\(reset\): try again"),
    ],
)
def test_hub_errors_say_what_to_do_in_one_line(monkeypatch, error, message):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=message) as caught:
        config.resolve("org/model", "v9")
    text = str(caught.value)
    assert "\n" not in text and "org/model" in text and "--config.llm.path=DIR" in text


@pytest.mark.parametrize(
    ("path", "there"), [("random:toy", True), (".", True), ("a/b/c", False), ("org/absent", False)]
)
def test_what_has_to_be_downloaded(path, there):
    assert config.is_here(path) is there
