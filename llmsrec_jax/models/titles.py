"""Title generation (Eq. 5): the loss of the next item's title, and what the LLM thinks of every candidate's."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config, losses
from llmsrec_jax.batch import NOTHING, PromptBatch, TitleBatch
from llmsrec_jax.llama.model import Llama
from llmsrec_jax.models.llm4rec import Frozen, LLMSRec, part_by_part, read


class Read(NamedTuple):
    """Of tokens that are asked for, grid by grid; of no meaning where none is."""

    log_prob: Float[Array, "Q"]
    first: Array  # bool [Q] whether it is the most probable of all tokens


def tokens(
    model: LLMSRec,
    llama: Llama,
    prompts: PromptBatch,
    frozen: Frozen,
    remat: str = "none",
    key: Array | None = None,
) -> Read:
    """What is thought of each token that `prompts` ask for. key: of dropout.

    Raises:
      ValueError: they ask for none.
    """
    asked = prompts.asked
    if asked is None:
        raise ValueError("prompts that ask for no token")
    h_QD = read(model, llama, prompts, frozen, asked.at, remat, key)
    wanted_Q = jnp.maximum(asked.token, 0)
    return Read(*losses.token_log_probs(h_QD, llama.predictor, wanted_Q))


def loss(
    model: LLMSRec,
    llama: Llama,
    batch: TitleBatch,
    frozen: Frozen,
    cfg: config.Config,
    axis: str | tuple[str, ...] | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """This device's share of the mean cross-entropy of all tokens of the batch's titles, and the same as the term `loss`.

    Shares add up to the loss of the global batch, their gradients to its gradient. key: of dropout, the same on every device.
    """
    encode = lambda part: tokens(model, llama, part, frozen, cfg.llm.remat, key).log_prob
    log_PQ = part_by_part(encode, batch.prompts)
    assert batch.prompts.asked is not None  # or `tokens` would have said so
    wanted_PQ = batch.prompts.asked.token != NOTHING
    count = jnp.sum(wanted_PQ)
    total = count if axis is None else jax.lax.psum(count, axis)
    share = -jnp.sum(jnp.where(wanted_PQ, log_PQ, 0.0)) / total
    return share, {"loss": share}


def encoder(
    model: nnx.GraphDef, llama: nnx.GraphDef
) -> Callable[[Frozen, nnx.State, PromptBatch], Array]:
    """float32 [rows, 2 M]: `tokens` of prompts of one grid, pairs of both side by side, as a function of arrays alone."""

    def encode(frozen: Frozen, params: nnx.State, prompts: PromptBatch) -> Array:
        graphs = nnx.merge(model, params), nnx.merge(llama, frozen.llama)
        found = jnp.stack(
            [x.astype(jnp.float32) for x in tokens(*graphs, prompts, frozen)], axis=-1
        )
        return found.reshape(prompts.live.grids[0].length.shape[0], -1)

    return encode
