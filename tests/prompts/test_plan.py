"""Static shapes: padding, groups, sorted blocks."""

import itertools

import numpy as np
import pytest

from llmsrec_jax.prompts import plan
from llmsrec_jax.prompts.trunks import Trunks


def lengths(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Prefix and live lengths like those of user prompts."""
    rng = np.random.default_rng(seed)
    title = np.minimum(rng.lognormal(3.2, 0.5, (n, 10)), 200).astype(np.int64)
    used = np.arange(10) < np.minimum(rng.geometric(0.2, n) + 1, 10)[:, None]
    return 30 + title[:, 0], 20 + ((15 + title) * used)[:, 1:].sum(axis=1)


def draw(prefix, live, rows):
    """A batch sorted by length."""
    rows = rows[np.lexsort((prefix[rows], (prefix + live)[rows]))]
    return prefix[rows], live[rows]


def histories(n: int = 3000, seed: int = 0) -> np.ndarray:
    """Lengths like those of user histories."""
    return np.minimum(np.random.default_rng(seed).geometric(0.04, n) + 1, 300)


def cost(shape: plan.Windows) -> int:
    return sum(rows * width for rows, width in shape)


class TestWindows:
    def test_shapes_are_few_aligned_and_sorted_by_cost(self):
        lengths = histories()
        shapes = plan.plan_windows(lengths, batch=20, groups=3, max_shapes=4)
        assert 1 < len(shapes) <= 4
        for one in shapes:
            assert len(one) == 3 and sum(rows for rows, _ in one) == 20
            assert all(w % (16 if w > 256 else 8) == 0 or w == lengths.max() for _, w in one)
        assert [cost(one) for one in shapes] == sorted(map(cost, shapes))

    def test_deterministic(self):
        plans = [plan.plan_windows(histories(), 20, 3, 4, seed=s) for s in (1, 1)]
        assert plans[0] == plans[1]

    @pytest.mark.parametrize(("batch", "groups"), [(1, 3), (2, 3), (7, 1), (20, 3), (32, 5)])
    def test_the_last_holds_any_batch(self, batch, groups):
        lengths = histories(400)
        shapes = plan.plan_windows(lengths, batch, groups, 3)
        assert min(width for _, width in shapes[-1]) >= lengths.max()
        assert plan.choose_windows(shapes, np.full(batch, lengths.max())) == shapes[-1]

    def test_devices_share_the_choice(self):
        lengths = histories()
        shapes, rng = plan.plan_windows(lengths, 20, 3, 4), np.random.default_rng(0)
        devices = np.sort(rng.choice(lengths, (4, 20)), axis=1)
        alone = [plan.choose_windows(shapes, one) for one in devices]
        together = plan.choose_windows(shapes, devices)
        assert shapes.index(together) >= max(map(shapes.index, alone))

    def test_choice_is_the_cheapest_that_fits(self):
        lengths, used = histories(), set()
        shapes = plan.plan_windows(lengths, 20, 3, 4)
        for seed in range(300):
            batch = np.sort(np.random.default_rng(seed).choice(lengths, 20))
            widths = lambda one: np.repeat([w for _, w in one], [rows for rows, _ in one])
            fits = [bool((batch <= widths(one)).all()) for one in shapes]
            chosen = plan.choose_windows(shapes, batch)
            assert chosen == shapes[fits.index(True)]
            used.add(chosen)
        assert len(used) > 2

    def test_shapes_that_batches_meet(self):
        """Those of real draws."""
        lengths = histories()
        shapes = plan.plan_windows(lengths, 20, 3, 4)
        draws = [np.random.default_rng(seed).choice(lengths, 20) for seed in range(300)]
        chosen = {plan.choose_windows(shapes, np.sort(batch)) for batch in draws}
        met = plan.met_windows(shapes, lengths, 20, passes=300)
        assert chosen - {shapes[-1]} == set(met) - {shapes[-1]}
        assert plan.met_windows(shapes, np.full(9, 2), 20, passes=5) == shapes[:1]

    def test_groups_save_padding(self):
        lengths, paid, longest = histories(), {1: 0, 3: 0}, 0
        plans = {groups: plan.plan_windows(lengths, 20, groups, 4) for groups in paid}
        for seed in range(200):
            batch = np.sort(np.random.default_rng(seed).choice(lengths, 20))
            longest += 20 * batch.max()
            for groups, shapes in plans.items():
                paid[groups] += cost(plan.choose_windows(shapes, batch))
        assert paid[3] < 0.85 * longest and paid[3] < 0.85 * paid[1]

    def test_never_wider_than_the_longest(self):
        lengths = np.random.default_rng(0).integers(1, 51, 1000)
        shapes = plan.plan_windows(lengths, 32, 4, 3)
        assert max(width for one in shapes for _, width in one) == 50

    def test_constant_lengths_need_one_shape(self):
        shapes = plan.plan_windows(np.full(9, 16), 4, 2, 4)
        assert len(shapes) == 1 and {width for _, width in shapes[0]} == {16}

    def test_no_lengths(self):
        with pytest.raises(ValueError, match="no lengths"):
            plan.plan_windows(np.zeros(0, int), 4, 2, 4)


class TestSorted:
    @pytest.mark.parametrize("max_shapes", [1, 3, 8])
    @pytest.mark.parametrize("n", [1, 63, 64, 65, 3000])
    def test_every_prompt_once_in_few_shapes(self, n, max_shapes):
        prefix, live = lengths(n)
        blocks = plan.plan_sorted(prefix, live, 64, max_shapes)
        assert len({shape for _, shape in blocks}) <= max_shapes
        assert all(len(index) == shape.rows for index, shape in blocks)
        index = np.concatenate([index for index, _ in blocks])
        assert np.unique(index).tolist() == list(range(n))
        assert len(index) - n < 64
        for index, shape in blocks:
            need = live[index] + np.maximum(prefix[index] - shape.prefix, 0)
            assert need.max() <= shape.live
            assert (prefix[index] >= shape.prefix).all()  # no padding in prefixes
        repeated = [len(index) - len(np.unique(index)) for index, _ in blocks]
        assert not any(repeated[:-1])

    def test_little_padding(self):
        prefix, live = lengths(10_000)
        waste = []
        for max_shapes in (2, 4, 8):
            blocks = plan.plan_sorted(prefix, live, 64, max_shapes)
            padded = sum(s.rows * (s.prefix + s.live) for _, s in blocks)
            waste.append(padded / (prefix + live).sum())
        assert waste[2] < 1.15 and waste == sorted(waste, reverse=True)

    def test_buckets_are_the_best(self):
        rng = np.random.default_rng(0)
        need = rng.integers(1, 120, 300)
        for k in (1, 2, 3):
            widths = plan.widths(need, k)
            cost = lambda w: w[np.searchsorted(w, need)].sum()
            all_widths = range(8, int(widths[-1]), 8)
            best = min(
                cost(np.array([*some, widths[-1]]))
                for some in itertools.combinations(all_widths, min(k, 3) - 1)
            )
            assert len(widths) == k and cost(widths) == best

    def test_long_blocks_have_fewer_rows(self):
        blocks = plan.plan_sorted(
            np.full(100, 16), np.r_[np.full(90, 100), np.full(10, 2000)], 32, 2
        )
        rows = {shape.live: shape.rows for _, shape in blocks}
        assert rows[max(rows)] == 8 and rows[min(rows)] == 32

    def test_nothing_to_plan(self):
        assert plan.plan_sorted(np.zeros(0), np.zeros(0), 8, 2) == []


def drawn(kind, rows, seed=0):
    """A sorted pass of prompts of these lengths."""
    return draw(*kind, np.random.default_rng(seed).integers(len(kind[0]), size=rows))


class TestSteps:
    ITEMS = np.random.default_rng(1).integers(20, 60, 5000), np.full(5000, 9)

    def steps(self, **options):
        settings = {"groups": 3, "max_shapes": 4} | options
        return plan.plan_steps(Trunks.apart(lengths()), self.ITEMS, (20, 80), **settings)

    def test_few_and_aligned_the_last_holds_anything(self):
        steps = self.steps()
        assert 1 < len(steps) <= 4
        assert [s.cost for s in steps[:-1]] == sorted(s.cost for s in steps[:-1])
        for step in steps:
            assert sum(shape.rows for shape in step.users) == 20
            assert sum(shape.rows for shape in step.items) == 80
            assert all(s.prefix % 8 == s.live % 8 == 0 for s in (*step.users, *step.items))
            assert all(n % 64 == 0 for n in (*step.user_tokens, *step.item_tokens))
        users, items = lengths(), self.ITEMS
        for kind in (0, 1):  # the longest prefixes, the longest tails, again and again
            user, item = (np.full(n, np.argmax(x[kind])) for n, x in ((20, users), (80, items)))
            assert steps[-1].holds(draw(*users, user), draw(*items, item))

    def test_the_choice_is_the_cheapest_that_holds_all_devices(self):
        steps, used = self.steps(), set()
        for seed in range(200):
            users, items = drawn(lengths(), 20, seed), drawn(self.ITEMS, 80, seed)
            chosen = plan.choose_step(steps, users, items)
            fits = [bool(step.holds(users, items)) for step in steps]
            assert chosen == steps[fits.index(True)]
            used.add(chosen)
        assert len(used) > 1
        many = [drawn(lengths(), 20, seed) for seed in range(8)]
        together = tuple(np.stack(x).reshape(4, 2, 20) for x in zip(*many, strict=True))
        items = tuple(np.stack([x] * 8).reshape(4, 2, 80) for x in drawn(self.ITEMS, 80))
        chosen = plan.choose_step(steps, together, items)
        alone = [plan.choose_step(steps, one, drawn(self.ITEMS, 80)) for one in many]
        assert steps.index(chosen) >= max(map(steps.index, alone))

    def test_shapes_that_passes_meet(self):
        """Those of real draws; the one that holds anything is hardly ever met."""
        steps, known = self.steps(), (Trunks.apart(lengths()), self.ITEMS, (20, 80))
        met = plan.met(steps, *known, passes=300)
        chosen = {
            plan.choose_step(steps, drawn(lengths(), 20, seed), drawn(self.ITEMS, 80, seed))
            for seed in range(300)
        }
        assert chosen - {steps[-1]} == set(met) - {steps[-1]}
        assert len(plan.met(steps, *known, passes=1)) == 1
        short = np.full(9, 30), np.full(9, 12)
        assert (
            plan.met(steps, Trunks.apart(short), (short[0] - 10, short[1] - 3), (20, 80), passes=5)
            == steps[:1]
        )

    def test_what_holds_means(self):
        """Every group on its grid, all tokens on their axes; prefixes beyond a grid's are live tokens."""
        one = plan.StepShape(
            (plan.Shape(2, 8, 10), plan.Shape(1, 8, 20)),
            (plan.Shape(1, 8, 8),),
            plan.Budget(20, 30),
            plan.Budget(8, 8),
        )
        item = np.array([8]), np.array([4])
        holds = lambda prefix, live: bool(one.holds((np.array(prefix), np.array(live)), item))
        assert holds([6, 6, 8], [5, 10, 15])
        assert not holds([6, 6, 8], [5, 11, 14])  # wider than its grid
        assert not holds([6, 6, 8], [5, 10, 16])  # more live tokens than the axis has
        assert not holds([6, 7, 8], [5, 10, 15])  # more prefix tokens
        assert holds([4, 4, 12], [5, 9, 12])  # 4 of 12 are fed live
        assert not holds([4, 4, 12], [5, 9, 13])

    def test_tokens_have_hardly_any_padding(self):
        users = lengths()
        places, tokens = 0, 0
        steps = self.steps()
        for seed in range(100):
            user, item = drawn(users, 20, seed), drawn(self.ITEMS, 80, seed)
            step = plan.choose_step(steps, user, item)
            places += sum(step.user_tokens) + sum(step.item_tokens)
            tokens += sum(int(x.sum()) for x in (*user, *item))
        assert tokens < places < 1.25 * tokens

    def test_stored_prefixes_are_whole_in_every_shape(self):
        """And cost nothing but attention to them."""
        longest = int(self.ITEMS[0].max())
        plain, stored = self.steps(), self.steps(stored=True)
        assert any(shape.prefix < longest for step in plain for shape in step.items)
        for step in stored:
            assert step.stored and all(shape.prefix >= longest for shape in step.items)
            assert step.cost < step._replace(stored=False).cost
            budget = step.item_tokens
            assert step.cost == step._replace(item_tokens=budget._replace(prefix=1 << 20)).cost

    def test_one_of_each(self):
        steps = plan.plan_steps(
            Trunks.apart(lengths(5)), self.ITEMS, (1, 1), groups=3, max_shapes=2
        )
        assert steps[-1].holds(drawn(lengths(5), 1), drawn(self.ITEMS, 1))
        with pytest.raises(ValueError, match="no lengths"):
            plan.plan_steps(Trunks.apart((np.zeros(0), np.zeros(0))), self.ITEMS, (2, 2), 1, 1)


class TestStored:
    def test_every_prompt_once_with_all_of_its_prefix(self):
        prefix, live = np.random.default_rng(0).integers(5, 90, 700), np.full(700, 9)
        blocks = plan.plan_stored(prefix, live, 64, 4)
        assert len({shape for _, shape in blocks}) <= 4
        index = np.concatenate([index for index, _ in blocks])
        assert set(index) == set(range(700))
        for rows, shape in blocks:
            assert shape.live == 9 and prefix[rows].max() <= shape.prefix
            assert len(rows) == shape.rows > 64  # short tails: more rows than were asked for
        assert plan.plan_stored(np.zeros(0), np.zeros(0), 8, 2) == []
