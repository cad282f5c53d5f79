"""Minecraft actions as tokens of a language model: VPT's joint actions, JARVIS-VLA's vocabularies (2503.16365).

buttons and angles --:func:`encode_actions`--> joint ids --:meth:`ActionTokenizer.encode`--> tokens, and back.
The groups of buttons, the order of ids and the rules stand in `core_agents/action_tokens.hpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from core_registry.arrays import as_array, empty

from . import _core_agents as _C

BUTTONS = (
    "attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory",
    *(f"hotbar.{i}" for i in range(1, 10)),
)  # fmt: skip
"""The columns of `buttons`: VPT's names in VPT's order."""
INVENTORY = 8640
"""The joint button id of `inventory`, which excludes everything else."""


@dataclass(frozen=True)
class CameraBins:
    """How camera angles fall into bins: clipped to +-`maxval` degrees, mu-law (`mu` 0: linear), bins of `binsize`."""

    maxval: float = 10.0
    binsize: float = 1.0
    mu: float = 20.0

    @property
    def bins(self) -> int:
        """Bins of an axis; a camera id is `first axis * bins + second axis`."""
        return 2 * round(self.maxval / self.binsize) + 1

    @property
    def null_id(self) -> int:
        """The camera id of standing still."""
        return self.bins**2 // 2


JARVIS_CAMERA = CameraBins()
"""21 bins, as JARVIS-VLA's program has them; for the vocabulary of 75."""
VPT_CAMERA = CameraBins(10.0, 2.0, 10.0)
"""11 bins, as VPT has them; for the vocabulary of 51."""


def stack_buttons(action: Mapping[str, Any]) -> np.ndarray:
    """The buttons of MineRL's dictionary (name -> 0 or 1, numbers or arrays [N]) as bool [N, 20]; missing ones are off.

    Raises ValueError for a value that is neither 0 nor 1.
    """
    columns = np.broadcast_arrays(*(np.atleast_1d(np.asarray(action.get(name, 0))) for name in BUTTONS))
    stacked = np.stack(columns, -1)
    if not np.isin(stacked, (0, 1)).all():
        raise ValueError("argument 'action' must hold 0 or 1 for each button")
    return stacked.astype(bool)


def encode_actions(buttons: Any, camera: Any, bins: CameraBins = JARVIS_CAMERA) -> tuple[Any, Any]:
    """Joint ids by VPT's rules: opposite keys cancel, else the later button of a group wins, inventory excludes all.

    buttons: bool [N, 20] in the order of :data:`BUTTONS`; camera: float32 [N, 2] in degrees, finite.
    Returns button_ids int32 [N] in 0..8640 and camera_ids int32 [N] in 0..bins^2 - 1.
    """
    buttons = as_array(buttons, "bool", "buttons")
    camera = as_array(camera, "float32", "camera", like=buttons)
    button_ids, camera_ids = (empty((len(buttons),), "int32", like=buttons) for _ in range(2))
    _C.encode_actions(buttons, camera, bins.maxval, bins.binsize, bins.mu, button_ids, camera_ids)
    return button_ids, camera_ids


def decode_actions(button_ids: Any, camera_ids: Any, bins: CameraBins = JARVIS_CAMERA) -> tuple[Any, Any]:
    """Buttons bool [N, 20] and camera float32 [N, 2] (middles of the bins) of joint ids int32 [N].

    Where the id says that the camera is off, or is inventory, the camera is (0, 0).
    """
    button_ids = as_array(button_ids, "int32", "button_ids")
    camera_ids = as_array(camera_ids, "int32", "camera_ids", like=button_ids)
    buttons = empty((len(button_ids), len(BUTTONS)), "bool", like=button_ids)
    camera = empty((len(button_ids), 2), "float32", like=button_ids)
    _C.decode_actions(button_ids, camera_ids, bins.maxval, bins.binsize, bins.mu, buttons, camera)
    return buttons, camera


@dataclass(frozen=True)
class ActionTokenizer:
    """Joint actions to tokens of a language model and back.

    vocabulary: 75 (JARVIS-VLA's program: 21 camera bins, each action between two marks; 4 to 12 tokens) or 51 (the
    paper's count, 11 bins, an action ends with its second camera token; 2 to 10 tokens). `first_id` is the id of the
    first of them; the default is where Qwen2-VL keeps `<|reserved_special_token_176|>`. `pad_id` fills rows up.
    Unlike JARVIS-VLA's released program it keeps `inventory`.
    """

    vocabulary: int = 75
    first_id: int = 151833
    pad_id: int = 151643

    @property
    def camera(self) -> CameraBins:
        """The bins that this vocabulary has tokens for."""
        return VPT_CAMERA if self.vocabulary == 51 else JARVIS_CAMERA

    @property
    def texts(self) -> list[str]:
        """The tokens as text, for a tokenizer to add as special: Qwen2-VL's names, or `<|action_0|>` ... for 51."""
        if self.vocabulary == 51:
            return [f"<|action_{i}|>" for i in range(51)]
        return [f"<|reserved_special_token_{i}|>" for i in range(176, 251)]

    def encode(self, button_ids: Any, camera_ids: Any) -> tuple[Any, Any]:
        """Tokens int64 [B, W] and how many of each row are tokens, int64 [B]; W is the most that C actions can need.

        button_ids, camera_ids: int32 [B, C], B chunks of C actions. Raises ValueError for a pair that is not legal:
        the flag (the lowest bit of a button id) is on exactly if the camera is not in its middle bin.
        """
        button_ids = as_array(button_ids, "int32", "button_ids")
        camera_ids = as_array(camera_ids, "int32", "camera_ids", like=button_ids)
        if button_ids.ndim != 2:
            raise ValueError(f"argument 'button_ids' must have shape (B, C), got {tuple(button_ids.shape)}")
        b, c = button_ids.shape
        tokens = empty((b, c * (10 if self.vocabulary == 51 else 12)), "int64", like=button_ids)
        lengths = empty((b,), "int64", like=button_ids)
        _C.encode_tokens(button_ids, camera_ids, self.vocabulary, self.first_id, self.pad_id, tokens, lengths)
        return tokens, lengths

    def decode(self, tokens: Any, chunk: int = 1) -> tuple[Any, Any, Any]:
        """Joint ids int32 [B, chunk] and [B, chunk], and the number of actions in each row, int64 [B].

        tokens: int64 [B, T], what a model wrote. Foreign tokens are skipped, those of an action may come in any order,
        an action that is not ended is dropped. Rows with fewer actions are filled up with null actions, further ones
        are only counted.
        """
        tokens = as_array(tokens, "int64", "tokens")
        if tokens.ndim != 2 or chunk < 0:
            raise ValueError(f"argument 'tokens' must have shape (B, T), got {tuple(tokens.shape)}, and chunk be >= 0")
        button_ids, camera_ids = (empty((len(tokens), chunk), "int32", like=tokens) for _ in range(2))
        counts = empty((len(tokens),), "int64", like=tokens)
        _C.decode_tokens(tokens, self.vocabulary, self.first_id, button_ids, camera_ids, counts)
        return button_ids, camera_ids, counts
