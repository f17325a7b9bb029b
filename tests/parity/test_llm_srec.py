"""LLM-SRec against arrays recorded from the authors' code: heads, losses, gradients, a training trace, ranks.

Prompts are built by the product from the set's own interactions; sizes come from the arrays.
Limits, relative to an array's largest value: forward 5e-5, gradients 1e-4, traces 1e-3; ranks are exact.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llmsrec_jax import config, evaluate, metrics, train
from llmsrec_jax.batch import LLMBatch
from llmsrec_jax.data.interactions import Catalog, UserSequences
from llmsrec_jax.llama import config as llama_config
from llmsrec_jax.llama import weights
from llmsrec_jax.models import llm4rec
from llmsrec_jax.prompts import layout
from llmsrec_jax.prompts.layout import Shape
from llmsrec_jax.prompts.prompts import PromptBuilder
from llmsrec_jax.prompts.tokens import ItemTokens, Tokenizer

HEADS = {  # recorded name -> ours
    "item_emb_proj": "item_projector",
    "pred_user": "user_head",
    "pred_item": "item_head",
    "pred_user_CF2": "cf_user_head",
}
LAYERS = {"0": "first", "1": "norm", "3": "last"}
TOKENS = {"CLS.weight": "user_out", "CLS_item.weight": "item_out"}
# Analytically zero gradients: a shift of every candidate's logit (rounding noise only, see the set's README).
ZERO_GRADIENT = "pred_item.3.bias"
DRIFTS = ("pred_item.3.bias", "pred_item.1.bias")


def place(params: nnx.State, name: str) -> nnx.Variable:
    """Our variable for a recorded tensor name."""
    if name in TOKENS:
        return params[TOKENS[name]]
    head, layer, kind = name.split(".")
    leaf = "bias" if kind == "bias" else ("scale" if layer == "1" else "kernel")
    return params[HEADS[head]][LAYERS[layer]][leaf]


def ours(name: str, array: np.ndarray) -> np.ndarray:
    """Recorded layout -> our layout: a linear's weight is transposed, a token loses its row axis."""
    if name in TOKENS:
        return array[0]
    return array.T if array.ndim == 2 else array


def load_params(like: nnx.State, arrays: dict[str, np.ndarray], prefix: str) -> nnx.State:
    params = jax.tree.map(lambda x: x, like)
    names = [n[len(prefix) :] for n in arrays if n.startswith(prefix)]
    assert len(names) == len(jax.tree.leaves(like))
    for name in names:
        value = ours(name, arrays[prefix + name])
        variable = place(params, name)
        assert variable[...].shape == value.shape, name
        variable[...] = jnp.asarray(value)
    return params


def close(actual, expected, limit, what=""):
    expected = np.asarray(expected, np.float64)
    error = np.abs(np.asarray(actual, np.float64) - expected).max()
    assert error <= limit * np.abs(expected).max(), (what, error, np.abs(expected).max())


class World:
    """One recorded set: data, tokenizer, backbone, teacher items, prompts."""

    def __init__(self, folder):
        read = lambda name: np.loadtxt(
            folder / "dataset" / f"{name}.tsv", dtype=np.int64, skiprows=1, delimiter="\t", ndmin=2
        )
        lines = (folder / "dataset/items.jsonl").read_text(encoding="utf-8").splitlines()
        items = sorted((json.loads(line) for line in lines), key=lambda r: r["item"])
        titles = ["", *(r["title"] for r in items)]
        keys = np.array(["", *(str(r["item"]) for r in items)])
        self.catalog = Catalog(
            keys=keys, titles=titles, has_title=np.array([bool(t) for t in titles])
        )
        self.train = self._by_user(read("train"))
        self.valid, self.test = self._by_user(read("valid")), self._by_user(read("test"))
        self.cfg = config.Config()
        self.heads = dict(np.load(folder / "heads.npz"))
        sasrec = np.load(folder / "sasrec.npz")
        self.cf_items = jnp.asarray(sasrec["w/item_emb.weight"])
        self.cf_of_user = dict(
            zip(sasrec["train_user"].tolist(), sasrec["train_repr"], strict=True)
        )
        shape = llama_config.from_hf(folder / "llama")
        self.llama, llama_state = nnx.split(weights.load(folder / "llama", shape, jnp.float32))
        self.frozen = llm4rec.Frozen(llama_state, self.cf_items)
        tokenizer = Tokenizer.load(folder / "llama")
        tokens = ItemTokens.build(tokenizer, self.catalog)
        self.builder = PromptBuilder(tokenizer, tokens, self.catalog, self.cfg.prompts)
        model = llm4rec.LLMSRec(
            self.cf_items.shape[1], shape.d, self.cfg.head, (0.0, 1.0), nnx.Rngs(params=0)
        )
        self.model, init = nnx.split(model)
        self.params = load_params(init, self.heads, "w/")

    @staticmethod
    def _by_user(rows):
        return {u: rows[rows[:, 0] == u, 1:] for u in np.unique(rows[:, 0]).tolist()}

    def histories(self, users, split):
        """Inputs as the authors give them: train without its last item | train | train + first valid item."""
        parts = []
        for user in users:
            rows = self.train[user]
            if split == "train":
                rows = rows[:-1]
            if split == "test" and user in self.valid:
                rows = np.concatenate([rows, self.valid[user][:1]])
            parts.append(rows)
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])])
        joined = np.concatenate(parts)
        return UserSequences(
            offsets=offsets, items=joined[:, 0].astype(np.int32), times=joined[:, 1]
        )

    def group(self, prompts, rows=None):
        rows = np.arange(len(prompts)) if rows is None else rows
        shape = Shape(len(rows), int(prompts.prefix_len.max()), int(prompts.live_lengths.max()))
        return layout.Group(prompts, rows, shape)

    def groups(self, users, candidates):
        prompts = self.builder.users(self.histories(users, "train"))
        return [self.group(prompts), self.group(self.builder.items(np.ravel(candidates)))]

    def batch(self, users, candidates, cf_user_repr, shapes=None) -> LLMBatch:
        candidates, groups = np.asarray(candidates), self.groups(users, candidates)
        slots = len(users) * self.cfg.prompts.history_len + candidates.size
        if shapes is not None:
            groups = [g._replace(shape=s) for g, s in zip(groups, shapes, strict=True)]
        return LLMBatch(
            prompts=jax.tree.map(lambda x: x[None], layout.fill(groups, slots)),
            candidates=np.arange(candidates.size, dtype=np.int32).reshape(candidates.shape),
            cf_user_repr=np.asarray(cf_user_repr),
        )

    def encode(self, kind, params, prompts):
        encode = jax.jit(llm4rec.encoder(kind, self.model, self.llama))
        return self._in_blocks(lambda b: encode(self.frozen, params, b), prompts)

    def _llama(self):
        return nnx.merge(self.llama, self.frozen.llama)

    def _in_blocks(self, encode, prompts, rows=32):
        n, slots = len(prompts), int(prompts.slots.max())
        parts = []
        for start in range(0, n, rows):
            index = np.minimum(np.arange(start, start + rows), n - 1)
            batch = layout.fill([self.group(prompts, index)], rows * slots)
            parts.append(np.asarray(encode(batch)))
        return np.concatenate(parts)[:n]


@pytest.fixture(scope="module")
def world(oracle) -> World:
    return World(oracle)


@pytest.fixture(scope="module")
def head_batch(world) -> LLMBatch:
    heads = world.heads
    return world.batch(heads["user"].tolist(), heads["candidates"], heads["cf_user_repr"])


def test_hidden_states_and_heads(world, head_batch):
    model, llama, heads = nnx.merge(world.model, world.params), world._llama(), world.heads
    prompts = jax.tree.map(lambda x: x[0], head_batch.prompts)
    hidden = llm4rec.hidden(model, llama, prompts, world.frozen)
    user, item = np.split(hidden, [len(heads["user"])])
    close(user, heads["user_hidden"], 5e-5, "user_hidden")
    close(item, heads["item_hidden"], 5e-5, "item_hidden")
    close(model.user_head(user), heads["user_out"], 5e-5, "user_out")
    close(model.item_head(item), heads["item_out"], 5e-5, "item_out")
    close(model.cf_user_head(head_batch.cf_user_repr), heads["cf_out"], 5e-5, "cf_out")


def test_loss_terms_and_gradients(world, head_batch):
    heads = world.heads

    def total(params):
        return llm4rec.loss(
            *(nnx.merge(world.model, params), world._llama(), head_batch, world.frozen, world.cfg)
        )

    (loss, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(world.params)
    close(loss, heads["total_loss"], 5e-5)
    recorded = {
        "retrieval": "rec_loss",
        "distill": "mse",
        "uniformity_user": "unif_user",
        "uniformity_cf": "unif_cf",
    }
    for name, theirs in recorded.items():
        close(terms[name], heads[theirs], 5e-5, name)
    names = [n[len("grad/") :] for n in heads if n.startswith("grad/")]
    assert len(names) == len(jax.tree.leaves(world.params))
    scale = max(np.abs(heads["grad/" + n]).max() for n in names)
    for name in names:
        expected, actual = ours(name, heads["grad/" + name]), place(grads, name)[...]
        if name == ZERO_GRADIENT:
            assert np.abs(actual).max() <= 1e-5 * scale
        else:
            close(actual, expected, 1e-4, name)


def test_training_trace(world, oracle):
    trace = json.loads((oracle / "train_trace.json").read_text())
    step = jax.jit(partial(train.llm_step, model=world.model, llama=world.llama, cfg=world.cfg))
    assert trace["betas"] == [0.9, world.cfg.train.b2] and trace["eps"] == 1e-8
    state = train.init_state(world.params, trace["lr"], world.cfg.train.b2)
    needed = [
        [group.shape for group in world.groups(recorded["users"], recorded["candidates"])]
        for recorded in trace["steps"]
    ]
    # all steps in one compiled shape
    shapes = [Shape(*np.max(each, axis=0).tolist()) for each in zip(*needed, strict=True)]
    for recorded in trace["steps"]:
        cf = np.stack([world.cf_of_user[u] for u in recorded["users"]])
        batch = world.batch(recorded["users"], recorded["candidates"], cf, shapes)
        state, terms = step(world.frozen, state, batch)
        for name, theirs in {
            "loss": "total_loss",
            "retrieval": "rec_loss",
            "distill": "mse",
        }.items():
            close(terms[name], recorded[theirs], 1e-3, (recorded["step"], name))
        for name in ("user", "cf"):
            close(terms[f"uniformity_{name}"], recorded[f"unif_{name}"], 1e-3, recorded["step"])
    final = dict(np.load(oracle / "train_final.npz"))
    for name, array in final.items():
        if name in DRIFTS:
            continue
        start, end = ours(name, world.heads["w/" + name]), ours(name, array)
        # the distance travelled: Adam moves every weight by about lr, so single entries whose gradient is rounding
        # noise say nothing, but the update as a whole must be the same
        error = np.linalg.norm(place(state.params, name)[...] - end) / np.linalg.norm(end - start)
        assert error < 1e-3, (name, error)


@pytest.fixture(scope="module")
def final_items(world, oracle):
    params = load_params(world.params, dict(np.load(oracle / "train_final.npz")), "")
    every = world.builder.items(np.arange(1, world.catalog.size))
    item_NR = world.encode("items", params, every)
    return params, np.concatenate([np.zeros((1, item_NR.shape[1]), np.float32), item_NR])


@pytest.mark.parametrize("split", ["valid", "test"])
def test_ranks_and_metrics(world, oracle, final_items, split):
    params, item_IR = final_items
    recorded = np.load(oracle / "eval.npz")
    get = lambda name: recorded[f"{split}_clean/{name}"]
    close(item_IR[1:], recorded["item_out_all"], 5e-5)
    users = world.builder.users(world.histories(get("user").tolist(), split))
    user_UR = world.encode("users", params, users)
    close(user_UR, get("user_out"), 5e-5)
    above, tied = evaluate.sampled_ranking(evaluate.Vectors(user_UR, item_IR), get("cand"))
    np.testing.assert_array_equal(above, get("rank"))
    assert not tied.any()
    published = json.loads((oracle / "eval.json").read_text())[f"{split}_clean"]["llmsrec"]
    for name in ("NDCG", "HR"):
        for k in (10, 20):
            mean = metrics.metric(name.lower(), k, above, tied).mean()
            assert mean == pytest.approx(published[f"{name}{k}"], abs=1e-9)
