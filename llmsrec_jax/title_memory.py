"""What title generation needs of every device's memory (E1); as in memory.py, from shapes alone. There are no item prompts: none is stored."""

from dataclasses import dataclass, replace

import numpy as np

from llmsrec_jax import config, losses, parallel, title_loaders
from llmsrec_jax.data.interactions import Histories
from llmsrec_jax.data.samples import Samples
from llmsrec_jax.llama.config import LlamaConfig
from llmsrec_jax.llama.footprint import Pass
from llmsrec_jax.memory import FP32, Job, Needs, steps_of
from llmsrec_jax.prompts import layout, plan
from llmsrec_jax.prompts.titles import Question, TitlePrompts

# of logits at a time in the backward pass: themselves and their gradients; forward it is one
TILES = 2
HIDDEN = 3  # float32 [Q, D]: hidden states, as they are multiplied, and their gradients


@dataclass(frozen=True)
class TitleJob(Job):
    """Prompts of users, and the titles that follow."""

    items: int  # in the catalogue
    lengths: np.ndarray  # int64 [n] tokens of all training rows, as the first epoch shows them
    longest: int  # of a row in another epoch, at most
    most: int  # tokens of a title
    judged: np.ndarray  # int64 [m] tokens of rows with all candidates' titles
    asked: int  # of these, most that such a row asks for

    @classmethod
    def of(
        cls,
        cfg: config.Config,
        llama: LlamaConfig,
        titles: TitlePrompts,
        samples: Samples,
        judged: tuple[Histories, Question],
        mesh: parallel.DeviceMesh,
    ) -> "TitleJob":
        """llama: the shape of the backbone (`memory.located`). judged: what validations ask, and of whom."""
        batch, steps = steps_of(cfg, len(samples))
        first = title_loaders.asked_in_training(samples, np.arange(len(samples)), 0, cfg)
        return cls(
            cfg,
            replace(llama, writes=True),
            mesh.mesh.size,
            batch,
            steps,
            samples.dataset.catalog.size - 1,
            titles.lengths(samples, first),
            titles.longest(samples, 1 + cfg.train.negatives),
            titles.most,
            titles.lengths(*judged),
            int(titles.asked(judged[1]).max()),
        )

    def needs(self, parts: int, store: str, shape: plan.Windows | None = None) -> Needs:
        shapes = self._shapes(parts, store)[0] if shape is None else [shape]
        step = max(shapes, key=self._step)
        return Needs(
            weights=self._llm.weights,
            teacher=(self.items + 1) * self.cfg.item_width * FP32,
            trained=3 * self._gradients,
            store=0,
            batch=parts * self._numbers(step),
            step=self._step(step),
            filling=0,
            encoding=max(map(self._encoding, self._blocks(self._alone, False))),
        )

    @property
    def _alone(self) -> plan.Lengths:
        """Of rows that validations read: nothing in them is constant."""
        return np.zeros_like(self.judged), self.judged

    def _shapes(self, parts: int, store: str) -> tuple[list[plan.Windows], plan.Windows]:
        cfg, rows, passes = self.cfg.train, self.rows // parts, self._passes(parts)
        options = rows, cfg.length_groups, cfg.shapes, passes
        if options not in self._planned:
            found = title_loaders.planned(self.lengths, self.longest, rows, self.cfg)
            met = plan.met_windows(found, self.lengths, rows, passes, self.cfg.seed)
            self._planned[options] = met, found[-1]
        return self._planned[options]

    def _step(self, step: plan.Windows) -> int:
        rows, live = _sizes(step)
        grids = [(n, 0, width) for n, width in step]
        one = Pass(grids, (), 0, live, self.most)
        slots = title_loaders.slots_of(rows, self.cfg) + rows * self.cfg.prompts.user_repr
        return self._trained(one, slots, self._predicted(rows * self.most, backward=True))

    def _encoding(self, grid: layout.Shape) -> int:
        tails = [(grid.rows, 0, grid.live)]
        one = Pass(tails, (), 0, grid.rows * grid.live, self.asked, branches=True)
        return self._llm.forward(one, self._predicted(grid.rows * self.asked, backward=False))

    def _predicted(self, asked: int, *, backward: bool) -> int:
        """Bytes of the logits of so many tokens (`losses.token_log_probs`)."""
        llama, tiles = self.llama, TILES if backward else 1
        logits = losses.tile_of(asked, llama.vocab, losses.TILE_NUMBERS) * llama.vocab
        hidden = HIDDEN * asked * llama.d
        return FP32 * (tiles * logits + hidden) + self._llm.predictor(backward)

    def _numbers(self, step: plan.Windows) -> int:
        """Bytes of a part's tokens, of where they are, and of what is asked and told (batch.PromptBatch)."""
        rows, live = _sizes(step)
        told = rows * self.cfg.prompts.user_repr * self.cfg.teacher.d * FP32
        told += FP32 * live * self.cfg.lora.drops  # whose each token is
        return 17 * live + 8 * (rows * self.most + title_loaders.slots_of(rows, self.cfg)) + told


def _sizes(step: plan.Windows) -> tuple[int, int]:
    """Rows and tokens, pads included."""
    return sum(rows for rows, _ in step), sum(rows * width for rows, width in step)
