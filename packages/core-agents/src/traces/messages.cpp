#include <array>
#include <charconv>
#include <utility>

#include "table.hpp"

namespace core_agents::traces {
namespace {

constexpr int max_nested = 4;

/// Days since 1970-01-01 of a date of the Gregorian calendar.
std::int64_t days(std::int64_t y, std::int64_t m, std::int64_t d) {
  y -= m <= 2;
  const std::int64_t era = y / 400, in_era = y - era * 400;
  const std::int64_t day = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
  return era * 146097 + in_era * 365 + in_era / 4 - in_era / 100 + day - 719468;
}

bool take(std::string_view& text, Index digits, std::int64_t& value) {
  if (text.size() < digits) return false;
  const std::string_view number = text.substr(0, digits);
  const auto [end, error] = std::from_chars(number.begin(), number.end(), value);
  if (error != std::errc() || end != number.end() || value < 0) return false;
  text.remove_prefix(digits);
  return true;
}
bool take(std::string_view& text, std::string_view any) {
  if (text.empty() || any.find(text[0]) == any.npos) return false;
  text.remove_prefix(1);
  return true;
}

void read_call(Reader& r, Table& t, Call& call, int nested) {
  if (r.peek() != '{') return void(r.skip());
  r.object([&](std::string_view key) {
    if (key == "id" || key == "tool_call_id" || key == "call_id") {
      call.id = t.string(r);
    } else if (key == "name") {
      call.name = t.string(r);
    } else if (key == "arguments" || key == "args" || key == "input") {
      call.content = t.any(r);
    } else if ((key == "function" || key == "tool_call") && r.peek() == '{' && nested < max_nested) {
      read_call(r, t, call, nested + 1);
    } else if (key == "function") {
      call.name = t.string(r);
    } else {
      r.skip();
    }
  });
}

void read_calls(Reader& r, Table& t, Message& m) {
  if (r.peek() != '[') return void(r.skip());
  bool first = true;
  r.array([&] {
    if (std::exchange(first, false)) m.calls.clear();
    read_call(r, t, m.calls.emplace_back(), 0);
  });
}

constexpr bool is_text(std::string_view type) { return type.empty() || type == "text" || type == "input_text" || type == "output_text"; }

/// The parts that are text, joined by line ends.
void read_text_parts(Reader& r, Table& t, Message& m) {
  const Index begin = t.text.size();
  bool any = false;
  const auto piece = [&] {
    if (r.peek() != '"') return void(r.skip());
    if (std::exchange(any, true)) t.text += '\n';
    r.string(t.text);
  };
  r.array([&] {
    if (r.peek() != '{') return piece();
    if (!is_text(member(r, "type"))) return void(r.skip());
    r.object([&](std::string_view key) { key == "text" || key == "content" ? piece() : void(r.skip()); });
  });
  if (any) m.text = {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(t.text.size())};
}

/// The parts that are tool calls and results.
void read_other_parts(Reader& r, Table& t, Message& m, int nested) {
  r.array([&] {
    const std::string type = r.peek() == '{' ? member(r, "type") : std::string("text");
    if (type == "tool_use" || type == "tool_call" || type == "function_call") return read_call(r, t, m.calls.emplace_back(), 0);
    if (type != "tool_result" && type != "tool_call_response" && type != "function_call_output") return void(r.skip());
    Call result;
    r.object([&](std::string_view key) {
      if (key == "id" || key == "tool_use_id" || key == "call_id") {
        result.id = t.string(r);
      } else if (key == "name") {
        result.name = t.string(r);
      } else if (key == "content" && r.peek() == '[' && nested < max_nested) {
        Message inner;
        read_content(r, t, inner, nested + 1);
        result.content = inner.text;
      } else if (key == "content" || key == "response" || key == "result" || key == "output") {
        result.content = t.any(r);
      } else {
        r.skip();
      }
    });
    m.results.push_back(result);
  });
}

}  // namespace

std::int64_t parse_time(std::string_view text) {
  std::int64_t y = 0, month = 0, d = 0, h = 0, minute = 0, s = 0, nanoseconds = 0;
  if (text.size() >= 15 && text.find_first_not_of("0123456789") == text.npos) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), nanoseconds);
    return error == std::errc() ? nanoseconds : no_time;
  }
  if (!take(text, 4, y) || !take(text, "-") || !take(text, 2, month) || !take(text, "-") || !take(text, 2, d) || !take(text, "T ") ||
      !take(text, 2, h) || !take(text, ":") || !take(text, 2, minute) || !take(text, ":") || !take(text, 2, s))
    return no_time;
  if (y < 1700 || y > 2200 || month < 1 || month > 12 || d < 1 || d > 31 || h > 23 || minute > 59 || s > 60) return no_time;
  if (take(text, ".,")) {
    std::int64_t scale = 100'000'000;
    for (; !text.empty() && text[0] >= '0' && text[0] <= '9'; text.remove_prefix(1), scale /= 10) nanoseconds += (text[0] - '0') * scale;
  }
  std::int64_t offset = 0;
  if (!text.empty() && !take(text, "Zz")) {
    const bool west = text[0] == '-';
    std::int64_t hours = 0, minutes = 0;
    if (!take(text, "+-") || !take(text, 2, hours)) return no_time;
    take(text, ":");
    if (!text.empty() && !take(text, 2, minutes)) return no_time;
    offset = (hours * 60 + minutes) * (west ? -60 : 60);
  }
  if (!text.empty()) return no_time;
  return (((days(y, month, d) * 24 + h) * 60 + minute) * 60 + s - offset) * 1'000'000'000 + nanoseconds;
}

std::int64_t read_time(Reader& r) {
  if (r.peek() == '"') return parse_time(r.view());
  const Reader before = r;
  const double value = r.number();
  if (!(value >= 0 && value < 9e18)) return no_time;
  if (value < 1e12) return static_cast<std::int64_t>(value * 1e9);
  Reader again = before;
  return again.integer(no_time);
}

Role role_of(std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, Role>, 21> names{{{"system", system_role},
                                                                            {"user", user_role},
                                                                            {"assistant", assistant_role},
                                                                            {"tool", tool_role},
                                                                            {"developer", developer_role},
                                                                            {"human", user_role},
                                                                            {"ai", assistant_role},
                                                                            {"model", assistant_role},
                                                                            {"function", tool_role},
                                                                            {"AIMessageChunk", assistant_role},
                                                                            {"SystemMessage", system_role},
                                                                            {"HumanMessage", user_role},
                                                                            {"AIMessage", assistant_role},
                                                                            {"ToolMessage", tool_role},
                                                                            {"FunctionMessage", tool_role},
                                                                            {"HumanMessageChunk", user_role},
                                                                            {"SystemMessageChunk", system_role},
                                                                            {"ToolMessageChunk", tool_role},
                                                                            {"SYSTEM", system_role},
                                                                            {"USER", user_role},
                                                                            {"ASSISTANT", assistant_role}}};
  for (const auto& [known, role] : names)
    if (known == name) return role;
  return other_role;
}

std::string member(Reader r, std::string_view name) {
  std::string found;
  if (r.peek() == '{')
    r.object([&](std::string_view key) {
      if (key != name || r.peek() != '"') return void(r.skip());
      found.clear();
      r.string(found);
    });
  return found;
}

bool has_member(Reader r, std::initializer_list<std::string_view> names) {
  bool found = false;
  if (r.peek() == '{')
    r.object([&](std::string_view key) {
      for (const auto name : names) found |= key == name;
      r.skip();
    });
  return found;
}

void read_usage(Reader& r, Usage& usage, int nested) {
  if (r.peek() != '{') return void(r.skip());
  r.object([&](std::string_view key) {
    if (key == "input_tokens" || key == "prompt_tokens") {
      usage.input_tokens = r.integer(-1);
    } else if (key == "output_tokens" || key == "completion_tokens") {
      usage.output_tokens = r.integer(-1);
    } else if (key == "total_cost" || key == "cost") {
      usage.cost = r.number();
    } else if ((key == "token_usage" || key == "usage") && nested < max_nested) {
      read_usage(r, usage, nested + 1);
    } else {
      r.skip();
    }
  });
}

void read_content(Reader& r, Table& t, Message& m, int nested) {
  if (r.peek() != '[') {
    m.text = t.any(r);
    return;
  }
  Reader again = r;
  read_text_parts(r, t, m);
  read_other_parts(again, t, m, nested);
}

void read_message(Reader& r, Table& t, Message& m, int nested) {
  r.object([&](std::string_view key) {
    const bool deeper = nested < max_nested && r.peek() == '{';
    if (key == "role" || (key == "type" && m.role == other_role)) {
      if (r.peek() != '"') return void(r.skip());
      const Role role = role_of(r.view());
      if (role != other_role || key == "role") m.role = role;
    } else if (key == "content" || key == "parts") {
      read_content(r, t, m, nested);
    } else if (key == "name") {
      m.agent = t.string(r);
    } else if (key == "tool_call_id") {
      m.call_id = t.string(r);
    } else if (key == "function" && r.peek() == '"') {
      m.tool = t.string(r);
    } else if (key == "tool_calls") {
      read_calls(r, t, m);
    } else if (key == "function_call" && r.peek() == '{') {
      read_call(r, t, m.calls.emplace_back(), 0);
    } else if (key == "id" && r.peek() == '"') {
      m.id = hash(r.view());
    } else if (key == "id" && r.peek() == '[') {
      r.array([&] {
        if (r.peek() == '"')
          m.role = role_of(r.view());
        else
          r.skip();
      });
    } else if (deeper && (key == "kwargs" || key == "data" || key == "message" || (key == "additional_kwargs" && m.calls.empty()))) {
      read_message(r, t, m, nested + 1);
    } else if (key == "usage_metadata") {
      Usage usage;
      read_usage(r, usage);
      m.input_tokens = usage.input_tokens, m.output_tokens = usage.output_tokens;
    } else {
      r.skip();
    }
  });
  if (nested == 0 && m.role == tool_role && !m.tool) std::swap(m.tool, m.agent);
}

Index emit(Table& t, const Message& m, std::int64_t run, std::int64_t& step) {
  const Index first = t.rows.size();
  Row row;
  row.run = run;
  for (const Call& result : m.results) {
    row.step = step++, row.role = tool_role;
    row.text = result.content, row.tool = result.name, row.call_id = result.id;
    t.rows.push_back(row);
  }
  if (!m.results.empty() && !m.text && m.calls.empty()) return first;
  const Index at = t.rows.size();
  row.step = step++, row.role = m.role;
  row.text = m.text, row.agent = m.agent, row.tool = m.tool, row.call_id = m.call_id;
  row.input_tokens = m.input_tokens, row.output_tokens = m.output_tokens;
  t.rows.push_back(row);
  row.call = 1, row.text = {}, row.input_tokens = row.output_tokens = -1;
  for (const Call& call : m.calls) {
    row.tool = call.name, row.arguments = call.content, row.call_id = call.id;
    t.rows.push_back(row);
  }
  return at;
}

}  // namespace core_agents::traces
