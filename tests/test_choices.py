"""What is chosen, from probabilities worked out by hand; an oracle and a random scorer; decoding against a plain search."""

import numpy as np

from llmsrec_jax import choices, evaluate

END = 9
IDS = np.array([[[1, 2, END, 0], [1, 3, 4, END], [1, 2, 5, END], [1, 2, END, 0]]])
LENGTH = np.array([[3, 4, 4, 3]])


def of(*rows: list[float]) -> np.ndarray:
    """[1, C, T], 7.0 where nothing is to be looked at."""
    return np.array([[row + [7.0] * (4 - len(row)) for row in rows]])


def test_likelihood_adds_up_the_titles_tokens():
    log = of([-1, -2, -3], [-1, -1, -1, -1], [-1, -2, -1, -1], [-1, -2, -3])
    assert choices.likelihood(log, LENGTH).tolist() == [[-6, -4, -5, -6]]


def test_greedy_decoding_among_titles():
    """It goes on from the most probable token, whatever comes of it; equal titles are chosen together; one is another's beginning."""
    log = of([-1, -0.1, -3], [-1, -0.2, 0, 0], [-1, -0.1, -2, -9], [-1, -0.1, -3])
    assert choices.constrained(IDS, log, LENGTH).tolist() == [[False, False, True, False]]
    log = of([-1, -0.1, -1], [-1, -0.2, 0, 0], [-1, -0.1, -2, 0], [-1, -0.1, -1])
    chosen = choices.constrained(IDS, log, LENGTH)
    assert chosen.tolist() == [[True, False, False, True]]
    assert choices.hits(chosen, np.array([0])).tolist() == [0.5]
    assert choices.hits(chosen, np.array([1])).tolist() == [0.0]


def test_free_decoding_writes_a_title_or_none():
    first = of([1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1])
    assert choices.free(first, LENGTH).tolist() == [[True, False, False, True]]
    assert not choices.free(of([1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 0]), LENGTH).any()


def made(users: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids [U, 20, 6], log-probabilities that are the same for equal beginnings, and lengths."""
    rng = np.random.default_rng(seed)
    length = rng.integers(2, 6, (users, 20))
    ids = rng.integers(1, 4, (users, 20, 6))
    np.put_along_axis(ids, length[..., None] - 1, END, axis=2)
    known: dict[tuple[int, ...], float] = {}
    log = np.zeros(ids.shape)
    for u in range(users):
        for c in range(20):
            for t in range(length[u, c]):
                path = (u, *ids[u, c, : t + 1].tolist())
                log[u, c, t] = known.setdefault(path, float(-rng.exponential()))
    return ids, log, length


def test_greedy_decoding_is_that_of_a_plain_search():
    ids, log, length = made(30)
    found = choices.constrained(ids, log, length)
    for u in range(30):
        paths = {tuple(ids[u, c, : length[u, c]].tolist()): c for c in range(20)}
        node: tuple[int, ...] = ()
        while node not in paths:
            steps = {p[: len(node) + 1]: c for p, c in paths.items() if p[: len(node)] == node}
            node = max(steps, key=lambda step: log[u, steps[step], len(node)])
        wanted = [tuple(ids[u, c, : length[u, c]].tolist()) == node for c in range(20)]
        assert found[u].tolist() == wanted


def test_an_oracle_is_always_right_and_a_random_scorer_once_in_twenty():
    ids, log, length = made(4)
    target = np.zeros(4, np.int64)
    log[:, 0] = 0.0  # the target's tokens are certain
    same = (ids == ids[:, :1]).cumprod(axis=2).astype(bool)
    log = np.where(same, 0.0, log - 1.0)
    chosen = choices.constrained(ids, log, length)
    equal = (same | (np.arange(6) >= length[..., None])).all(axis=2) & (length == length[:, :1])
    np.testing.assert_allclose(choices.hits(chosen, target), 1 / equal.sum(axis=1))
    oracle = evaluate.Choices(np.eye(1, 20).repeat(50, axis=0))
    candidates = np.tile(np.arange(1, 21), (50, 1))
    best = lambda scores, listed: evaluate.selection_metric(
        evaluate.sampled_ranking(scores, listed), 1, "average"
    )
    assert best(oracle, candidates)["hr@1"] == 1.0
    users = 4000
    chance = evaluate.Choices(np.random.default_rng(0).random((users, 20)))
    found = best(chance, np.tile(np.arange(1, 21), (users, 1)))
    assert abs(found["hr@1"] - 0.05) < 3 * (0.05 * 0.95 / users) ** 0.5


def test_the_best_candidates_are_listed():
    scores = evaluate.Choices(np.array([[0.1, 0.5, 0.5]]))
    candidates = np.array([[7, 8, 9]])
    assert scores.best(candidates, 2).tolist() == [[8, 9]]
    assert scores.of(np.array([0]), candidates).tolist() == [[0.1, 0.5, 0.5]]
