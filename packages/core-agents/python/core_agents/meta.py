"""A policy over trees: which of several trees to play, from features of the scenario (PORTAL, arXiv 2503.13356).

The paper schedules pre-made trees by a network. One choice an episode makes this a contextual bandit: each tree's
return is predicted by ridge regression on the features, and Thompson sampling chooses (the tree whose prediction is the
largest when the coefficients are drawn from what is known of them), so that it explores where it is unsure.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class MetaPolicy:
    """Picks one of ``num_trees`` from ``num_features`` features of the scenario; deterministic for a seed.

    ``ridge``: weight of the penalty on the coefficients. ``noise``: standard deviation of a return about its
    prediction; None: as the returns themselves have it.
    """

    def __init__(
        self, num_features: int, num_trees: int, ridge: float = 0.1, noise: float | None = None, seed: int = 0
    ) -> None:
        if num_features < 0 or num_trees < 1:
            raise ValueError(f"MetaPolicy: needs at least one tree and no negative size, got {num_features, num_trees}")
        if ridge <= 0 or (noise is not None and noise <= 0):
            raise ValueError(f"MetaPolicy: 'ridge' and 'noise' must be positive, got {ridge, noise}")
        self.noise = noise
        self.episodes = 0
        self._rng = np.random.default_rng(seed)
        self._gram = np.tile(np.eye(num_features + 1) * ridge, (num_trees, 1, 1))
        self._sums = np.zeros((num_trees, num_features + 1))
        self._seen = np.zeros(num_trees, np.int64)
        self._squares = 0.0

    @property
    def weights(self) -> np.ndarray:
        """float64 [trees, num_features + 1]: each tree's return is predicted as weights @ [features, 1]."""
        return np.asarray(np.linalg.solve(self._gram, self._sums[..., None])[..., 0])

    def best(self, features: np.ndarray) -> np.ndarray:
        """int64 [...]: the tree with the largest predicted return."""
        return np.asarray((self._row(features) @ self.weights.T).argmax(-1))

    def choose(self, features: np.ndarray) -> int:
        """A tree for one scenario by Thompson sampling; trees that were never tried come first."""
        x = self._row(features)
        untried = np.flatnonzero(self._seen == 0)
        if len(untried):
            return int(self._rng.choice(untried))
        spread = np.linalg.solve(self._gram, np.broadcast_to(x, self._sums.shape)[..., None])[..., 0] @ x
        noise = self.noise if self.noise is not None else np.sqrt(self._residual())
        return int((self.weights @ x + noise * np.sqrt(spread) * self._rng.normal(size=len(spread))).argmax())

    def learn(self, features: np.ndarray, tree: int, reward: float) -> None:
        """Takes an episode's return into account. Raises ValueError for a return that is not finite."""
        if not np.isfinite(reward):
            raise ValueError(f"MetaPolicy.learn: argument 'reward' must be finite, got {reward}")
        x = self._row(features)
        self._gram[tree] += np.outer(x, x)
        self._sums[tree] += reward * x
        self._seen[tree] += 1
        self.episodes += 1
        self._squares += reward * reward

    def _residual(self) -> float:
        """The mean square of what the regression leaves unexplained."""
        free = max(self.episodes - self._sums.size, 1)
        return max(self._squares - float((self.weights * self._sums).sum()), 1e-12) / free

    def train(
        self, scenario: Callable[[], np.ndarray], play: Callable[[np.ndarray, int], float], episodes: int
    ) -> np.ndarray:
        """Plays ``episodes``: ``scenario()`` gives features, ``play(features, tree)`` a return. The returns."""
        returns = np.zeros(episodes)
        for e in range(episodes):
            features = scenario()
            tree = self.choose(features)
            returns[e] = play(features, tree)
            self.learn(features, tree, returns[e])
        return returns

    def _row(self, features: np.ndarray) -> np.ndarray:
        x = np.asarray(features, np.float64)
        if x.shape[-1:] != (self._sums.shape[1] - 1,) or not np.isfinite(x).all():
            want = self._sums.shape[1] - 1
            raise ValueError(f"MetaPolicy: argument 'features' must be finite numbers [..., {want}], got {x.shape}")
        return np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)
