// Units of work brought into conversations: what a model heard before is not said again.
#include <algorithm>

#include "table.hpp"

namespace core_agents::traces {
namespace {

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
