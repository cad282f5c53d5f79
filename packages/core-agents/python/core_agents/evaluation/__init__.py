"""Evaluation of agents over recorded runs (the survey 2503.16416): trajectories, steps, milestones, safety, cost.

A run is an object with a `task`, its `success` and more, see :func:`read_runs`; :func:`summarise` gives all figures of
a system, :func:`compare` the difference of two, :func:`report` a page of them. :func:`judge_success` asks a judge.
"""

from .judged import RUBRIC, judge_success, success_prompt
from .report import report
from .runs import NUMBERS, PERCENTILES, compare, read_runs, summarise, to_json
from .safety import Policy, Violation
from .steps import Step, check_milestones, is_error, milestone_score, milestones_reached, steps
from .trajectories import (
    TRAJECTORY_MODES,
    Matcher,
    Message,
    ToolCall,
    canonical,
    match_traces,
    tool_calls,
    trajectory_figures,
    trajectory_match,
    trajectory_scores,
)

__all__ = [
    "NUMBERS", "PERCENTILES", "RUBRIC", "TRAJECTORY_MODES", "Matcher", "Message", "Policy", "Step", "ToolCall",
    "Violation", "canonical", "check_milestones", "compare", "is_error", "judge_success", "match_traces",
    "milestone_score", "milestones_reached", "read_runs", "report", "steps", "success_prompt", "summarise", "to_json",
    "tool_calls", "trajectory_figures", "trajectory_match", "trajectory_scores",
]  # fmt: skip
