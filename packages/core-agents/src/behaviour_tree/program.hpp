// A checked program, laid out as the straight line of steps that the kernel walks.
#pragma once
#include <core_agents/behaviour_tree.hpp>

#include <vector>

namespace core_agents {

struct ProgramView {
  core::Tensor<const std::uint8_t, 1> kinds;
  core::Tensor<const std::int32_t, 1> ends, features;
  core::Tensor<const std::uint8_t, 1> comparisons;
  core::Tensor<const float, 1> thresholds;
  core::Tensor<const std::int32_t, 1> action_ids;
  core::Tensor<const std::uint8_t, 1> results;
  core::Tensor<const std::int32_t, 1> params;
  core::Tensor<const std::uint8_t, 1> code_ops;
  core::Tensor<const std::int32_t, 1> code_lefts, code_rights;
  core::Tensor<const float, 1> code_values;
};

enum class Code : std::uint8_t { leaf, begin, child, join, end };

/// A node with children becomes begin, (child, the child's steps, join) for each child, end.
struct Step {
  Code code;
  std::uint8_t kind;  ///< of the node; of the parent for child and join
  std::uint8_t comparison = 0, result = 0;
  std::int32_t node = 0;
  std::int32_t depth = 0;    ///< of the node; of the parent for child and join
  std::int32_t column = -1;  ///< of the block's tile of observations
  float threshold = 0;
  std::int32_t action = -1, param = 0;
  std::int32_t row = -1;                ///< of the node (of the child for child and join), -1 if it has none
  std::int32_t below = 0, row_end = 0;  ///< rows [below, row_end) belong to the nodes below it
  std::int32_t counter = -1;
  std::int32_t join = 0;  ///< of a child step: where its join is
  bool may_run = false;   ///< the node can be RUNNING
};

/// Makes a column of the tile from two others, or from one.
struct Instruction {
  std::uint8_t op;
  std::int32_t left, right;  ///< columns of the tile, -1: `value`
  float value;
};

struct Compiled {
  std::vector<Step> steps;
  std::vector<std::int32_t> columns;  ///< feature of each of the tile's first columns
  std::vector<Instruction> code;      ///< makes the columns behind them, in order
  std::int32_t rows = 0, counters = 0, depth = 0;
};

/// Throws core::Error that begins with `op` and names the node.
Compiled compile(const char* op, const ProgramView& program, std::int64_t num_features);

}  // namespace core_agents
