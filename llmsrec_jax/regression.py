"""Ridge regression of many rows that need not be in memory together; its penalty by generalised cross-validation."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

PENALTIES = 10.0 ** np.arange(-6, 2)  # shares of the largest eigenvalue of the inputs' covariance
Block = tuple[np.ndarray, np.ndarray]  # x [n, X], y [n, Y]


class Linear(NamedTuple):
    """x @ weights + bias."""

    weights: np.ndarray  # float64 [X, Y]
    bias: np.ndarray  # float64 [Y]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float64 [n, Y]."""
        return x @ self.weights + self.bias


def ridge(blocks: Iterable[Block]) -> Linear:
    """Least squares with a penalty on the weights but not on the bias; of PENALTIES the one with the least GCV score.

    Raises:
      ValueError: fewer than two rows.
    """
    rows, x_sum, y_sum, xx, xy, yy = 0, *np.zeros(5)
    for x, y in blocks:
        x, y = x.astype(np.float64), y.astype(np.float64)
        rows += len(x)
        x_sum, y_sum = x_sum + x.sum(axis=0), y_sum + y.sum(axis=0)
        xx, xy, yy = xx + x.T @ x, xy + x.T @ y, yy + np.sum(y * y)
    if rows < 2:
        raise ValueError(f"a regression of {rows} rows: at least 2 are needed")
    x_mean, y_mean = x_sum / rows, y_sum / rows
    values, vectors = np.linalg.eigh(xx - rows * np.outer(x_mean, x_mean))
    values = np.maximum(values, 0.0)
    along = vectors.T @ (xy - rows * np.outer(x_mean, y_mean))  # [X, Y] in the eigenvectors' axes
    left = yy - rows * np.sum(y_mean**2)

    def score(penalty: float) -> float:
        """Squared error, as if every row had been predicted by the others (Golub, Heath and Wahba 1979)."""
        damped = values + penalty
        explained = np.sum(np.sum(along**2, axis=1) * (damped + penalty) / damped**2)
        free = rows - 1 - np.sum(values / damped)
        return max(left - explained, 0.0) / max(free, 1e-9) ** 2

    largest = values.max() or 1.0  # of constant inputs nothing can be learnt
    penalty = min(PENALTIES * largest, key=score)
    weights = vectors @ (along / (values + penalty)[:, None])
    return Linear(weights, y_mean - x_mean @ weights)
