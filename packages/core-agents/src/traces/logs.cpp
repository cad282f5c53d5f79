// inspect-ai's samples and logs, and lists and records of OpenAI messages.
#include <optional>
#include <utility>

#include "table.hpp"

namespace core_agents::traces {
namespace {

double score_value(Reader& r) {
  if (r.peek() != '"') return r.number();
  const std::string_view text = r.view();
  if (text == "C" || text == "yes" || text == "true") return 1;
  if (text == "P") return 0.5;
  if (text == "I" || text == "N" || text == "no" || text == "false") return 0;
  return no_number;
}

/// One sample of inspect-ai: its messages, and from its events their tokens, times and agents.
class Sample {
 public:
  Sample(Reader& r, Table& t) : r_(r), t_(t), run_(t.new_run()), first_row_(t.rows.size()) {}

  void field(std::string_view key) {
    const char next = r_.peek();
    if (key == "id") {
      run().id = t_.any(r_);
      run().name = run().id;
    } else if (key == "epoch") {
      run().epoch = r_.integer(1);
    } else if (key == "messages" && next == '[') {
      r_.array([&] {
        if (r_.peek() != '{') return void(r_.skip());
        Message m;
        read_message(r_, t_, m);
        const Index at = emit(t_, m, run_, step_);
        if (m.id) by_id_[m.id] = at;
        if (m.role == tool_role && m.call_id) by_call_[hash(t_.view(m.call_id))] = at;
      });
    } else if (key == "scores" && next == '{') {
      scores();
    } else if (key == "model_usage" && next == '{') {
      r_.object([&](std::string_view model) {
        if (!run().model) run().model = t_.put(model);
        Usage usage;
        read_usage(r_, usage);
        add(run().input_tokens, usage.input_tokens);
        add(run().output_tokens, usage.output_tokens);
        add(values().cost, usage.cost);
      });
    } else if (key == "started_at") {
      run().start = read_time(r_);
    } else if (key == "completed_at") {
      run().end = read_time(r_);
    } else if (key == "total_time") {
      values().seconds = r_.number();
    } else if (key == "working_time") {
      values().working_seconds = r_.number();
    } else if (key == "error" && next == '{') {
      r_.object([&](std::string_view name) { name == "message" ? void(run().error = t_.string(r_)) : void(r_.skip()); });
    } else if (key == "error" && next == '"') {
      run().error = t_.string(r_);
    } else if (key == "events" && next == '[') {
      r_.array([&] { r_.peek() == '{' ? event() : void(r_.skip()); });
    } else if (key == "attachments" && next == '{') {
      attachments_.emplace(r_);
      r_.skip();
    } else {
      r_.skip();
    }
  }

  void finish() {
    if (attachments_) resolve();
    run().complete = 1;
  }

 private:
  static constexpr std::string_view reference = "attachment://";
  struct Scope {
    std::uint64_t parent = 0;
    Span agent;
  };

  Run& run() { return t_.runs[static_cast<Index>(run_)]; }
  Values& values() { return t_.values[static_cast<Index>(run_)]; }

  void scores() {
    bool first = true;
    r_.object([&](std::string_view) {
      if (!std::exchange(first, false) || r_.peek() != '{') return void(r_.skip());
      r_.object([&](std::string_view key) { key == "value" ? void(values().score = score_value(r_)) : void(r_.skip()); });
    });
  }

  void output(std::uint64_t& message, Usage& usage) {
    r_.object([&](std::string_view key) {
      if (key == "usage") {
        read_usage(r_, usage);
      } else if (key == "choices" && r_.peek() == '[') {
        r_.array([&] {
          if (message || r_.peek() != '{') return void(r_.skip());
          r_.object([&](std::string_view part) {
            if (part != "message" || r_.peek() != '{') return void(r_.skip());
            r_.object([&](std::string_view name) {
              if (name == "id" && r_.peek() == '"')
                message = hash(r_.view());
              else
                r_.skip();
            });
          });
        });
      } else {
        r_.skip();
      }
    });
  }

  void event() {
    std::string kind, type, name;
    std::uint64_t id = 0, span = 0, parent = 0, message = 0;
    Usage usage;
    std::int64_t start = no_time, end = no_time;
    r_.object([&](std::string_view key) {
      const bool text = r_.peek() == '"';
      if (key == "event" && text) {
        kind = r_.view();
      } else if (key == "type" && text) {
        type = r_.view();
      } else if (key == "name" && text) {
        name = r_.view();
      } else if (key == "id" && text) {
        id = hash(r_.view());
      } else if (key == "span_id" && text) {
        span = hash(r_.view());
      } else if (key == "parent_id" && text) {
        parent = hash(r_.view());
      } else if (key == "timestamp") {
        start = read_time(r_);
      } else if (key == "completed") {
        end = read_time(r_);
      } else if (key == "output" && r_.peek() == '{') {
        output(message, usage);
      } else {
        r_.skip();
      }
    });
    if (kind == "span_begin") {
      scopes_[id] = {parent, type == "agent" ? t_.put(name) : Span{}};
      return;
    }
    const auto& rows = kind == "model" ? by_id_ : by_call_;
    const auto found = rows.find(kind == "model" ? message : id);
    if ((kind != "model" && kind != "tool") || found == rows.end()) return;
    Row& row = t_.rows[found->second];
    row.start = start, row.end = end;
    if (kind == "model") row.input_tokens = usage.input_tokens, row.output_tokens = usage.output_tokens;
    if (!row.agent) row.agent = agent_of(span);
    for (Index i = found->second + 1; i < t_.rows.size() && t_.rows[i].step == row.step; ++i) t_.rows[i].agent = row.agent;
  }

  Span agent_of(std::uint64_t span) const {
    for (int hops = 0; hops < 64; ++hops) {
      const auto found = scopes_.find(span);
      if (found == scopes_.end() || found->second.agent) return found == scopes_.end() ? Span{} : found->second.agent;
      span = found->second.parent;
    }
    return {};
  }

  /// Texts that stand elsewhere in the sample; each is copied once.
  void resolve() {
    std::unordered_map<std::string, std::vector<Index>> wanted;
    for (Index i = first_row_; i < t_.rows.size(); ++i) {
      const std::string_view text = t_.view(t_.rows[i].text);
      if (text.substr(0, reference.size()) == reference) wanted[std::string(text.substr(reference.size()))].push_back(i);
    }
    if (wanted.empty() || !attachments_) return;
    Reader r = *attachments_;
    r.object([&](std::string_view key) {
      const auto found = wanted.find(std::string(key));
      if (found == wanted.end()) return void(r.skip());
      const Span text = t_.string(r);
      for (const Index i : found->second) t_.rows[i].text = text;
    });
  }

  Reader& r_;
  Table& t_;
  std::int64_t run_, step_ = 0;
  Index first_row_;
  std::unordered_map<std::uint64_t, Index> by_id_, by_call_;
  std::unordered_map<std::uint64_t, Scope> scopes_;
  std::optional<Reader> attachments_;
};

/// A conversation: messages, and what a model answered to them.
class Conversation {
 public:
  Conversation(Reader& r, Table& t) : r_(r), t_(t), run_(t.new_run()) {}

  void message(Reader& r) {
    if (r.peek() != '{') return void(r.skip());
    Message m;
    read_message(r, t_, m);
    const Index at = emit(t_, m, run_, step_);
    if (t_.rows[at].role == assistant_role) answer_ = at;
  }

  void record(int nested) {
    r_.object([&](std::string_view key) {
      const char next = r_.peek();
      if (key == "messages" && next == '[') {
        r_.array([&] { message(r_); });
      } else if (key == "choices" && next == '[') {
        choices_.emplace(r_);
        r_.skip();
      } else if ((key == "request" || key == "response" || key == "body") && next == '{' && nested < 3) {
        record(nested + 1);
      } else if (key == "usage") {
        read_usage(r_, usage_);
      } else if (key == "id" && nested == 0) {
        run().id = t_.any(r_);
      } else if (key == "custom_id" || key == "task") {
        run().name = t_.any(r_);
      } else if (key == "model") {
        run().model = t_.string(r_);
      } else if (key == "error") {
        run().error = t_.any(r_);
      } else if (key == "created" || key == "created_at") {
        run().start = read_time(r_);
      } else if (key == "success" || key == "score") {
        values().score = score_value(r_);
      } else if (key == "cost") {
        values().cost = r_.number();
      } else if (key == "latency") {
        values().seconds = r_.number();
      } else {
        r_.skip();
      }
    });
  }

  void finish() {
    if (choices_) {
      bool first = true;
      choices_->array([&] {
        if (!std::exchange(first, false) || choices_->peek() != '{') return void(choices_->skip());
        choices_->object([&](std::string_view key) { key == "message" ? message(*choices_) : void(choices_->skip()); });
      });
    }
    add(run().input_tokens, usage_.input_tokens);
    add(run().output_tokens, usage_.output_tokens);
    if (answer_ && t_.rows[*answer_].input_tokens < 0) {
      t_.rows[*answer_].input_tokens = usage_.input_tokens;
      t_.rows[*answer_].output_tokens = usage_.output_tokens;
    }
    run().complete = 1;
  }

 private:
  Run& run() { return t_.runs[static_cast<Index>(run_)]; }
  Values& values() { return t_.values[static_cast<Index>(run_)]; }

  Reader& r_;
  Table& t_;
  std::int64_t run_, step_ = 0;
  Usage usage_;
  std::optional<Index> answer_;
  std::optional<Reader> choices_;
};

}  // namespace

void read_inspect(Reader& r, Table& t, int nested) {
  if (r.peek() == '[' && nested < 2) return r.array([&] { read_inspect(r, t, nested + 1); });
  if (r.peek() != '{' && nested) return void(r.skip());
  std::optional<Sample> sample;
  r.object([&](std::string_view key) {
    if (key == "samples" && r.peek() == '[') {
      r.array([&] {
        if (r.peek() != '{') return void(r.skip());
        Sample one(r, t);
        r.object([&](std::string_view field) { one.field(field); });
        one.finish();
      });
    } else if (sample || key == "id" || key == "epoch" || key == "messages") {
      if (!sample) sample.emplace(r, t);
      sample->field(key);
    } else {
      r.skip();
    }
  });
  if (sample) sample->finish();
}

void read_openai(Reader& r, Table& t, int nested) {
  if (r.peek() == '{') {
    Conversation one(r, t);
    one.record(0);
    return one.finish();
  }
  std::optional<Conversation> one;
  bool first = true, records = false;
  r.array([&] {
    if (std::exchange(first, false))
      records = nested < 2 && (r.peek() == '[' || has_member(r, {"messages", "request", "response", "choices"}));
    if (records) return r.peek() == '[' || r.peek() == '{' ? read_openai(r, t, nested + 1) : void(r.skip());
    if (!one) one.emplace(r, t);
    one->message(r);
  });
  if (!one && !records) one.emplace(r, t);
  if (one) one->finish();
}

}  // namespace core_agents::traces
