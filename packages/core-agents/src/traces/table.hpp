// The rows that readers fill: messages and tool calls, and the runs that they belong to.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.hpp"

namespace core_agents::traces {

using json::Reader;
using Index = std::size_t;

inline constexpr std::int64_t no_time = std::numeric_limits<std::int64_t>::min();
inline constexpr double no_number = std::numeric_limits<double>::quiet_NaN();

/// The bytes of a tensor as text; they are copied where they do not lie side by side.
inline std::string_view contiguous(const core::Tensor<const std::uint8_t, 1>& text, std::string& copy) {
  if (text.contiguous()) return {reinterpret_cast<const char*>(text.data), static_cast<Index>(text.shape[0])};
  copy.resize(static_cast<Index>(text.shape[0]));
  for (Index i = 0; i < copy.size(); ++i) copy[i] = static_cast<char>(text(static_cast<std::int64_t>(i)));
  return copy;
}

/// Bytes [begin, end) of the table's text; -1 for what is missing.
struct Span {
  std::int64_t begin = -1, end = -1;
  explicit operator bool() const { return begin >= 0; }
};

enum Role : std::int64_t { system_role, user_role, assistant_role, tool_role, developer_role, other_role };

/// A message, or one of its tool calls. The order is that of ROWS in traces.py.
struct Row {
  std::int64_t run = 0, step = 0, call = 0, role = other_role;
  Span text, agent, tool, arguments, call_id;
  std::int64_t input_tokens = -1, output_tokens = -1, start = no_time, end = no_time;
};
inline constexpr std::int64_t row_width = 18;
static_assert(sizeof(Row) == row_width * sizeof(std::int64_t));

/// The order is that of RUNS in traces.py.
struct Run {
  Span id, name, model, error;
  std::int64_t epoch = 1, input_tokens = -1, output_tokens = -1, start = no_time, end = no_time, complete = 0;
};
inline constexpr std::int64_t run_width = 14;
static_assert(sizeof(Run) == run_width * sizeof(std::int64_t));

struct Values {
  double score = no_number, cost = no_number, seconds = no_number, working_seconds = no_number;
};
inline constexpr std::int64_t value_width = 4;
static_assert(sizeof(Values) == value_width * sizeof(double));

inline std::uint64_t hash(std::string_view text, std::uint64_t seed = 0) {
  const std::uint64_t h = (std::hash<std::string_view>{}(text) ^ seed) * 0x9e3779b97f4a7c15ULL;
  return h ^ h >> 29;
}

/// Sums where -1 and NaN are missing.
inline void add(std::int64_t& sum, std::int64_t value) {
  if (value >= 0 && value < (std::int64_t{1} << 50)) sum = (sum < 0 ? 0 : sum) + value;
}
inline void add(double& sum, double value) {
  if (value == value) sum = (sum == sum ? sum : 0) + value;
}

struct Table {
  std::string text;
  std::vector<Row> rows;
  std::vector<Run> runs;
  std::vector<Values> values;

  std::string_view view(Span s) const {
    return s ? std::string_view(text).substr(static_cast<Index>(s.begin), static_cast<Index>(s.end - s.begin)) : std::string_view();
  }
  Span put(std::string_view from) {
    const Index begin = text.size();
    text.append(from);
    return {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(text.size())};
  }
  /// A string; nothing for any other value.
  Span string(Reader& r) {
    if (r.peek() != '"') return r.skip(), Span{};
    const Index begin = text.size();
    r.string(text);
    return {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(text.size())};
  }
  /// A string as it reads, any other value as JSON, null as nothing.
  Span any(Reader& r) {
    const char c = r.peek();
    if (c == '"') return string(r);
    const std::string_view raw = r.skip();
    return c == 'n' ? Span{} : put(raw);
  }
  std::int64_t new_run() {
    runs.emplace_back();
    values.emplace_back();
    return static_cast<std::int64_t>(runs.size()) - 1;
  }
};

struct Call {
  Span id, name, content;  // content: the arguments of a call, the text of a result
};

/// A message of any of the formats.
struct Message {
  std::int64_t role = other_role;
  Span text, agent, tool, call_id;
  std::uint64_t id = 0;
  std::int64_t input_tokens = -1, output_tokens = -1;
  std::vector<Call> calls, results;
  bool started = false;
};

/// Nanoseconds since 1970 of an ISO 8601 time (without a zone: UTC) or of a number of nanoseconds as text; else no_time.
std::int64_t parse_time(std::string_view text);
/// The same of a JSON value; a number is seconds, or nanoseconds where it is 1e12 or more.
std::int64_t read_time(Reader& r);

Role role_of(std::string_view name);
/// Reads a message of OpenAI, Anthropic, LangChain, inspect-ai or GenAI form into `m`.
void read_message(Reader& r, Table& t, Message& m, int nested = 0);
/// Reads the content of a message: text, or parts.
void read_content(Reader& r, Table& t, Message& m, int nested = 0);
/// The value of a string member of the object at r, which stays where it is; "" if there is none.
std::string member(Reader r, std::string_view name);
bool has_member(Reader r, std::initializer_list<std::string_view> names);
struct Usage {
  std::int64_t input_tokens = -1, output_tokens = -1;
  double cost = no_number;
};
/// Token counts under the names that providers use.
void read_usage(Reader& r, Usage& usage, int nested = 0);
/// Appends a message's rows: results, the message, its calls. Returns the row of the message, or of its first result.
Index emit(Table& t, const Message& m, std::int64_t run, std::int64_t& step);

/// One value of each format, into the table.
void read_inspect(Reader& r, Table& t, int nested = 0);
void read_openai(Reader& r, Table& t, int nested = 0);

enum class SpanKind { other, llm, tool, agent };
/// A unit of work of OpenTelemetry, OpenInference or LangSmith.
struct Work {
  std::string trace;
  std::uint64_t id = 0, parent = 0;
  SpanKind kind = SpanKind::other;
  Span name, agent, model, error, tool, call_id, arguments, result, input, output;
  Usage usage;
  std::int64_t start = no_time, end = no_time;
  std::vector<Message> inputs, outputs;
};
struct Works {
  std::vector<Work> list;
};
SpanKind kind_of(std::string_view name);
/// A string, and its hash (0 for ""); any other value changes nothing, or gives 0.
void id_of(Reader& r, std::string& to);
void id_of(Reader& r, std::uint64_t& to);
void read_spans(Reader& r, Table& t, Works& works);
void read_langsmith(Reader& r, Table& t, Works& works);
/// Units of work, brought into order, to runs and messages.
void arrange(Table& t, Works& works);

}  // namespace core_agents::traces
