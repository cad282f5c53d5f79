"""How a judge may write down its verdicts: what the parser must read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from ..mast import Taxonomy

WORD = {True: "yes", False: "no"}


def forms(taxonomy: Taxonomy) -> dict[str, Callable[[Sequence[bool]], str]]:
    """For each form a function of the verdicts."""
    names = [m.name for m in taxonomy.modes]
    head = "A. Nobody checked: no verification or incomplete verification, see 3.2.\nB. no\n"

    def lines(verdicts, line):
        return "\n".join(line(c, n, WORD[v]) for c, n, v in zip(taxonomy.codes, names, verdicts, strict=True))

    return {
        "short": lambda v: f"@@\n{head}" + lines(v, lambda c, n, w: f"C.{c} {w}") + "\n@@",
        "names": lambda v: head + lines(v, lambda c, n, w: f"C. FM-{c} {n}: {w}, as no check was made"),
        "table": lambda v: (
            "| Mode | Name | Found |\n|---|---|---|\n" + lines(v, lambda c, n, w: f"| {c} | {n} | {w.title()} |")
        ),
        "json": lambda v: (
            "```json\n"
            + json.dumps({f"{c} {n}": x for c, n, x in zip(taxonomy.codes, names, v, strict=True)})
            + "\n```"
        ),
        "bold": lambda v: lines(v, lambda c, n, w: f"- **{c} {n.title()}** - **{w.upper()}**"),
        "crlf": lambda v: ("@@\n" + head + lines(v, lambda c, n, w: f"C.{c}. {n}\n  {w}.") + "\n@@").replace(
            "\n", "\r\n"
        ),
    }
