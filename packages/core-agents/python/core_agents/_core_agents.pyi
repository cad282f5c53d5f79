# Made by `core stubs core_agents`.
from typing import Any, SupportsIndex

def check_program(
    kinds: Any,  # uint8[P]
    ends: Any,  # int32[P]
    features: Any,  # int32[P]
    comparisons: Any,  # uint8[P]
    thresholds: Any,  # float32[P]
    action_ids: Any,  # int32[P]
    results: Any,  # uint8[P]
    params: Any,  # int32[P]
    code_ops: Any,  # uint8[K]
    code_lefts: Any,  # int32[K]
    code_rights: Any,  # int32[K]
    code_values: Any,  # float32[K]
    num_features: SupportsIndex,
    rows: Any,  # out int32[P]
    sizes: Any,  # out int64[2]
) -> None:
    """Checks a behaviour-tree program (flat pre-order arrays, code of its expressions) and writes into `rows` each node's row of `state` (or -1) and into `sizes` how many rows `state` and `counters` have."""

def tick(
    kinds: Any,  # uint8[P]
    ends: Any,  # int32[P]
    features: Any,  # int32[P]
    comparisons: Any,  # uint8[P]
    thresholds: Any,  # float32[P]
    action_ids: Any,  # int32[P]
    results: Any,  # uint8[P]
    params: Any,  # int32[P]
    code_ops: Any,  # uint8[K]
    code_lefts: Any,  # int32[K]
    code_rights: Any,  # int32[K]
    code_values: Any,  # float32[K]
    observations: Any,  # float32[A,F]
    mask: Any | None,  # bool[A]
    state: Any,  # out uint8[R,A]
    counters: Any,  # out int32[C,A]
    actions: Any,  # out int32[A]
    statuses: Any,  # out uint8[A]
    log: Any | None,  # out uint8[P,A]
) -> None:
    """Ticks one behaviour tree for A agents at once: conditions read `observations`, actions write an id into `actions`, `statuses` is the root's status, `log` every node's. Semantics of py_trees' tick_once. Agents that `mask` leaves out keep everything."""

def tick_scalar(
    kinds: Any,  # uint8[P]
    ends: Any,  # int32[P]
    features: Any,  # int32[P]
    comparisons: Any,  # uint8[P]
    thresholds: Any,  # float32[P]
    action_ids: Any,  # int32[P]
    results: Any,  # uint8[P]
    params: Any,  # int32[P]
    code_ops: Any,  # uint8[K]
    code_lefts: Any,  # int32[K]
    code_rights: Any,  # int32[K]
    code_values: Any,  # float32[K]
    observations: Any,  # float32[A,F]
    mask: Any | None,  # bool[A]
    state: Any,  # out uint8[R,A]
    counters: Any,  # out int32[C,A]
    actions: Any,  # out int32[A]
    statuses: Any,  # out uint8[A]
    log: Any | None,  # out uint8[P,A]
) -> None:
    """What `tick` does, one agent at a time and only the nodes that it reaches: faster for a few agents."""

def encode_actions(
    buttons: Any,  # bool[N,20]
    camera: Any,  # float32[N,2]
    maxval: float,
    binsize: float,
    mu: float,
    button_ids: Any,  # out int32[N]
    camera_ids: Any,  # out int32[N]
) -> None:
    """Minecraft buttons (VPT's 20) and camera angles in degrees to joint ids by VPT's rules: opposite keys cancel, else the later button of a group wins; angles fall into mu-law bins of width `binsize`."""

def decode_actions(
    button_ids: Any,  # int32[N]
    camera_ids: Any,  # int32[N]
    maxval: float,
    binsize: float,
    mu: float,
    buttons: Any,  # out bool[N,20]
    camera: Any,  # out float32[N,2]
) -> None:
    """Joint ids back to buttons and camera angles (the middle of the bin); where the flag is off the camera stands still."""

def encode_tokens(
    button_ids: Any,  # int32[B,C]
    camera_ids: Any,  # int32[B,C]
    vocabulary: SupportsIndex,
    first_id: SupportsIndex,
    pad_id: SupportsIndex,
    tokens: Any,  # out int64[B,W]
    lengths: Any,  # out int64[B]
) -> None:
    """Chunks of C joint actions to JARVIS-VLA's tokens, `vocabulary` 51 or 75 with ids from `first_id`; `lengths` tells how many of a row are tokens, the rest is `pad_id`."""

def decode_tokens(
    tokens: Any,  # int64[B,T]
    vocabulary: SupportsIndex,
    first_id: SupportsIndex,
    button_ids: Any,  # out int32[B,C]
    camera_ids: Any,  # out int32[B,C]
    counts: Any,  # out int64[B]
) -> None:
    """Any tokens to chunks of joint actions: unknown tokens are skipped, `counts` is the number of actions of a row, rows are filled up with null actions."""

def agreement_tables(
    ratings: Any,  # int32[N,J,R]
    classes: SupportsIndex,
    statistic: str,
    tables: Any,  # out float64[N,L,C]
) -> None:
    """Counts of each unit's ratings by which agreement is measured: for Cohen's and Fleiss' kappa and Krippendorff's alpha."""

def bootstrap_sums(
    rows: Any,  # float64[N,M]
    seed: SupportsIndex,
    sums: Any,  # out float64[B,M]
) -> None:
    """Sums of rows drawn with replacement, as many as there are, B times."""

def agreement(
    tables: Any,  # float64[B,C]
    values: Any,  # float64[K]
    raters: SupportsIndex,
    statistic: str,
    metric: str,
    out: Any,  # out float64[B]
) -> None:
    """Cohen's kappa, Fleiss' kappa or Krippendorff's alpha of summed tables; NaN where it is not defined."""

def text_sketches(
    text: Any,  # uint8[T]
    offsets: Any,  # int64[M+1]
    sketches: Any,  # out int64[M,K]
) -> None:
    """Minwise hashes of the runs of three words of each text, by which texts that say nearly the same are found."""

def near_duplicates(
    sketches: Any,  # int64[M,K]
    agents: Any,  # int32[M]
    threshold: float,
    earlier: Any,  # out int32[M]
) -> None:
    """For each message the first earlier one of the same agent that says nearly the same, or -1."""

def read_traces(
    text: Any,  # uint8[T]
    offsets: Any,  # int64[D+1]
    format: str,
    lines: bool,
    rows: Any,  # out int64[18,M]
    runs: Any,  # out int64[14,R]
    values: Any,  # out float64[4,R]
    buffer: Any,  # out uint8[B]
    failures: Any,  # out int64[3,F]
    sizes: Any,  # out int64[4]
) -> None:
    """Recorded traces (inspect-ai, OpenAI messages, OpenTelemetry, OpenInference, LangSmith) to columns; `sizes` tells how many rows, runs, bytes of text and failures there are, what does not fit is left out."""

def match_trajectories(
    rows: Any,  # int64[18,M]
    text: Any,  # uint8[T]
    reference_rows: Any,  # int64[18,N]
    reference_text: Any,  # uint8[U]
    ignore_arguments: bool,
    modes: Any,  # out bool[R,7]
    counts: Any,  # out int64[R,3]
) -> None:
    """The tool calls of R recorded runs against those of their references: each mode of a match, and how many calls there are on both sides and how many are equal, one to one."""

def zip_members(
    archive: Any,  # uint8[T]
    members: Any,  # out int64[8,E]
    sizes: Any,  # out int64[2]
) -> None:
    """The members of a zip archive, by its directory or, where that is damaged, by their own headers; all ranges lie within it."""
