"""MAST, the failure modes of multi-agent systems (2503.13657): taxonomies, the judge's prompt and answer, detectors.

The published sources disagree on the modes 3.2 and 3.3, so a taxonomy has a version, and figures of different versions
are brought together with :func:`crosswalk`, or not at all. The parser reads an answer by its form: a mode's name, which
may hold "no" or "not", is never taken for a verdict. Four detectors need no model.
"""

from .answers import MAX_TRACE, Answer, judge_prompt, judge_trace, parse_answer
from .detectors import STOP, Finding, detect, message_text, repeated, trace_text
from .taxonomy import CATEGORIES, PAPER, TAXONOMIES, Mode, Taxonomy, crosswalk

__all__ = [
    "CATEGORIES", "MAX_TRACE", "PAPER", "STOP", "TAXONOMIES", "Answer", "Finding", "Mode", "Taxonomy", "crosswalk",
    "detect", "judge_prompt", "judge_trace", "message_text", "parse_answer", "repeated", "trace_text",
]  # fmt: skip
