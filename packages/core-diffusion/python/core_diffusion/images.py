"""Small image sets for training, and grids of images as PNG."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from core_registry.files import replace
from numpy.typing import NDArray

__all__ = ["ImageSet", "digits", "fashion_mnist", "image_set", "save_grid"]

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts it."""
MOST_BYTES = 1 << 28


class ImageSet(NamedTuple):
    """Images uint8 [N, 1, 28, 28] and labels int64 [N] of both splits."""

    name: str
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    @property
    def described(self) -> str:
        """Name and sizes of the splits."""
        return f"{self.name} ({len(self.train):,} and {len(self.test):,} images)"


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes (MNIST's format), gzip or plain. ValueError: not one, or above 256 MB."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            content = file.read(MOST_BYTES + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
    if len(content) > MOST_BYTES or len(content) != 4 + 4 * len(shape) + math.prod(shape):
        raise ValueError(f"{path} holds {len(content)} bytes, which does not fit its shape {shape}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def fashion_mnist(folder: Path | None = None) -> ImageSet:
    """Fashion-MNIST (Xiao et al., 2017; MIT licence): 60,000 and 10,000 images of ten kinds of clothes.

    folder: by default $CORE_FASHION_MNIST, else where Debian's package puts it.
    FileNotFoundError: tells how to get it.
    """
    folder = folder or Path(os.environ.get("CORE_FASHION_MNIST", FASHION_MNIST))
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    if not all((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"no Fashion-MNIST in {folder}: install Debian's package dataset-fashion-mnist, or name the folder of "
            "its four files in CORE_FASHION_MNIST"
        )
    train, train_labels, test, test_labels = (read_idx(folder / name) for name in names)
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise ValueError(f"{folder} does not hold images of 28x28 pixels with labels 0..9")
    return ImageSet(
        "Fashion-MNIST", train[:, None], train_labels.astype(np.int64), test[:, None], test_labels.astype(np.int64)
    )


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, enlarged to 28x28 and cut into 1,297 and 500.

    The stand-in where Fashion-MNIST is not installed. ImportError without scikit-learn.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    small = (found.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC)) for image in small]
    )
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order, None], found.target[order].astype(np.int64)
    return ImageSet("scikit-learn digits", images[500:], labels[500:], images[:500], labels[:500])


def image_set(name: str = "auto") -> ImageSet:
    """ "fashion-mnist", "digits", or "auto": the first if installed, else the second.

    ValueError: another name; FileNotFoundError: neither can be had.
    """
    if name not in ("auto", "fashion-mnist", "digits"):
        raise ValueError(f"image_set: argument 'name' must be 'auto', 'fashion-mnist' or 'digits', got {name!r}")
    if name == "digits":
        return digits()
    try:
        return fashion_mnist()
    except FileNotFoundError as missing:
        if name == "fashion-mnist":
            raise
        try:
            return digits()
        except ImportError:
            raise FileNotFoundError(f"{missing}; its stand-in needs scikit-learn") from missing


def save_grid(images: Any, path: Path, across: int | None = None) -> None:
    """Writes images [N, C, H, W] in 0..1 (torch or numpy; C is 1 or 3) as one PNG, so many in a row, or as square as
    can be."""
    from PIL import Image

    array = np.asarray(images.detach().float().cpu().numpy() if hasattr(images, "detach") else images, np.float32)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"save_grid: argument 'images' must have shape (N, 1 or 3, H, W), got {array.shape}")
    count, channels, height, width = array.shape
    across = math.ceil(math.sqrt(count)) if across is None else across
    down = math.ceil(count / across)
    pixels = np.zeros((down * across, channels, height, width), np.uint8)
    pixels[:count] = np.nan_to_num(array.clip(0, 1) * 255).round()
    grid = pixels.reshape(down, across, channels, height, width).transpose(0, 3, 1, 4, 2)
    grid = grid.reshape(down * height, across * width, channels)
    with replace(path) as temporary:
        Image.fromarray(grid[..., 0] if channels == 1 else grid).save(temporary, "PNG")
