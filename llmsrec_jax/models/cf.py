"""CF-SRec: which models there are (S2-S5), and the loss that all of them train on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from llmsrec_jax import config, losses
from llmsrec_jax.batch import SequenceBatch
from llmsrec_jax.models.bert4rec import BERT4Rec
from llmsrec_jax.models.gru4rec import GRU4Rec
from llmsrec_jax.models.nextitnet import NextItNet
from llmsrec_jax.models.sasrec import SASRec
from llmsrec_jax.models.sequence import CFSRec, embedded, flat

Lengths = Any  # a number, or an int array of them
Groups = tuple[SequenceBatch, ...]  # rows of one batch in windows of different length


class Kind(NamedTuple):
    """What `teacher.model` names."""

    make: type[SASRec] | type[GRU4Rec] | type[BERT4Rec] | type[NextItNet]
    name: str
    operations: Callable[[config.Teacher, Lengths], Lengths]  # forward, of windows of n items
    hides: bool = False  # trained to guess hidden items of a whole sequence, not the next one


def _sasrec(cfg: config.Teacher, n: Lengths) -> Lengths:
    """Six products with E x E weights, and causal attention."""
    return cfg.blocks * (12 * cfg.d**2 * n + 4 * cfg.d * n * (n + 1) // 2)


def _gru4rec(cfg: config.Teacher, n: Lengths) -> Lengths:
    H = cfg.gru4rec.hidden
    return (6 * H * (cfg.d + H) + (cfg.blocks - 1) * 12 * H**2 + 2 * H * cfg.d) * n


def _bert4rec(cfg: config.Teacher, n: Lengths) -> Lengths:
    block = (8 * cfg.d**2 + 4 * cfg.d * cfg.bert4rec.inner) * n + 4 * cfg.d * n**2
    return cfg.blocks * block + 2 * cfg.d**2 * n


def _nextitnet(cfg: config.Teacher, n: Lengths) -> Lengths:
    convolutions = 2 * cfg.blocks * len(cfg.nextitnet.dilations) * cfg.nextitnet.kernel
    return 2 * cfg.d**2 * (convolutions + 1) * n


MODELS = {
    "sasrec": Kind(SASRec, "SASRec", _sasrec),
    "gru4rec": Kind(GRU4Rec, "GRU4Rec", _gru4rec),
    "bert4rec": Kind(BERT4Rec, "BERT4Rec", _bert4rec, hides=True),
    "nextitnet": Kind(NextItNet, "NextItNet", _nextitnet),
}


def operations(cfg: config.Teacher, n: Lengths, asked: Lengths, items: int) -> float:
    """Of the forward pass and the loss over windows of n items, `asked` of which have a positive, in a catalogue of so many."""
    scored = items if cfg.loss == "ce" else 1 + cfg.negatives
    return float(np.sum(MODELS[cfg.model].operations(cfg, n) + 2 * cfg.d * scored * asked))


def new(items: int, cfg: config.Teacher, rngs: nnx.Rngs) -> CFSRec:
    """An untrained one for a catalogue of so many rows, the pad included."""
    return MODELS[cfg.model].make(items, cfg, rngs)


def logits(
    model: CFSRec, groups: Groups, key: Array | None = None
) -> tuple[Float[Array, "N"], Float[Array, "N K"]]:
    """Scores of the positive and of K >= 1 negative items at every column, the groups' columns one after another.

    One gather serves all fields, so that its gradient is one scatter.
    """
    history_N, positive_N, negative_N = (flat(field) for field in zip(*groups, strict=True))
    negative_NK = negative_N.reshape(len(history_N), -1)
    ids_NC = jnp.concatenate([history_N[:, None], positive_N[:, None], negative_NK], axis=1)
    items_NCE = embedded(model.item_embedding[...], ids_NC)
    x_NE = model.encode(items_NCE[:, 0], [group.history for group in groups], key)
    scores_NC = jnp.sum(x_NE[:, None] * items_NCE[:, 1:], axis=-1)
    return scores_NC[:, 0], scores_NC[:, 1:]


def _bce(model: CFSRec, groups: Groups, key: Array | None) -> Float[Array, ""]:
    """BCE(positive, 1) + BCE(negatives, 0); several negatives of a column weigh as much as its positive."""
    positive_N, negative_NK = logits(model, groups, key)
    bce_N = jax.nn.softplus(-positive_N) + jnp.mean(jax.nn.softplus(negative_NK), axis=1)
    return jnp.sum(jnp.where(_counted(groups), bce_N, 0.0))


def _sampled(model: CFSRec, groups: Groups, key: Array | None) -> Float[Array, ""]:
    """Cross-entropy over the positive and its negatives."""
    positive_N, negative_NK = logits(model, groups, key)
    scores_NC = jnp.concatenate([positive_N[:, None], negative_NK], axis=1)
    ce_N = jax.nn.logsumexp(scores_NC, axis=1) - positive_N
    return jnp.sum(jnp.where(_counted(groups), ce_N, 0.0))


def _full(model: CFSRec, groups: Groups, key: Array | None) -> Float[Array, ""]:
    """Cross-entropy over the catalogue."""
    table_IE = model.item_embedding[...]
    histories = [group.history for group in groups]
    x_NE = model.encode(embedded(table_IE, flat(histories)), histories, key)
    return losses.catalogue_loss(x_NE, table_IE, flat([group.positive for group in groups]))


LOSSES = {"bce": _bce, "sampled_ce": _sampled, "ce": _full}  # sums over the columns that count


def _counted(groups: Groups) -> Array:
    """bool [N]: columns with a positive."""
    return flat([group.positive for group in groups]) != 0


def loss(
    model: CFSRec,
    groups: Groups,
    kind: str,
    key: Array | None = None,
    axis: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """This device's share of the mean loss (`teacher.loss`) over the columns with a positive, one mean over all groups.

    Summed over the devices of `axis`, the shares are the loss of the global batch.
    """
    count = jnp.sum(_counted(groups))
    everywhere = count if axis is None else jax.lax.psum(count, axis)
    return LOSSES[kind](model, groups, key) / jnp.maximum(everywhere, 1)
