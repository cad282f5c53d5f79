// Spans of OpenTelemetry (GenAI conventions) and OpenInference, runs of LangSmith.
#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <optional>

#include "table.hpp"

namespace core_agents::traces {
namespace {

constexpr int max_flatten = 16, max_outputs = 8;
constexpr Index max_path = 512;

SpanKind kind_of(std::string_view name) {
  if (name == "LLM" || name == "llm" || name == "chat" || name == "text_completion" || name == "generate_content") return SpanKind::llm;
  if (name == "TOOL" || name == "tool" || name == "execute_tool") return SpanKind::tool;
  if (name == "AGENT" || name == "invoke_agent" || name == "create_agent") return SpanKind::agent;
  return SpanKind::other;
}

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

/// Messages in lists of lists.
void langsmith_messages(Reader& r, Table& t, std::vector<Message>& to, int nested = 0) {
  const char next = r.peek();
  if (next == '[' && nested < 3) {
    r.array([&] { langsmith_messages(r, t, to, nested + 1); });
  } else if (next == '{') {
    read_message(r, t, to.emplace_back());
  } else if (next == '"') {
    to.emplace_back().text = t.string(r);
    to.back().role = user_role;
  } else {
    r.skip();
  }
}

void langsmith_outputs(Reader& r, Table& t, Work& work, int nested = 0) {
  if (r.peek() == '[' && nested < max_outputs) return r.array([&] { langsmith_outputs(r, t, work, nested + 1); });
  if (r.peek() != '{' || nested == max_outputs) return void(r.skip());
  if (has_member(r, {"role", "kwargs", "tool_calls"})) return read_message(r, t, work.outputs.emplace_back());
  const bool chat = has_member(r, {"message"});
  r.object([&](std::string_view key) {
    if (key == "generations" || key == "choices" || key == "message" || key == "messages" || key == "output") {
      langsmith_outputs(r, t, work, nested + 1);
    } else if (key == "text" && !chat && r.peek() == '"') {
      work.outputs.emplace_back().text = t.string(r);
    } else if (key == "llm_output" || key == "usage" || key == "usage_metadata") {
      read_usage(r, work.usage);
    } else {
      r.skip();
    }
  });
}

void langsmith_model(Reader& r, Table& t, Work& work, int nested = 0) {
  if (r.peek() != '{' || nested > 2) return void(r.skip());
  r.object([&](std::string_view key) {
    if (key == "ls_model_name" || key == "model" || key == "model_name")
      work.model = t.string(r);
    else if (key == "metadata" || key == "invocation_params")
      langsmith_model(r, t, work, nested + 1);
    else
      r.skip();
  });
}

/// The result of a tool: {"output": text}, {"output": {"content": text}} or anything.
Span tool_result(Reader& r, Table& t, Span& call_id, int nested = 0) {
  if (r.peek() != '{' || nested == 4 || !has_member(r, {"output", "content", "kwargs"})) return t.any(r);
  Span found;
  r.object([&](std::string_view key) {
    if (key == "output")
      found = tool_result(r, t, call_id, nested + 1);
    else if (key == "content")
      found = t.any(r);
    else if (key == "tool_call_id")
      call_id = t.string(r);
    else if (key == "kwargs" && r.peek() == '{')
      found = tool_result(r, t, call_id, nested + 1);
    else
      r.skip();
  });
  return found;
}

/// A hash of a call that white space between its JSON values does not change.
std::uint64_t call_hash(const Table& t, Span name, Span arguments, std::uint64_t seed = 0) {
  std::string dense;
  bool inside = false, escaped = false;
  for (const char c : t.view(arguments)) {
    if (!inside && (c == ' ' || c == '\n' || c == '\r' || c == '\t')) continue;
    if (c == '"' && !escaped) inside = !inside;
    escaped = c == '\\' && !escaped;
    dense += c;
  }
  return hash(dense, hash(t.view(name), seed));
}

std::uint64_t content_hash(const Table& t, const Message& m) {
  std::uint64_t h = hash(t.view(m.text), static_cast<std::uint64_t>(m.role));
  for (const Call& c : m.calls) h = call_hash(t, c.name, c.content, h);
  return h;
}

Message result_message(const Call& result) {
  Message m;
  m.role = tool_role, m.text = result.content, m.tool = result.name, m.call_id = result.id;
  return m;
}

/// Brings the work of one trace into a conversation.
class Thread {
 public:
  Thread(Table& t, std::vector<Work>& list, const std::vector<Index>& order) : t_(t), list_(list), order_(order), run_(t.new_run()) {
    for (const Index i : order) by_id_.emplace(list[i].id, i);
  }

  void read() {
    bool any = false;
    for (const Index i : order_) {
      const Work& work = list_[i];
      any |= work.kind == SpanKind::llm || work.kind == SpanKind::tool;
      if (work.kind == SpanKind::llm) llm(work);
      if (work.kind == SpanKind::tool) tool(work);
      totals(work);
    }
    const Work& root = root_work();
    if (!any) bare(root);
    Run& run = t_.runs[static_cast<Index>(run_)];
    run.id = t_.put(root.trace);
    run.name = root.name;
    if (root.error) run.error = root.error;
    if (run.start != no_time && run.end != no_time)
      t_.values[static_cast<Index>(run_)].seconds = static_cast<double>(run.end) * 1e-9 - static_cast<double>(run.start) * 1e-9;
    run.complete = 1;
  }

 private:
  const Work& root_work() const {
    for (const Index i : order_)
      if (!list_[i].parent || !by_id_.contains(list_[i].parent)) return list_[i];
    return list_[order_[0]];
  }

  Span agent_of(const Work& work) const {
    const Work* at = &work;
    for (int hops = 0; hops < 64; ++hops) {
      if (at->agent) return at->agent;
      if (at->kind == SpanKind::agent) return at->name;
      const auto found = by_id_.find(at->parent);
      if (!at->parent || found == by_id_.end()) break;
      at = &list_[found->second];
    }
    return {};
  }

  void say(const Message& m) {
    for (const Call& c : m.calls) ++called_[call_hash(t_, c.name, c.content)];
    emit(t_, m, run_, step_);
  }

  void llm(const Work& work) {
    std::unordered_map<std::uint64_t, int> here;
    const auto hear = [&](const Message& m) {
      const std::uint64_t h = content_hash(t_, m);
      const int k = ++here[h];
      if (k <= seen_[h]) return;
      seen_[h] = k;
      say(m);
    };
    for (Message m : work.inputs) {
      for (const Call& result : m.results) hear(result_message(result));
      if (!m.results.empty() && !m.text && m.calls.empty()) continue;
      m.results.clear();
      hear(m);
    }
    bool first = true;
    for (Message m : work.outputs) {
      if (m.role == other_role) m.role = assistant_role;
      if (!m.agent) m.agent = agent_of(work);
      ++seen_[content_hash(t_, m)];
      if (first) m.input_tokens = work.usage.input_tokens, m.output_tokens = work.usage.output_tokens;
      const Index at = t_.rows.size();
      say(m);
      for (Index i = at; i < t_.rows.size(); ++i)
        if (!t_.rows[i].call) t_.rows[i].start = work.start, t_.rows[i].end = work.end;
      first = false;
    }
  }

  void tool(const Work& work) {
    const Span name = work.tool ? work.tool : work.name;
    auto& open = called_[call_hash(t_, name, work.arguments)];
    if (open > 0) {
      --open;
    } else {
      Message call;
      call.role = assistant_role, call.agent = agent_of(work);
      call.calls.push_back({work.call_id, name, work.arguments});
      ++seen_[content_hash(t_, call)];
      emit(t_, call, run_, step_);
    }
    const Message result = result_message({work.call_id, name, work.result ? work.result : work.error});
    ++seen_[content_hash(t_, result)];
    const Index at = emit(t_, result, run_, step_);
    t_.rows[at].start = work.start, t_.rows[at].end = work.end;
  }

  /// A trace without models and tools: what went into its root, and what came out.
  void bare(const Work& root) {
    Message m;
    m.role = user_role, m.text = root.input;
    if (m.text) emit(t_, m, run_, step_);
    m.role = assistant_role, m.text = root.output, m.agent = agent_of(root);
    if (m.text) emit(t_, m, run_, step_);
  }

  void totals(const Work& work) {
    Run& run = t_.runs[static_cast<Index>(run_)];
    if (work.kind == SpanKind::llm) {
      add(run.input_tokens, work.usage.input_tokens);
      add(run.output_tokens, work.usage.output_tokens);
      add(t_.values[static_cast<Index>(run_)].cost, work.usage.cost);
      if (!run.model) run.model = work.model;
    }
    if (work.start != no_time) run.start = run.start == no_time ? work.start : std::min(run.start, work.start);
    run.end = std::max(run.end, work.end);
  }

  Table& t_;
  std::vector<Work>& list_;
  const std::vector<Index>& order_;
  std::int64_t run_, step_ = 0;
  std::unordered_map<std::uint64_t, Index> by_id_;
  std::unordered_map<std::uint64_t, int> seen_, called_;
};

}  // namespace

void read_spans(Reader& r, Table& t, Works& works) { read_span(r, t, works, 0); }

void read_langsmith(Reader& r, Table& t, Works& works) {
  if (r.peek() == '[') return r.array([&] { r.peek() == '{' ? read_langsmith(r, t, works) : void(r.skip()); });
  Work work;
  std::optional<Reader> inputs, outputs;
  r.object([&](std::string_view key) {
    if (key == "id") {
      id_of(r, work.id);
    } else if (key == "trace_id") {
      id_of(r, work.trace);
    } else if (key == "parent_run_id") {
      id_of(r, work.parent);
    } else if (key == "name") {
      work.name = t.string(r);
    } else if (key == "run_type" && r.peek() == '"') {
      work.kind = kind_of(r.view());
    } else if (key == "start_time") {
      work.start = read_time(r);
    } else if (key == "end_time") {
      work.end = read_time(r);
    } else if (key == "error") {
      work.error = t.string(r);
    } else if (key == "prompt_tokens") {
      work.usage.input_tokens = r.integer(-1);
    } else if (key == "completion_tokens") {
      work.usage.output_tokens = r.integer(-1);
    } else if (key == "total_cost") {
      work.usage.cost = r.number();
    } else if (key == "extra") {
      langsmith_model(r, t, work);
    } else if (key == "inputs" || key == "outputs") {
      (key == "inputs" ? inputs : outputs).emplace(r);
      r.skip();
    } else {
      r.skip();
    }
  });
  const Usage counted = work.usage;
  if (work.kind == SpanKind::llm) {
    if (inputs && inputs->peek() == '{')
      inputs->object([&](std::string_view key) {
        key == "messages" || key == "prompts" || key == "input" ? langsmith_messages(*inputs, t, work.inputs) : void(inputs->skip());
      });
    if (outputs) langsmith_outputs(*outputs, t, work);
    if (counted.input_tokens >= 0) work.usage.input_tokens = counted.input_tokens;
    if (counted.output_tokens >= 0) work.usage.output_tokens = counted.output_tokens;
    if (counted.cost == counted.cost) work.usage.cost = counted.cost;
  } else {
    if (inputs) work.arguments = work.input = t.any(*inputs);
    if (outputs) work.result = work.output = tool_result(*outputs, t, work.call_id);
  }
  if (work.trace.empty()) work.trace = t.view(work.name);
  works.list.push_back(std::move(work));
}

void arrange(Table& t, Works& works) {
  std::unordered_map<std::string_view, Index> numbers;
  std::vector<std::vector<Index>> groups;
  for (Index i = 0; i < works.list.size(); ++i) {
    const auto [at, is_new] = numbers.emplace(works.list[i].trace, groups.size());
    if (is_new) groups.emplace_back();
    groups[at->second].push_back(i);
  }
  for (auto& group : groups) {
    std::stable_sort(group.begin(), group.end(), [&](Index a, Index b) { return works.list[a].start < works.list[b].start; });
    Thread(t, works.list, group).read();
  }
}

}  // namespace core_agents::traces
