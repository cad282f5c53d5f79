// core_agents/trajectories.hpp - the tool calls of recorded runs against those of references.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

namespace core_agents {

/// Compares run r of `rows` with run r of `reference_rows` for each of R runs. Rows are messages and tool calls as read_traces writes
/// them, with their texts in `text` and `reference_text`. Two calls are equal if they have the same name and, unless
/// `ignore_arguments`, arguments that are equal as JSON: members in any order, the last of equal names counts, 1 is 1.0 and is neither
/// true nor "1". Calls of both sides are assigned one to one.
///
/// modes[r]: strict (roles message by message, in each the same calls in any order), unordered (the same calls), subset (no other calls),
/// superset (all of the reference's), exact (the same calls in the same order), in_order (the reference's calls in their order, others in
/// between), any_order (superset again). counts[r]: calls, calls of the reference, calls that are assigned.
///
/// ValueError that names run and row for arguments that are no JSON object, or a text, role or run out of range.
CORE_EXPORT void match_trajectories(core::Tensor<const std::int64_t, 2> rows, core::Tensor<const std::uint8_t, 1> text,
                                    core::Tensor<const std::int64_t, 2> reference_rows, core::Tensor<const std::uint8_t, 1> reference_text,
                                    bool ignore_arguments, core::Tensor<bool, 2> modes, core::Tensor<std::int64_t, 2> counts);

}  // namespace core_agents
