"""The Fréchet distance between sets of images, in the features of a small classifier trained on the train split."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .training import Step, TrainConfig, Trainer

__all__ = ["Classifier", "frechet_distance", "train_classifier"]


class Classifier(nn.Module):
    """Two convolutions and two layers for images [N, 1, 28, 28] in 0..1 of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, 10]."""
        return self.head(self.features(images))

    @torch.no_grad()
    def embed(self, images: Tensor) -> NDArray[np.float64]:
        """The features [N, 64] before the last layer."""
        device = self.head.weight.device
        parts = [self.features(part.to(device)).double().cpu() for part in images.split(500)]
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """The share of images whose class is found."""
        device = self.head.weight.device
        right = [
            self(x.to(device)).argmax(1).cpu() == y for x, y in zip(images.split(500), labels.split(500), strict=True)
        ]
        return float(torch.cat(right).float().mean())


def train_classifier(images: Tensor, labels: Tensor, steps: int = 600, seed: int = 0) -> Classifier:
    """A classifier of images [N, 1, 28, 28] in 0..1, in eval mode; give it the train split only."""

    def loss(step: Step) -> Tensor:
        return functional.cross_entropy(step.model(step.batch["images"]), step.batch["labels"])

    config = TrainConfig(
        steps=steps, batch_size=64, learning_rate=2e-3, ema_decay=0.99, record=True, seed=seed, progress=False
    )
    torch.manual_seed(seed)
    trainer = Trainer(Classifier(), loss, {"images": images, "labels": labels}, config)
    trainer.fit()
    return trainer.ema


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The Fréchet distance of the Gaussians with the moments of features [N, D] (FID, arXiv 1706.08500).

    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the trace of the root through the eigenvalues of A^(1/2) B A^(1/2).
    ValueError: fewer than two rows, another width, or a value that is not finite.
    """
    for name, x in (("a", a), ("b", b)):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != a.shape[1] or not np.isfinite(x).all():
            raise ValueError(f"frechet_distance: argument '{name}' must be finite, of shape (N >= 2, D), got {x.shape}")
    values, vectors = np.linalg.eigh(np.cov(a.T).reshape(a.shape[1], -1))
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cov_b = np.cov(b.T).reshape(b.shape[1], -1)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + values.sum() + np.trace(cov_b) - 2 * cross)
