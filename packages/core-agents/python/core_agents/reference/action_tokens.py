"""VPT's action rules and JARVIS-VLA's tokens as plain Python over names: dictionaries in, dictionaries out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

BUTTONS = ["attack", "back", "forward", "jump", "left", "right", "sneak", "sprint", "use", "drop", "inventory"]
BUTTONS += [f"hotbar.{i}" for i in range(1, 10)]
GROUPS = {
    "hotbar": ["none", *BUTTONS[11:]],
    "fore_back": ["none", "forward", "back"],
    "left_right": ["none", "left", "right"],
    "sprint_sneak": ["none", "sprint", "sneak"],
    **{name: ["none", name] for name in ("use", "drop", "attack", "jump", "camera")},
}
JOINT = [*itertools.product(*GROUPS.values()), "inventory"]
INDEX = {combination: i for i, combination in enumerate(JOINT)}
LAYOUTS = {
    75: ["inventory", "marks", *GROUPS, "x", "y"],
    51: [*(g for g in GROUPS if g != "camera"), "inventory", "x", "y"],
}


def bin_of(angle: Any, maxval: float, binsize: float, mu: float) -> np.ndarray:
    """The mu-law bin of angles, in float64."""
    x = np.clip(np.asarray(angle, np.float64), -maxval, maxval)
    if mu > 0:
        x = np.sign(x) * np.log(1 + mu * np.abs(x) / maxval) / np.log(1 + mu) * maxval
    return np.round((x + maxval) / binsize).astype(np.int64)


def angle_of(index: Any, maxval: float, binsize: float, mu: float) -> np.ndarray:
    """The angle in the middle of bins."""
    x = np.asarray(index, np.float64) * binsize - maxval
    if mu > 0:
        x = np.sign(x) / mu * ((1 + mu) ** (np.abs(x) / maxval) - 1) * maxval
    return x


def encode_actions(args: dict[str, Any]) -> dict[str, Any]:
    """Joint ids, one action after the other."""
    settings = args["maxval"], args["binsize"], args["mu"]
    bins = 2 * round(settings[0] / settings[1]) + 1
    button_ids, camera_ids = [], []
    for row, angles in zip(args["buttons"], args["camera"], strict=True):
        pressed = {name for name, on in zip(BUTTONS, row, strict=True) if on}
        x, y = bin_of(angles, *settings)
        choice = []
        for group in GROUPS.values():
            held = [name for name in group if name in pressed]
            opposite = held in (["forward", "back"], ["left", "right"])
            choice.append("none" if opposite or not held else held[-1])
        choice[-1] = "none" if x == y == bins // 2 else "camera"
        if "inventory" in pressed:
            x = y = bins // 2
        button_ids.append(INDEX["inventory" if "inventory" in pressed else tuple(choice)])
        camera_ids.append(x * bins + y)
    return {"button_ids": np.array(button_ids, np.int32), "camera_ids": np.array(camera_ids, np.int32)}


def decode_actions(args: dict[str, Any]) -> dict[str, Any]:
    """Buttons and angles, one action after the other."""
    settings = args["maxval"], args["binsize"], args["mu"]
    bins = 2 * round(settings[0] / settings[1]) + 1
    buttons = np.zeros((len(args["button_ids"]), len(BUTTONS)), bool)
    camera = np.zeros((len(buttons), 2))
    for i, (button, view) in enumerate(zip(args["button_ids"], args["camera_ids"], strict=True)):
        choice = ("inventory",) if JOINT[button] == "inventory" else JOINT[button]
        buttons[i] = [name in choice for name in BUTTONS]
        if "camera" in choice:
            camera[i] = angle_of(divmod(int(view), bins), *settings)
    return {"buttons": buttons, "camera": camera.astype(np.float32)}


def names(vocabulary: int) -> list[tuple[str, Any]]:
    """(group, value) of each token of a vocabulary."""
    bins = range(21 if vocabulary == 75 else 11)
    values = {**GROUPS, "inventory": ["none", "inventory"], "marks": ["begin", "end"], "x": bins, "y": bins}
    return [(group, value) for group in LAYOUTS[vocabulary] for value in values[group]]


def encode_tokens(args: dict[str, Any]) -> dict[str, Any]:
    """Tokens by name."""
    ids = {name: args["first_id"] + i for i, name in enumerate(names(args["vocabulary"]))}
    bins = 21 if args["vocabulary"] == 75 else 11
    tokens = np.full(args["tokens"].shape, args["pad_id"])
    lengths = []
    for b, row in enumerate(zip(args["button_ids"], args["camera_ids"], strict=True)):
        written: list[tuple[str, Any]] = []
        for button, view in zip(*row, strict=True):
            combination = JOINT[button]
            if combination == "inventory":
                parts = [("inventory", "inventory")]
            else:
                chosen = zip(GROUPS, combination, strict=True)
                parts = [(g, v) for g, v in chosen if v != "none" and g != "camera"]
            x, y = divmod(int(view), bins)
            parts += [("x", x), ("y", y)]
            written += [("marks", "begin"), *parts, ("marks", "end")] if args["vocabulary"] == 75 else parts
        tokens[b, : len(written)] = [ids[name] for name in written]
        lengths.append(len(written))
    return {"tokens": tokens, "lengths": np.array(lengths, np.int64)}


def decode_tokens(args: dict[str, Any]) -> dict[str, Any]:
    """Actions by the names of their tokens: cut the row into actions, then fill in each of them."""
    known = names(args["vocabulary"])
    marks, bins = args["vocabulary"] == 75, 21 if args["vocabulary"] == 75 else 11
    rows, chunk = args["button_ids"].shape
    button_ids, camera_ids = np.zeros((rows, chunk), np.int32), np.full((rows, chunk), bins * bins // 2, np.int32)
    counts = np.zeros(rows, np.int64)
    for b, row in enumerate(args["tokens"].tolist()):
        read = [known[t - args["first_id"]] for t in row if 0 <= t - args["first_id"] < len(known)]
        actions, current = [], None if marks else []
        for name in read:
            if name == ("marks", "begin"):
                current = []
            elif name == ("marks", "end"):
                if current is not None:
                    actions.append(current)
                current = None
            elif current is not None:
                current.append(name)
                if not marks and name[0] == "y":
                    actions.append(current)
                    current = []
        counts[b] = len(actions)
        for c, action in enumerate(actions[:chunk]):
            last = {
                "inventory": "none",
                "x": bins // 2,
                "y": bins // 2,
                **dict.fromkeys(GROUPS, "none"),
                **dict(action),
            }
            if last["inventory"] == "inventory":
                button_ids[b, c] = INDEX["inventory"]
                continue
            camera_ids[b, c] = last["x"] * bins + last["y"]
            last["camera"] = "none" if camera_ids[b, c] == bins * bins // 2 else "camera"
            button_ids[b, c] = INDEX[tuple(last[g] for g in GROUPS)]
    return {"button_ids": button_ids, "camera_ids": camera_ids, "counts": counts}
