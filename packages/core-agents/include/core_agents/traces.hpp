// core_agents/traces.hpp - which messages of a trace say nearly the same.
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

}  // namespace core_agents
