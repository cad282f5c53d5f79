// Spans of OpenTelemetry (GenAI conventions) and OpenInference.
#include <charconv>
#include <map>
#include <optional>

#include "table.hpp"

namespace core_agents::traces {

SpanKind kind_of(std::string_view name) {
  if (name == "LLM" || name == "llm" || name == "chat" || name == "text_completion" || name == "generate_content") return SpanKind::llm;
  if (name == "TOOL" || name == "tool" || name == "execute_tool") return SpanKind::tool;
  if (name == "AGENT" || name == "invoke_agent" || name == "create_agent") return SpanKind::agent;
  return SpanKind::other;
}

void id_of(Reader& r, std::string& to) {
  if (r.peek() != '"') return void(r.skip());
  to.clear();
  r.string(to);
}
void id_of(Reader& r, std::uint64_t& to) {
  std::string text;
  id_of(r, text);
  to = text.empty() ? 0 : hash(text);
}

namespace {

constexpr int max_flatten = 16;
constexpr Index max_path = 512;

bool starts(std::string_view& text, std::string_view prefix) {
  if (text.substr(0, prefix.size()) != prefix) return false;
  text.remove_prefix(prefix.size());
  return true;
}

bool index(std::string_view& path, int& i) {
  const auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), i);
  if (error != std::errc() || i < 0) return false;
  path.remove_prefix(static_cast<Index>(end - path.data()));
  return path.empty() || starts(path, ".");
}

/// A message that is put together from attributes such as llm.input_messages.0.message.content.
struct Pieces {
  Message message;
  std::map<int, Call> calls;
  std::map<int, Span> contents;
};

/// Reads the attributes of one span.
class Attributes {
 public:
  Attributes(Table& t, Work& work) : t_(t), work_(work) {}

  /// OpenTelemetry's list of keys and values.
  void list(Reader& r) {
    r.array([&] {
      if (r.peek() != '{') return void(r.skip());
      std::string key;
      std::optional<Reader> value;
      r.object([&](std::string_view name) {
        if (name == "key" && r.peek() == '"') {
          key = r.view();
        } else if (name == "value" && r.peek() == '{') {
          r.object([&](std::string_view) {
            value.emplace(r);
            r.skip();
          });
        } else {
          r.skip();
        }
      });
      if (value && key.size() <= max_path) attribute(key, *value);
    });
  }

  /// An object whose keys are paths, or parts of paths.
  void flatten(Reader& r, std::string& path, int depth = 0) {
    const char next = r.peek();
    if (messages_key(path) || (next != '{' && next != '[') || depth == max_flatten) {
      Reader value = r;
      r.skip();
      return attribute(path, value);
    }
    const Index length = path.size();
    int i = 0;
    const auto enter = [&](std::string_view name) {
      if (length + name.size() + 1 > max_path) return void(r.skip());
      if (length) path += '.';
      path += name;
      flatten(r, path, depth + 1);
      path.resize(length);
    };
    if (next == '{')
      r.object([&](std::string_view name) {
        const std::string kept(name);  // the reader's buffer is used again below
        enter(kept);
      });
    else
      r.array([&] { enter(std::to_string(i++)); });
  }

  void finish() {
    for (auto* side : {&inputs_, &outputs_})
      for (auto& [i, p] : *side) {
        if (!p.contents.empty() && !p.message.text) join(p);
        for (auto& [j, call] : p.calls) p.message.calls.push_back(call);
        (side == &inputs_ ? work_.inputs : work_.outputs).push_back(std::move(p.message));
      }
    if (!system_.empty()) work_.inputs.insert(work_.inputs.begin(), system_.begin(), system_.end());
  }

 private:
  static bool messages_key(std::string_view path) {
    return path == "gen_ai.input.messages" || path == "gen_ai.output.messages" || path == "gen_ai.system_instructions";
  }

  void join(Pieces& p) {
    std::string all;
    for (const auto& [i, s] : p.contents) all.append(all.empty() ? "" : "\n").append(t_.view(s));
    p.message.text = t_.put(all);
  }

  /// Messages as JSON, or as JSON within a string; a text that is not JSON is one message.
  void messages(Reader& r, std::vector<Message>& to, Role role, bool content_only) {
    std::string text;
    if (r.peek() == '"')
      r.string(text);
    else
      text = r.skip();
    try {
      Reader inside(text);
      if (content_only) {
        Message m;
        read_content(inside, t_, m);
        m.role = role;
        to.push_back(std::move(m));
      } else if (inside.peek() == '{') {
        read_message(inside, t_, to.emplace_back());
      } else {
        inside.array([&] { read_message(inside, t_, to.emplace_back()); });
      }
      if (!inside.done()) inside.refuse(json::Fault::syntax);
    } catch (const json::Refused&) {
      to.clear();
      to.emplace_back().text = t_.put(text);
      to.back().role = role;
    }
  }

  void piece(std::string_view path, Reader& r, std::map<int, Pieces>& side) {
    int i = 0, j = 0;
    if (!index(path, i)) return;
    Pieces& p = side[i];
    starts(path, "message.");
    if (path == "role") {
      if (r.peek() == '"') p.message.role = role_of(r.view());
    } else if (path == "content") {
      p.message.text = t_.any(r);
    } else if (path == "name") {
      p.message.agent = t_.string(r);
    } else if (path == "tool_call_id") {
      p.message.call_id = t_.string(r);
    } else if (starts(path, "contents.") && index(path, j)) {
      starts(path, "message_content.");
      if (path == "text") p.contents[j] = t_.string(r);
    } else if (starts(path, "tool_calls.") && index(path, j)) {
      starts(path, "tool_call.");
      starts(path, "function.");
      if (path == "name") p.calls[j].name = t_.string(r);
      if (path == "arguments") p.calls[j].content = t_.any(r);
      if (path == "id") p.calls[j].id = t_.string(r);
    }
  }

  void attribute(std::string_view key, Reader& r) {
    if (key == "gen_ai.input.messages") return messages(r, work_.inputs, user_role, false);
    if (key == "gen_ai.output.messages") return messages(r, work_.outputs, assistant_role, false);
    if (key == "gen_ai.system_instructions") return messages(r, system_, system_role, true);
    std::string_view rest = key;
    if (starts(rest, "llm.input_messages.") || starts(rest, "gen_ai.prompt.")) return piece(rest, r, inputs_);
    if (starts(rest, "llm.output_messages.") || starts(rest, "gen_ai.completion.")) return piece(rest, r, outputs_);
    if (key == "gen_ai.operation.name" || key == "openinference.span.kind") {
      if (r.peek() == '"') work_.kind = kind_of(r.view());
    } else if (key == "gen_ai.usage.input_tokens" || key == "gen_ai.usage.prompt_tokens" || key == "llm.token_count.prompt") {
      work_.usage.input_tokens = r.integer(-1);
    } else if (key == "gen_ai.usage.output_tokens" || key == "gen_ai.usage.completion_tokens" || key == "llm.token_count.completion") {
      work_.usage.output_tokens = r.integer(-1);
    } else if (key == "llm.cost.total") {
      work_.usage.cost = r.number();
    } else if (Span* to = text_of(key)) {
      *to = t_.any(r);
    }
  }

  Span* text_of(std::string_view key) {
    if (key == "gen_ai.agent.name" || key == "agent.name") return &work_.agent;
    if (key == "gen_ai.request.model" || key == "llm.model_name") return &work_.model;
    if (key == "gen_ai.tool.name" || key == "tool.name") return &work_.tool;
    if (key == "gen_ai.tool.call.id" || key == "tool_call.id" || key == "tool.id") return &work_.call_id;
    if (key == "gen_ai.tool.call.arguments") return &work_.arguments;
    if (key == "gen_ai.tool.call.result") return &work_.result;
    if (key == "input.value") return &work_.input;
    if (key == "output.value") return &work_.output;
    if (key == "exception.message" || key == "error.message") return &work_.error;
    return nullptr;
  }

  Table& t_;
  Work& work_;
  std::map<int, Pieces> inputs_, outputs_;
  std::vector<Message> system_;
};

/// A span, or what holds spans.
void read_span(Reader& r, Table& t, Works& works, int nested) {
  if (r.peek() == '[' && nested < max_flatten) return r.array([&] { read_span(r, t, works, nested + 1); });
  if (r.peek() != '{' || nested == max_flatten) return void(r.skip());
  bool is_span = true;
  Work work;
  Attributes attributes(t, work);
  std::string path;
  r.object([&](std::string_view key) {
    if (key == "resourceSpans" || key == "resource_spans" || key == "scopeSpans" || key == "scope_spans" || key == "spans") {
      is_span = false;
      read_span(r, t, works, nested + 1);
    } else if (key == "traceId" || key == "trace_id" || key == "context.trace_id") {
      id_of(r, work.trace);
    } else if (key == "spanId" || key == "span_id" || key == "context.span_id") {
      id_of(r, work.id);
    } else if (key == "parentSpanId" || key == "parent_id" || key == "parent_span_id") {
      id_of(r, work.parent);
    } else if (key == "context" && r.peek() == '{') {
      r.object([&](std::string_view name) {
        if (name == "trace_id")
          id_of(r, work.trace);
        else if (name == "span_id")
          id_of(r, work.id);
        else
          r.skip();
      });
    } else if (key == "name") {
      work.name = t.string(r);
    } else if (key == "startTimeUnixNano" || key == "start_time") {
      work.start = read_time(r);
    } else if (key == "endTimeUnixNano" || key == "end_time") {
      work.end = read_time(r);
    } else if (key == "span_kind" && r.peek() == '"') {
      work.kind = kind_of(r.view());
    } else if (key == "status" && r.peek() == '{') {
      r.object([&](std::string_view name) { name == "message" ? void(work.error = t.string(r)) : void(r.skip()); });
    } else if (key == "attributes" && r.peek() == '[') {
      attributes.list(r);
    } else if (key == "attributes" && r.peek() == '{') {
      attributes.flatten(r, path);
    } else if (key.substr(0, 11) == "attributes." && key.size() < max_path) {
      path = key.substr(11);
      attributes.flatten(r, path);
      path.clear();
    } else if (key == "events" && r.peek() == '[') {
      r.array([&] {
        if (r.peek() != '{') return void(r.skip());
        r.object([&](std::string_view name) { name == "attributes" && r.peek() == '[' ? attributes.list(r) : void(r.skip()); });
      });
    } else {
      r.skip();
    }
  });
  if (!is_span) return;
  attributes.finish();
  if (work.kind == SpanKind::other && (!work.inputs.empty() || !work.outputs.empty())) work.kind = SpanKind::llm;
  if (!work.arguments) work.arguments = work.input;
  if (!work.result) work.result = work.output;
  works.list.push_back(std::move(work));
}

}  // namespace

void read_spans(Reader& r, Table& t, Works& works) { read_span(r, t, works, 0); }

}  // namespace core_agents::traces
