#pragma once
#include <core/op.hpp>
#include <core_agents/action_tokens.hpp>
#include <core_agents/agreement.hpp>
#include <core_agents/behaviour_tree.hpp>
#include <core_agents/traces.hpp>
#include <core_agents/trajectories.hpp>

namespace core_agents {
inline constexpr auto ops = core::op_set(
    core::op<"check_program", &check_program>(
        "Checks a behaviour-tree program (flat pre-order arrays, code of its expressions) and writes into `rows` each node's row of "
        "`state` "
        "(or -1) and into `sizes` how many rows `state` and `counters` have.",
        {"kinds[P]", "ends[P]", "features[P]", "comparisons[P]", "thresholds[P]", "action_ids[P]", "results[P]", "params[P]", "code_ops[K]",
         "code_lefts[K]", "code_rights[K]", "code_values[K]", "num_features", "rows[P]", "sizes[2]"},
        {.paper = "2503.13356"}),
    core::op<"tick", &tick CORE_IF_CUDA(&tick_cuda)>(
        "Ticks one behaviour tree for A agents at once: conditions read `observations`, actions write an id into `actions`, "
        "`statuses` is the root's status, `log` every node's. Semantics of py_trees' tick_once. Agents that `mask` leaves out keep "
        "everything.",
        {"kinds[P]", "ends[P]", "features[P]", "comparisons[P]", "thresholds[P]", "action_ids[P]", "results[P]", "params[P]", "code_ops[K]",
         "code_lefts[K]", "code_rights[K]", "code_values[K]", "observations[A,F]", "mask[A]", "state[R,A]", "counters[C,A]", "actions[A]",
         "statuses[A]", "log[P,A]"},
        {.paper = "2503.13356"}),
    core::op<"tick_scalar", &tick_scalar>(
        "What `tick` does, one agent at a time and only the nodes that it reaches: faster for a few agents.",
        {"kinds[P]", "ends[P]", "features[P]", "comparisons[P]", "thresholds[P]", "action_ids[P]", "results[P]", "params[P]", "code_ops[K]",
         "code_lefts[K]", "code_rights[K]", "code_values[K]", "observations[A,F]", "mask[A]", "state[R,A]", "counters[C,A]", "actions[A]",
         "statuses[A]", "log[P,A]"},
        {.paper = "2503.13356"}),
    core::op<"encode_actions", &encode_actions>(
        "Minecraft buttons (VPT's 20) and camera angles in degrees to joint ids by VPT's rules: opposite keys cancel, else the "
        "later button of a group wins; angles fall into mu-law bins of width `binsize`.",
        {"buttons[N,20]", "camera[N,2]", "maxval", "binsize", "mu", "button_ids[N]", "camera_ids[N]"}, {.paper = "2503.16365"}),
    core::op<"decode_actions", &decode_actions>(
        "Joint ids back to buttons and camera angles (the middle of the bin); where the flag is off the camera stands still.",
        {"button_ids[N]", "camera_ids[N]", "maxval", "binsize", "mu", "buttons[N,20]", "camera[N,2]"}, {.paper = "2503.16365"}),
    core::op<"encode_tokens", &encode_tokens>(
        "Chunks of C joint actions to JARVIS-VLA's tokens, `vocabulary` 51 or 75 with ids from `first_id`; `lengths` tells how "
        "many of a row are tokens, the rest is `pad_id`.",
        {"button_ids[B,C]", "camera_ids[B,C]", "vocabulary", "first_id", "pad_id", "tokens[B,W]", "lengths[B]"}, {.paper = "2503.16365"}),
    core::op<"decode_tokens", &decode_tokens>(
        "Any tokens to chunks of joint actions: unknown tokens are skipped, `counts` is the number of actions of a row, rows are "
        "filled up with null actions.",
        {"tokens[B,T]", "vocabulary", "first_id", "button_ids[B,C]", "camera_ids[B,C]", "counts[B]"}, {.paper = "2503.16365"}),
    core::op<"agreement_tables", &agreement_tables>(
        "Counts of each unit's ratings by which agreement is measured: for Cohen's and Fleiss' kappa and Krippendorff's alpha.",
        {"ratings[N,J,R]", "classes", "statistic", "tables[N,L,C]"}, {.paper = "2503.13657"}),
    core::op<"bootstrap_sums", &bootstrap_sums>("Sums of rows drawn with replacement, as many as there are, B times.",
                                                {"rows[N,M]", "seed", "sums[B,M]"}, {.paper = "2503.13657", .ns_per_element = 100}),
    core::op<"agreement", &agreement>("Cohen's kappa, Fleiss' kappa or Krippendorff's alpha of summed tables; NaN where it is not defined.",
                                      {"tables[B,C]", "values[K]", "raters", "statistic", "metric", "out[B]"}, {.paper = "2503.13657"}),
    core::op<"text_sketches", &text_sketches>(
        "Minwise hashes of the runs of three words of each text, by which texts that say nearly the same are found.",
        {"text[T]", "offsets[M+1]", "sketches[M,K]"}, {.paper = "2503.13657", .ns_per_element = 2}),
    core::op<"near_duplicates", &near_duplicates>(
        "For each message the first earlier one of the same agent that says nearly the same, or -1.",
        {"sketches[M,K]", "agents[M]", "threshold", "earlier[M]"}, {.paper = "2503.13657", .ns_per_element = 20}),
    core::op<"read_traces", &read_traces>(
        "Recorded traces (inspect-ai, OpenAI messages, OpenTelemetry, OpenInference, LangSmith) to columns; `sizes` tells how many "
        "rows, runs, bytes of text and failures there are, what does not fit is left out.",
        {"text[T]", "offsets[D+1]", "format", "lines", "rows[18,M]", "runs[14,R]", "values[4,R]", "buffer[B]", "failures[3,F]", "sizes[4]"},
        {.paper = "2503.16416"}),
    core::op<"match_trajectories", &match_trajectories>(
        "The tool calls of R recorded runs against those of their references: each mode of a match, and how many calls there are on both "
        "sides and how many are equal, one to one.",
        {"rows[18,M]", "text[T]", "reference_rows[18,N]", "reference_text[U]", "ignore_arguments", "modes[R,7]", "counts[R,3]"},
        {.paper = "2503.16416", .ns_per_element = 5}),
    core::op<"zip_members", &zip_members>(
        "The members of a zip archive, by its directory or, where that is damaged, by their own headers; all ranges lie within it.",
        {"archive[T]", "members[8,E]", "sizes[2]"}));
}  // namespace core_agents
