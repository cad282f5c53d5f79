"""MAST's failure modes by version, and how versions correspond."""

from __future__ import annotations

from dataclasses import dataclass, field

CATEGORIES = {
    "1": "Specification and system design",
    "2": "Inter-agent misalignment",
    "3": "Task verification",
}


@dataclass(frozen=True)
class Mode:
    """A failure mode: its code ("3.2"), name, what it means, and the stage it shows in (pre, exec or post)."""

    code: str
    name: str
    meaning: str
    stage: str
    concepts: frozenset[str] = field(repr=False, default=frozenset())

    @property
    def category(self) -> str:
        """The category's name."""
        return CATEGORIES[self.code[0]]


@dataclass(frozen=True)
class Taxonomy:
    """The modes of one version, in the order of their codes."""

    version: str
    modes: tuple[Mode, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes."""
        return tuple(m.code for m in self.modes)

    def __getitem__(self, code: str) -> Mode:
        """The mode of a code, "3.2" or "FM-3.2"; KeyError if there is none."""
        for mode in self.modes:
            if mode.code == code.upper().removeprefix("FM-"):
                return mode
        raise KeyError(code)


_COMMON = [
    ("1.1", "Disobey task specification", "A requirement or constraint of the task is not kept.", "pre"),
    ("1.2", "Disobey role specification", "An agent acts outside its role, as if it were another one.", "pre"),
    ("1.3", "Step repetition", "A step that is already done is done again without need.", "exec"),
    ("1.4", "Loss of conversation history", "Recent context is lost and the work returns to an older state.", "exec"),
    ("1.5", "Unaware of termination conditions", "The agents do not see that it is time to stop.", "post"),
    ("2.1", "Conversation reset", "The dialogue begins anew without need, and what was reached is lost.", "pre"),
    ("2.2", "Fail to ask for clarification", "Unclear or missing data is not asked about before going on.", "exec"),
    ("2.3", "Task derailment", "The work drifts away from the goal of the task.", "exec"),
    ("2.4", "Information withholding", "An agent keeps to itself what another one would need.", "exec"),
    ("2.5", "Ignored other agent's input", "What another agent said or advised is not taken up.", "exec"),
    ("2.6", "Reasoning-action mismatch", "What an agent does is not what it reasoned or announced.", "exec"),
    (
        "3.1",
        "Premature termination",
        "The work ends before the goal is reached or the needed data are exchanged.",
        "post",
    ),
]
_VERIFICATION = {
    "paper-v3": (
        ("No or incomplete verification", "The result is not checked, or only in part.", {"missing", "partial"}),
        ("Incorrect verification", "The result is checked, but the check itself is wrong.", {"wrong"}),
    ),
    "definitions": (
        ("Weak verification", "The check covers only a part of what matters.", {"partial"}),
        ("No or incorrect verification", "There is no check, or the check is wrong.", {"missing", "wrong"}),
    ),
    "agentdash-0.1.0": (
        ("No or incorrect verification", "There is no check, or the check is wrong.", {"missing", "wrong"}),
        ("Weak verification", "The check covers only a part of what matters.", {"partial"}),
    ),
}


def _taxonomy(version: str) -> Taxonomy:
    modes = [Mode(*row, frozenset({row[0]})) for row in _COMMON]
    for code, (name, meaning, concepts) in zip(("3.2", "3.3"), _VERIFICATION[version], strict=True):
        modes.append(Mode(code, name, meaning, "post", frozenset(concepts)))
    return Taxonomy(version, tuple(modes))


TAXONOMIES = {version: _taxonomy(version) for version in _VERIFICATION}
"""By version: "paper-v3" (the paper's text), "definitions" (definitions.txt of the authors' repository) and
"agentdash-0.1.0" (their package, and the notebook)."""
PAPER = TAXONOMIES["paper-v3"]


def crosswalk(code: str, source: Taxonomy, target: Taxonomy) -> tuple[tuple[str, ...], bool]:
    """The codes of `target` that share a meaning with a code of `source`, and whether they mean exactly the same.

    A verdict can be carried over only where it is exact; else a trace must be judged anew.
    """
    wanted = source[code].concepts
    found = tuple(m for m in target.modes if m.concepts & wanted)
    return tuple(m.code for m in found), len(found) == 1 and found[0].concepts == wanted
