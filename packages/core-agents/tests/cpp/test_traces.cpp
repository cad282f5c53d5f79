#include <core_agents/traces.hpp>

#include <array>
#include <core/test.hpp>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

using namespace core_agents;

namespace {

struct Read {
  std::vector<std::int64_t> rows, runs, failures, sizes;
  std::vector<double> values;
  std::vector<std::uint8_t> buffer;
};

/// Reads one document into exactly `room` rows and runs and 16 bytes of text for each.
Read read(const std::string& text, const char* format, bool lines, std::size_t room) {
  Read r{std::vector<std::int64_t>(18 * room), std::vector<std::int64_t>(14 * room), std::vector<std::int64_t>(3 * room),
         std::vector<std::int64_t>(4),         std::vector<double>(4 * room),        std::vector<std::uint8_t>(16 * room)};
  std::vector<std::uint8_t> bytes(text.begin(), text.end());  // no terminating zero, so that a read beyond the end shows
  const std::array<std::int64_t, 2> offsets{0, static_cast<std::int64_t>(bytes.size())};
  read_traces(core::tensor<const std::uint8_t>(bytes.data(), bytes.size()), core::tensor<const std::int64_t>(offsets.data(), 2), format,
              lines, core::tensor(r.rows.data(), 18, room), core::tensor(r.runs.data(), 14, room), core::tensor(r.values.data(), 4, room),
              core::tensor(r.buffer.data(), 16 * room), core::tensor(r.failures.data(), 3, room), core::tensor(r.sizes.data(), 4));
  return r;
}

std::vector<std::int64_t> members(const std::string& archive, std::vector<std::int64_t>& out) {
  std::vector<std::uint8_t> bytes(archive.begin(), archive.end());
  std::vector<std::int64_t> sizes(2);
  out.resize(8 * 4);
  zip_members(core::tensor<const std::uint8_t>(bytes.data(), bytes.size()), core::tensor(out.data(), 8, 4), core::tensor(sizes.data(), 2));
  return sizes;
}

struct Seed {
  const char* format;
  std::string text;
};
const std::vector<Seed>& seeds() {
  static const std::vector<Seed> all{
      {"openai",
       R"([{"role":"user","content":[{"type":"text","text":"a\u00e9\ud83d\ude00"},{"type":"tool_result","tool_use_id":"t","content":[{"text":"r"}]}]},)"
       R"({"role":"assistant","content":null,"tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\"x\": 1}"}}]},{"role":"tool","content":"2"}])"},
      {"openai",
       R"({"request":{"messages":[{"role":"user","content":"x"}]},"response":{"body":{"choices":[{"message":{"role":"assistant","content":"y"}}],"usage":{"prompt_tokens":5}}},"score":1e0,"created":1700000000})"},
      {"inspect",
       R"({"samples":[{"id":"a","epoch":1,"messages":[{"id":"m","role":"assistant","content":"attachment://k"},{"role":"tool","tool_call_id":"c","content":"z"}],)"
       R"("scores":{"s":{"value":"C"}},"model_usage":{"m":{"input_tokens":3}},"events":[{"event":"span_begin","id":"s","type":"agent","name":"g","parent_id":"s"},)"
       R"({"event":"model","span_id":"s","timestamp":"2026-01-02T03:04:05.5+01:00","output":{"choices":[{"message":{"id":"m"}}],"usage":{"output_tokens":2}}},)"
       R"({"event":"tool","id":"c","completed":"2026-01-02T03:04:05Z"}],"attachments":{"k":"text"},"total_time":NaN}]})"},
      {"otel",
       R"({"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"t","spanId":"s","parentSpanId":"s","name":"n","startTimeUnixNano":"1700000000000000000","attributes":[)"
       R"({"key":"gen_ai.operation.name","value":{"stringValue":"chat"}},{"key":"gen_ai.input.messages","value":{"stringValue":"[{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"content\":\"q\"}]}]"}},)"
       R"({"key":"llm.output_messages.0.message.tool_calls.0.tool_call.function.name","value":{"stringValue":"f"}},{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}}]}]}]}]})"},
      {"openinference",
       R"({"context":{"trace_id":"t","span_id":"s"},"parent_id":null,"start_time":"2026-01-01T00:00:00","attributes":{"openinference":{"span":{"kind":"TOOL"}},"input":{"value":"i"},"output.value":"o","llm":{"input_messages":[{"message":{"role":"user","contents":[{"message_content":{"text":"c"}}]}}]}}})"},
      {"langsmith",
       R"({"id":"r","trace_id":"t","parent_run_id":"r","run_type":"llm","name":"n","inputs":{"messages":[[{"lc":1,"id":["x","HumanMessage"],"kwargs":{"content":"h"}}]]},)"
       R"("outputs":{"generations":[[{"text":"","message":{"kwargs":{"content":"a","tool_calls":[{"name":"f","args":{"x":1},"id":"c"}],"type":"ai"}}}]],"llm_output":{"token_usage":{"prompt_tokens":4}}}})"},
      {"langsmith", R"({"id":"q","run_type":"tool","inputs":{"x":1},"outputs":{"output":{"kwargs":{"content":"c","tool_call_id":"i"}}}})"},
  };
  return all;
}

/// A zip archive of one stored member.
std::string archive() {
  const auto little = [](std::uint64_t v, int n) {
    std::string s;
    for (int i = 0; i < n; ++i) s += static_cast<char>(v >> 8 * i & 255);
    return s;
  };
  const std::string name = "samples/0.json", data = "{\"id\":1}";
  const auto size = static_cast<std::uint32_t>(data.size()), length = static_cast<std::uint32_t>(name.size());
  const std::string common =
      little(20, 2) + std::string(8, '\0') + little(7, 4) + little(size, 4) + little(size, 4) + little(length, 2) + little(0, 2);
  const std::string local = "PK\3\4" + common + name + data;
  const std::string central = "PK\1\2" + little(20, 2) + common + std::string(14, '\0') + name;
  return local + central + "PK\5\6" + little(0, 4) + little(1, 2) + little(1, 2) + little(static_cast<std::uint32_t>(central.size()), 4) +
         little(static_cast<std::uint32_t>(local.size()), 4) + little(0, 2);
}

std::string mutate(std::string text, std::mt19937_64& rng) {
  static const std::vector<std::string> words{"\"",
                                              "\\",
                                              "{",
                                              "}",
                                              "[",
                                              "]",
                                              ",",
                                              ":",
                                              "\\u",
                                              "\\ud800",
                                              "\xff",
                                              "\xe2\x82",
                                              "1e",
                                              "null",
                                              "PK\1\2",
                                              "PK\5\6",
                                              "PK\6\7",
                                              "PK\6\6",
                                              std::string(4, '\xff'),
                                              std::string(4, '\0')};
  for (auto n = 1 + rng() % 4; n-- > 0 && !text.empty();) {
    const std::size_t at = rng() % text.size(), length = 1 + rng() % 20;
    switch (rng() % 6) {
      case 0: text[at] = static_cast<char>(rng()); break;
      case 1: text.erase(at, length); break;
      case 2: text.insert(at, text.substr(at, length)); break;
      case 3: text.replace(at, rng() % 2, words[rng() % words.size()]); break;
      case 4: text.insert(at, text.substr(text.size() / 2)); break;
      default:
        if (rng() % 4 == 0) text.resize(at);
    }
    if (text.size() > 20000) text.resize(20000);
  }
  return text;
}

}  // namespace

CORE_TEST(a_conversation_becomes_rows) {
  const Read r = read(seeds()[0].text, "openai", false, 8);
  CHECK(r.sizes[0] == 5 && r.sizes[1] == 1 && r.sizes[3] == 0);  // the tool's result, the user, the assistant, its call, the tool
  const auto text = [&](std::size_t i) {
    const auto b = r.rows[4 * 8 + i], e = r.rows[5 * 8 + i];
    return b < 0 ? std::string("-") : std::string(r.buffer.begin() + b, r.buffer.begin() + e);
  };
  CHECK(text(0) == "r" && text(1) == "a\xc3\xa9\xf0\x9f\x98\x80" && text(2) == "-" && text(4) == "2");
  CHECK(r.rows[2 * 8 + 3] == 1 && r.rows[1 * 8 + 3] == r.rows[1 * 8 + 2]);
}

CORE_TEST(every_seed_is_read) {
  for (const Seed& seed : seeds()) {
    const Read r = read(seed.text, seed.format, false, 40);
    CHECK(r.sizes[0] >= 1 && r.sizes[1] == 1 && r.sizes[3] == 0);
  }
  CHECK_THROWS(read("[]", "xml", false, 1), "ValueError");
}

CORE_TEST(what_does_not_fit_is_counted) {
  const Read r = read(seeds()[0].text, "openai", false, 0);
  CHECK(r.sizes[0] == 5 && r.sizes[2] > 0);
}

CORE_TEST(an_archive_lists_its_members) {
  std::vector<std::int64_t> m;
  const std::string whole = archive();
  const auto sizes = members(whole, m);
  CHECK(sizes[0] == 1 && sizes[1] == 0 && m[7 * 4] == 8 && whole.substr(static_cast<std::size_t>(m[5 * 4]), 8) == "{\"id\":1}");
  const auto cut = members(whole.substr(0, whole.size() - 30), m);
  CHECK(cut[0] == 1 && cut[1] == 1);
}

CORE_TEST(mutations_stay_inside) {
  std::mt19937_64 rng(0);
  const int count = std::getenv("CORE_TEST_ALL") ? 100000 : 3000;
  for (int i = 0; i < count; ++i) {
    const Seed& seed = seeds()[rng() % seeds().size()];
    const std::size_t room = rng() % 40;
    const std::string text = mutate(seed.text, rng);
    const Read r = read(text, seed.format, rng() % 2, room);
    for (std::size_t k = 0; k < std::min<std::size_t>(room, static_cast<std::size_t>(r.sizes[0])); ++k)
      for (std::size_t column = 4; column < 14; column += 2) {
        const auto b = r.rows[column * room + k], e = r.rows[(column + 1) * room + k];
        if (!((b == -1 && e == -1) || (b >= 0 && b <= e && e <= r.sizes[2]))) CHECK(false);
      }
    std::vector<std::int64_t> m;
    const std::string damaged = mutate(archive(), rng);
    const auto sizes = members(damaged, m);
    for (std::size_t k = 0; k < std::min<std::size_t>(4, static_cast<std::size_t>(sizes[0])); ++k)
      if (!(m[k] >= 0 && m[k] <= m[4 + k] && m[20 + k] >= 0 && m[24 + k] >= 0 &&
            m[20 + k] + m[24 + k] <= static_cast<std::int64_t>(damaged.size())))
        CHECK(false);
  }
}
