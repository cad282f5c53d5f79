#pragma once
#include <core/op.hpp>
#include <core_agents/behaviour_tree.hpp>

namespace core_agents {
inline constexpr auto ops =
    core::op_set(core::op<"check_program", &check_program>(
                     "Checks a behaviour-tree program (flat pre-order arrays) and writes into `rows` each node's row of `state` "
                     "(or -1) and into `sizes` how many rows `state` and `counters` have.",
                     {"kinds[P]", "ends[P]", "features[P]", "comparisons[P]", "thresholds[P]", "action_ids[P]", "results[P]", "params[P]",
                      "num_features", "rows[P]", "sizes[2]"},
                     {.paper = "2503.13356"}),
                 core::op<"tick", &tick>(
                     "Ticks one behaviour tree for A agents at once: conditions read `observations`, actions write an id into `actions`, "
                     "`statuses` is the root's status. Semantics of py_trees' tick_once. Agents that `mask` leaves out keep everything.",
                     {"kinds[P]", "ends[P]", "features[P]", "comparisons[P]", "thresholds[P]", "action_ids[P]", "results[P]", "params[P]",
                      "observations[A,F]", "mask[A]", "state[R,A]", "counters[C,A]", "actions[A]", "statuses[A]"},
                     {.paper = "2503.13356"}));
}  // namespace core_agents
