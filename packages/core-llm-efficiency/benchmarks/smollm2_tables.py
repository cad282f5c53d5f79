"""Density against loss and bits against loss of SmolLM2-135M on a text: python benchmarks/smollm2_tables.py TEXT.

The README's tables are of Debian's policy manual: `apt-get download debian-policy`, `dpkg-deb -x`, and policy.txt.gz in
it. --brief measures only the rows that the acceptance bars name; --skip is the number of characters passed over.
"""

from __future__ import annotations

import argparse
import gzip
import pathlib
from typing import Any

import torch
from core_llm_efficiency import smollm2
from core_llm_efficiency.claims import vidkv, xattention
from core_registry.timing import one_torch_thread

HALF = 2048


def show(found: dict[str, dict[str, tuple[Any, float]]], unit: str) -> None:
    """One line a setting: `unit` and loss of each task."""
    for name in next(iter(found.values())):
        cells = (f"{task}: {unit} {of[name][1]:.3f}, loss {of[name][0].mean():.3f}" for task, of in found.items())
        print(f"{name}: {'; '.join(cells)}", flush=True)


def main() -> None:
    """Measures and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--skip", type=int, default=60000)
    parser.add_argument("--brief", action="store_true")
    chosen = parser.parse_args()
    opened = gzip.open if chosen.text.suffix == ".gz" else open
    with opened(chosen.text, "rt", encoding="utf-8") as file:
        text = file.read()[chosen.skip :][:40000]
    ids = torch.tensor(smollm2.load()[0](text)["input_ids"])
    rows, settings = dict(xattention.ROWS), dict(vidkv.SETTINGS)
    if chosen.brief:
        rows = {name: rows[name] for name in ("dense", xattention.MAIN, "sink and recent")}
        settings = {name: settings[name] for name in ("full precision", vidkv.MAIN)}
    with one_torch_thread():
        first, count = vidkv.PREFIX, vidkv.SCORED
        copied = torch.cat([ids[:first], ids[first // 4 : first // 4 + count]])
        show(vidkv.likelihoods({"text": ids[: first + count], "copy": copied}, settings), "bits")
        whole = ids[: 2 * HALF]
        tasks = {"text": (whole, HALF), "copy": (whole[:HALF].repeat(2), HALF + 16)}
        show(xattention.likelihoods(tasks, rows=rows), "density")


if __name__ == "__main__":
    main()
