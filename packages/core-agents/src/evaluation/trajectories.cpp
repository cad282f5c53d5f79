#include <algorithm>
#include <array>
#include <core/parallel.hpp>
#include <core_agents/trajectories.hpp>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "../traces/table.hpp"
#include "canonical.hpp"

namespace core_agents {
namespace {

using traces::Index;

/// One side: the rows of all runs and where each run's begin.
struct Table {
  core::Tensor<const std::int64_t, 2> rows;
  std::string_view text;
  const char* name;
  std::vector<std::int64_t> begins;

  /// Columns, in the order of ROWS in traces.py.
  static constexpr std::int64_t run = 0, call = 2, role = 3, tool = 8, arguments = 10;

  Table(core::Tensor<const std::int64_t, 2> rows, std::string_view text, const char* name, std::int64_t runs)
      : rows(rows), text(text), name(name), begins(static_cast<Index>(runs) + 1, rows.shape[1]) {
    std::int64_t next = 0;
    for (std::int64_t i = 0; i < rows.shape[1]; ++i) {
      const std::int64_t r = rows(run, i);
      if (r < next - 1 || r >= runs || r < 0)
        bad("match_trajectories", name, "rows of runs 0 to " + std::to_string(runs - 1) + " in ascending order",
            "run " + std::to_string(r) + " in row " + std::to_string(i));
      while (next <= r) begins[static_cast<Index>(next++)] = i;
    }
  }

  [[noreturn]] void refuse(std::int64_t i, const char* why) const {
    throw core::Error("ValueError", std::string("match_trajectories: argument '") + name + "', run " + std::to_string(rows(run, i)) +
                                        ", row " + std::to_string(i) + ": " + why);
  }

  std::string_view view(std::int64_t column, std::int64_t i) const {
    const std::int64_t begin = rows(column, i), end = rows(column + 1, i);
    if (begin < 0) return {};
    if (end < begin || end > static_cast<std::int64_t>(text.size())) refuse(i, "a text lies outside of the buffer");
    return text.substr(static_cast<Index>(begin), static_cast<Index>(end - begin));
  }
};

/// The messages of one run and their calls in canonical form.
struct Trajectory {
  struct Message {
    std::int64_t role;
    Index first, end;  // its calls
  };
  std::vector<Message> messages;
  std::vector<std::string_view> calls;

  void read(const Table& table, std::int64_t r, bool ignore_arguments) {
    messages.clear(), calls.clear(), ends_.clear(), bytes_.clear();
    for (std::int64_t i = table.begins[static_cast<Index>(r)]; i < table.begins[static_cast<Index>(r) + 1]; ++i) {
      if (table.rows(Table::call, i) == 0) {
        messages.push_back({table.rows(Table::role, i), ends_.size(), ends_.size()});
        continue;
      }
      if (messages.empty()) table.refuse(i, "a tool call stands before any message");
      bytes_.append(table.view(Table::tool, i));
      bytes_ += json::Canonical::end_of_string;
      const Index named = bytes_.size();
      const std::string_view arguments = table.view(Table::arguments, i);
      try {
        canonical_.object(arguments.empty() ? "{}" : arguments, bytes_);
      } catch (const json::Refused&) {
        table.refuse(i, "the arguments of a tool call must be a JSON object");
      }
      if (ignore_arguments) bytes_.resize(named);
      ends_.push_back(bytes_.size());
      ++messages.back().end;
    }
    for (Index begin = 0; const Index end : ends_) {
      calls.push_back(std::string_view(bytes_).substr(begin, end - begin));
      begin = end;
    }
  }

 private:
  std::string bytes_;
  std::vector<Index> ends_;
  json::Canonical canonical_;
};

/// Runs are compared one after the other, in memory that is kept.
class Comparison {
 public:
  Trajectory ours, theirs;

  bool exact() const { return ours.calls == theirs.calls; }

  bool in_order() const {
    auto at = ours.calls.begin();
    for (const std::string_view wanted : theirs.calls) {
      at = std::find(at, ours.calls.end(), wanted);
      if (at == ours.calls.end()) return false;
      ++at;
    }
    return true;
  }

  bool strict() {
    return std::equal(ours.messages.begin(), ours.messages.end(), theirs.messages.begin(), theirs.messages.end(),
                      [&](const auto& a, const auto& b) {
                        const Index n = a.end - a.first;
                        return a.role == b.role && n == b.end - b.first && paired(a.first, a.end, b.first, b.end) == n;
                      });
  }

  Index paired() { return paired(0, ours.calls.size(), 0, theirs.calls.size()); }

 private:
  /// How many calls of two ranges are assigned: the size of the intersection of two multisets.
  Index paired(Index a, Index a_end, Index b, Index b_end) {
    if (a_end - a == b_end - b && std::equal(ours.calls.data() + a, ours.calls.data() + a_end, theirs.calls.data() + b)) return a_end - a;
    first_.assign(ours.calls.data() + a, ours.calls.data() + a_end);
    second_.assign(theirs.calls.data() + b, theirs.calls.data() + b_end);
    std::sort(first_.begin(), first_.end());
    std::sort(second_.begin(), second_.end());
    Index both = 0;
    for (Index i = 0, j = 0; i < first_.size() && j < second_.size();) {
      const int order = first_[i].compare(second_[j]);
      i += order <= 0, j += order >= 0, both += order == 0;
    }
    return both;
  }

  std::vector<std::string_view> first_, second_;
};

}  // namespace

void match_trajectories(core::Tensor<const std::int64_t, 2> rows, core::Tensor<const std::uint8_t, 1> text,
                        core::Tensor<const std::int64_t, 2> reference_rows, core::Tensor<const std::uint8_t, 1> reference_text,
                        bool ignore_arguments, core::Tensor<bool, 2> modes, core::Tensor<std::int64_t, 2> counts) {
  std::string copy, reference_copy;
  const std::int64_t runs = modes.shape[0];
  const Table outputs(rows, traces::contiguous(text, copy), "rows", runs);
  const Table references(reference_rows, traces::contiguous(reference_text, reference_copy), "reference_rows", runs);
  core::parallel_for(runs, 64, [&](std::int64_t begin, std::int64_t end) {
    Comparison c;
    for (std::int64_t r = begin; r < end; ++r) {
      c.ours.read(outputs, r, ignore_arguments);
      c.theirs.read(references, r, ignore_arguments);
      const Index ours = c.ours.calls.size(), theirs = c.theirs.calls.size(), both = c.paired();
      const bool none_else = both == ours, all = both == theirs;
      const std::array<bool, 7> found{c.strict(), none_else && all, none_else, all, c.exact(), c.in_order(), all};
      for (Index m = 0; m < found.size(); ++m) modes(r, static_cast<std::int64_t>(m)) = found[m];
      counts(r, 0) = static_cast<std::int64_t>(ours), counts(r, 1) = static_cast<std::int64_t>(theirs);
      counts(r, 2) = static_cast<std::int64_t>(both);
    }
  });
}

}  // namespace core_agents
