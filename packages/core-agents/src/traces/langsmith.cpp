// Runs of LangSmith.
#include <optional>

#include "table.hpp"

namespace core_agents::traces {
namespace {

constexpr int max_outputs = 8;

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

}  // namespace

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

}  // namespace core_agents::traces
