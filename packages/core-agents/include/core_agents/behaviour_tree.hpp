// core_agents/behaviour_tree.hpp - one behaviour tree, ticked for many agents at once.
//
// Semantics: py_trees 2.x `tick_once`; guards (conditions with a child) as in PORTAL, arXiv 2503.13356.
// A tree is a flat pre-order array of nodes, the program, that all agents share. What an agent keeps
// between ticks is one byte per node that can be RUNNING and one counter per node that counts.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

namespace core_agents {

/// The status of a node after a tick. INVALID: never ticked, or halted.
enum Status : std::uint8_t { INVALID = 0, SUCCESS = 1, FAILURE = 2, RUNNING = 3 };

/// How a condition compares `observation OP threshold`.
enum Comparison : std::uint8_t { LT = 0, LE = 1, GT = 2, GE = 3, EQ = 4, NE = 5 };

/// What a node does. Named after py_trees' classes and policies.
enum Kind : std::uint8_t {
  SEQUENCE = 0,         ///< any number of children
  SEQUENCE_MEMORY = 1,  ///< resumes at the RUNNING child
  SELECTOR = 2,
  SELECTOR_MEMORY = 3,
  PARALLEL_ALL = 4,       ///< SuccessOnAll(synchronise=False)
  PARALLEL_ALL_SYNC = 5,  ///< SuccessOnAll(synchronise=True): a child that succeeded waits for the others
  PARALLEL_ONE = 6,       ///< SuccessOnOne
  CONDITION = 7,          ///< leaf: SUCCESS if `feature comparison threshold`, else FAILURE
  GUARD = 8,              ///< one child (EternalGuard): FAILURE if the condition is false, else the child's status
  ACTION = 9,             ///< leaf: RUNNING for `param` ticks, then `result`; emits `action` on each of them
  ACTION_WHILE = 10,      ///< leaf: RUNNING while the condition holds, then `result`; emits `action`
  INVERTER = 11,          ///< this and the following: one child
  FAILURE_IS_RUNNING = 12,
  FAILURE_IS_SUCCESS = 13,
  RUNNING_IS_FAILURE = 14,
  RUNNING_IS_SUCCESS = 15,
  SUCCESS_IS_FAILURE = 16,
  SUCCESS_IS_RUNNING = 17,
  REPEAT = 18,    ///< `param` successes, -1 for ever
  RETRY = 19,     ///< `param` failures
  ONE_SHOT = 20,  ///< `param` 0: ON_COMPLETION, 1: ON_SUCCESSFUL_COMPLETION
  TIMEOUT = 21,   ///< FAILURE if still RUNNING on tick `param` + 1 (ticks, where py_trees has seconds)
  NUM_KINDS = 22
};

/// What an instruction of a program's code computes from x and y, in float32. Truth is 1 or 0 as a result and "not 0" as
/// an operand (NaN is true).
enum Operation : std::uint8_t {
  ADD = 0,
  SUB = 1,
  MUL = 2,
  DIV = 3,
  MINIMUM = 4,  ///< y < x ? y : x
  MAXIMUM = 5,  ///< x < y ? y : x
  IS_LT = 6,    ///< this and the following: 6 + Comparison
  IS_LE = 7,
  IS_GT = 8,
  IS_GE = 9,
  IS_EQ = 10,
  IS_NE = 11,
  AND = 12,
  OR = 13,
  NOT = 14,  ///< this and the following: of x alone
  NEGATE = 15,
  ABSOLUTE = 16,
  NUM_OPERATIONS = 17
};

/// Trees deeper than this are refused.
inline constexpr int max_depth = 256;
/// More instructions than this are refused.
inline constexpr int max_code = 1 << 16;

/// Checks a program and tells how much an agent remembers.
///
/// kinds[P]        Kind of each node, pre-order; node 0 is the root
/// ends[P]         one past the last node of the node's subtree
/// features[P]     column that a condition reads (CONDITION, GUARD, ACTION_WHILE): of the observations below
///                 num_features, from there on the result of instruction `feature - num_features`
/// comparisons[P]  Comparison of a condition
/// thresholds[P]   right-hand side of a condition; NaN is refused
/// action_ids[P]   what an action emits, >= 0, or -1 for nothing (ACTION, ACTION_WHILE)
/// results[P]      Status of a completed action, SUCCESS, FAILURE or RUNNING
/// params[P]       ticks, counts or policy, see Kind
/// code_ops[K]     Operation of each instruction; instruction k makes column num_features + k
/// code_lefts[K]   column that is x, below num_features + k; -1: the instruction's value
/// code_rights[K]  column that is y, likewise; ignored from NOT on
/// code_values[K]  a constant; NaN is refused where it is used
/// num_features    columns of the observations
/// rows[P]         out: the row of `state` that is the node's, -1 if it needs none
/// sizes[2]        out: rows of `state`, rows of `counters`
/// Throws ValueError that names the node. Fields that a kind does not use are ignored.
CORE_EXPORT void check_program(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                               core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                               core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                               core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                               core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                               core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values,
                               std::int64_t num_features, core::Tensor<std::int32_t, 1> rows, core::Tensor<std::int64_t, 1> sizes);

/// Ticks every agent once.
///
/// kinds .. code_values  the program, as for check_program; checked on every call in O(P + K)
/// observations[A,F]   what the conditions read
/// mask[A]             which agents tick, absent for all; the others keep state, counters, action and status
/// state[R,A]          in/out: bit 0 RUNNING, bit 1 done (below a synchronised parallel), bits 2-3 the final
///                     status of a OneShot; one row per node that needs one, in pre-order; zeros before the first tick
/// counters[C,A]       in/out: one row per node that counts, in pre-order; zeros before the first tick
/// actions[A]          out: the last action id that the tick emitted, or -1
/// statuses[A]         out: Status of the root
/// log[P,A]            out, may be absent: the Status with which each node ended this tick, INVALID where it was not ticked
/// Any content of `state` and `counters` is safe; only zeros and what tick wrote are meaningful.
/// Agents are spread over threads; the result does not depend on how many.
CORE_EXPORT void tick(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                      core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                      core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                      core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                      core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                      core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values,
                      core::Tensor<const float, 2> observations, std::optional<core::Tensor<const bool, 1>> mask,
                      core::Tensor<std::uint8_t, 2> state, core::Tensor<std::int32_t, 2> counters, core::Tensor<std::int32_t, 1> actions,
                      core::Tensor<std::uint8_t, 1> statuses, std::optional<core::Tensor<std::uint8_t, 2>> log);

/// The same on CUDA, bit for bit. The program's arrays are read by the host, which waits for the stream to do so.
CORE_EXPORT void tick_cuda(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                           core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                           core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                           core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                           core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                           core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values,
                           core::Tensor<const float, 2> observations, std::optional<core::Tensor<const bool, 1>> mask,
                           core::Tensor<std::uint8_t, 2> state, core::Tensor<std::int32_t, 2> counters,
                           core::Tensor<std::int32_t, 1> actions, core::Tensor<std::uint8_t, 1> statuses,
                           std::optional<core::Tensor<std::uint8_t, 2>> log, core::Stream stream);

/// The same, one agent at a time and only the nodes that it reaches: faster for a few agents.
CORE_EXPORT void tick_scalar(core::Tensor<const std::uint8_t, 1> kinds, core::Tensor<const std::int32_t, 1> ends,
                             core::Tensor<const std::int32_t, 1> features, core::Tensor<const std::uint8_t, 1> comparisons,
                             core::Tensor<const float, 1> thresholds, core::Tensor<const std::int32_t, 1> action_ids,
                             core::Tensor<const std::uint8_t, 1> results, core::Tensor<const std::int32_t, 1> params,
                             core::Tensor<const std::uint8_t, 1> code_ops, core::Tensor<const std::int32_t, 1> code_lefts,
                             core::Tensor<const std::int32_t, 1> code_rights, core::Tensor<const float, 1> code_values,
                             core::Tensor<const float, 2> observations, std::optional<core::Tensor<const bool, 1>> mask,
                             core::Tensor<std::uint8_t, 2> state, core::Tensor<std::int32_t, 2> counters,
                             core::Tensor<std::int32_t, 1> actions, core::Tensor<std::uint8_t, 1> statuses,
                             std::optional<core::Tensor<std::uint8_t, 2>> log);

}  // namespace core_agents
