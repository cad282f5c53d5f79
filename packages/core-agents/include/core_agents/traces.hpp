// core_agents/traces.hpp - recorded traces as columns, and which messages of a trace say nearly the same.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

namespace core_agents {

/// A sketch of each of M texts: K minima of hashes of all runs of three words, by which two texts' Jaccard similarity is estimated
/// (one-permutation minwise hashing). Words are runs of ASCII letters (case does not count), digits and bytes >= 0x80; a text of one
/// or two words is one run. text: UTF-8; text i is bytes [offsets[i], offsets[i + 1]), ascending from >= 0. A minimum without a hash
/// is -1. K is a power of two, at most 1024.
CORE_EXPORT void text_sketches(core::Tensor<const std::uint8_t, 1> text, core::Tensor<const std::int64_t, 1> offsets,
                               core::Tensor<std::int64_t, 2> sketches);

/// For each message the first earlier one of the same agent with a similarity of at least `threshold`, or -1. The similarity is the
/// share of equal minima among those that one of the two has; an empty text is similar to none. threshold in (0, 1].
CORE_EXPORT void near_duplicates(core::Tensor<const std::int64_t, 2> sketches, core::Tensor<const std::int32_t, 1> agents, double threshold,
                                 core::Tensor<std::int32_t, 1> earlier);

/// Recorded traces of one format as columns. text: UTF-8; document d is bytes [offsets[d], offsets[d + 1]), one JSON value, or one
/// a line if `lines`. format: "inspect" (inspect-ai's samples and logs), "openai" (chat messages), "otel" or "openinference" (spans),
/// "langsmith" (runs). JSON is read strictly, to a depth of 256; NaN and Infinity are numbers, a lone surrogate becomes U+FFFD.
///
/// rows: messages and tool calls, the columns of ROWS in core_agents/traces.py; runs, values: the runs that they belong to, those of
/// RUNS and VALUES. Texts are ranges of `buffer`, -1 where missing. failures: document, byte and fault (FAULTS) of what was refused; what
/// was read before it is kept. sizes: how many rows, runs, bytes of the buffer and failures there are; what does not fit is left out.
CORE_EXPORT void read_traces(core::Tensor<const std::uint8_t, 1> text, core::Tensor<const std::int64_t, 1> offsets, const char* format,
                             bool lines, core::Tensor<std::int64_t, 2> rows, core::Tensor<std::int64_t, 2> runs,
                             core::Tensor<double, 2> values, core::Tensor<std::uint8_t, 1> buffer, core::Tensor<std::int64_t, 2> failures,
                             core::Tensor<std::int64_t, 1> sizes);

/// The members of a zip archive: for each the range of its name, its method and flags, its checksum, where its data begin, and its
/// compressed and full size. All ranges lie within the archive. sizes: how many members there are (what does not fit is left out), and
/// 1 if the directory is missing or wrong, so that the members were found by their own headers.
CORE_EXPORT void zip_members(core::Tensor<const std::uint8_t, 1> archive, core::Tensor<std::int64_t, 2> members,
                             core::Tensor<std::int64_t, 1> sizes);

}  // namespace core_agents
