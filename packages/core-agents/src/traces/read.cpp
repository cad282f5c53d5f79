#include <algorithm>
#include <core_agents/traces.hpp>
#include <string>
#include <vector>

#include "../errors.hpp"
#include "table.hpp"

namespace core_agents {
namespace {

using traces::Index;

enum class Format { inspect, openai, spans, langsmith };
Format format_of(std::string_view name) {
  if (name == "inspect") return Format::inspect;
  if (name == "openai") return Format::openai;
  if (name == "otel" || name == "openinference") return Format::spans;
  if (name == "langsmith") return Format::langsmith;
  bad("read_traces", "format", "one of inspect, openai, otel, openinference, langsmith", "'" + std::string(name) + "'");
}

struct Failure {
  std::int64_t document, position, fault;
};

struct Document {
  Format format;
  traces::Table& table;
  traces::Works& works;

  void value(std::string_view text) const {
    traces::Reader r(text);
    switch (format) {
      case Format::inspect: traces::read_inspect(r, table); break;
      case Format::openai: traces::read_openai(r, table); break;
      case Format::spans: traces::read_spans(r, table, works); break;
      case Format::langsmith: traces::read_langsmith(r, table, works); break;
    }
    if (!r.done()) r.refuse(json::Fault::syntax);
  }
};

/// Copies rows of equal 64-bit fields into columns, as many as there is room for.
template <class T, class Record>
void columns(const std::vector<Record>& from, const core::Tensor<T, 2>& to) {
  const std::int64_t n = std::min(static_cast<std::int64_t>(from.size()), to.shape[1]);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto* fields = reinterpret_cast<const T*>(&from[static_cast<Index>(i)]);
    for (std::int64_t c = 0; c < to.shape[0]; ++c) to(c, i) = fields[c];
  }
}

std::uint64_t little(std::string_view text, Index at, int bytes) {
  std::uint64_t value = 0;
  for (int i = 0; i < bytes; ++i)
    value |= static_cast<std::uint64_t>(static_cast<unsigned char>(text[at + static_cast<Index>(i)])) << 8 * i;
  return value;
}

/// The members of a zip archive.
class Archive {
 public:
  struct Member {
    std::int64_t name_begin, name_end, method, flags, crc, data_begin, compressed, size;
  };
  std::vector<Member> members;
  bool damaged = false;

  explicit Archive(std::string_view text) : text_(text) {
    if (!central()) {
      damaged = true;
      members.clear();
      local();
    }
  }

 private:
  static constexpr std::uint64_t unknown32 = 0xFFFFFFFF;
  bool inside(std::uint64_t at, std::uint64_t size) const { return at <= text_.size() && size <= text_.size() - at; }

  /// Values that did not fit 32 bits, from the extra field.
  bool zip64(std::uint64_t extra, std::uint64_t length, std::initializer_list<std::uint64_t*> values) const {
    for (std::uint64_t at = extra; at + 4 <= extra + length;) {
      const std::uint64_t id = little(text_, at, 2), size = little(text_, at + 2, 2);
      at += 4;
      if (size > extra + length - at) return false;
      if (id == 1) {
        std::uint64_t from = at;
        for (std::uint64_t* value : values) {
          if (*value != unknown32) continue;
          if (from + 8 > at + size) return false;
          *value = little(text_, from, 8);
          from += 8;
        }
        return true;
      }
      at += size;
    }
    return true;
  }

  bool add(std::uint64_t name, std::uint64_t name_length, Member m, std::uint64_t data, std::uint64_t compressed, std::uint64_t size) {
    if (!inside(data, compressed) || size > std::uint64_t{1} << 62) return false;
    m.name_begin = static_cast<std::int64_t>(name), m.name_end = static_cast<std::int64_t>(name + name_length);
    m.data_begin = static_cast<std::int64_t>(data), m.compressed = static_cast<std::int64_t>(compressed);
    m.size = static_cast<std::int64_t>(size);
    members.push_back(m);
    return true;
  }

  /// By the directory at the end; false if there is none or it contradicts itself.
  bool central() {
    if (text_.size() < 22) return false;
    const Index tail = text_.size() > 22 + 65535 ? text_.size() - 22 - 65535 : 0;
    const Index end = text_.rfind("PK\5\6");
    if (end == text_.npos || end < tail || !inside(end, 22)) return false;
    std::uint64_t count = little(text_, end + 10, 2), size = little(text_, end + 12, 4), at = little(text_, end + 16, 4);
    if ((count == 0xFFFF || size == unknown32 || at == unknown32) && end >= 20 && text_.substr(end - 20, 4) == "PK\6\7") {
      const std::uint64_t record = little(text_, end - 12, 8);
      if (!inside(record, 56) || text_.substr(record, 4) != "PK\6\6") return false;
      count = little(text_, record + 32, 8), size = little(text_, record + 40, 8), at = little(text_, record + 48, 8);
    }
    if (!inside(at, size) || count > size / 46) return false;
    for (std::uint64_t i = 0; i < count; ++i) {
      if (!inside(at, 46) || text_.substr(at, 4) != "PK\1\2") return false;
      Member m{};
      m.flags = static_cast<std::int64_t>(little(text_, at + 8, 2)), m.method = static_cast<std::int64_t>(little(text_, at + 10, 2));
      m.crc = static_cast<std::int64_t>(little(text_, at + 16, 4));
      std::uint64_t compressed = little(text_, at + 20, 4), full = little(text_, at + 24, 4), header = little(text_, at + 42, 4);
      const std::uint64_t name = little(text_, at + 28, 2), extra = little(text_, at + 30, 2), comment = little(text_, at + 32, 2);
      if (!inside(at + 46, name + extra + comment) || !zip64(at + 46 + name, extra, {&full, &compressed, &header})) return false;
      if (!inside(header, 30) || text_.substr(header, 4) != "PK\3\4") return false;
      const std::uint64_t data = header + 30 + little(text_, header + 26, 2) + little(text_, header + 28, 2);
      if (!add(at + 46, name, m, data, compressed, full)) return false;
      at += 46 + name + extra + comment;
    }
    return true;
  }

  /// From one local header to the next, as far as they go.
  void local() {
    std::uint64_t at = 0;
    while (inside(at, 30) && text_.substr(at, 4) == "PK\3\4") {
      Member m{};
      m.flags = static_cast<std::int64_t>(little(text_, at + 6, 2)), m.method = static_cast<std::int64_t>(little(text_, at + 8, 2));
      m.crc = static_cast<std::int64_t>(little(text_, at + 14, 4));
      std::uint64_t compressed = little(text_, at + 18, 4), full = little(text_, at + 22, 4);
      const std::uint64_t name = little(text_, at + 26, 2), extra = little(text_, at + 28, 2), data = at + 30 + name + extra;
      const bool sizes_follow = m.flags & 8 && compressed == 0;
      if (sizes_follow || !inside(at + 30, name + extra) || !zip64(at + 30 + name, extra, {&full, &compressed}) ||
          !add(at + 30, name, m, data, compressed, full))
        return;
      at = data + compressed;
    }
  }

  std::string_view text_;
};

}  // namespace

void read_traces(core::Tensor<const std::uint8_t, 1> text, core::Tensor<const std::int64_t, 1> offsets, const char* format, bool lines,
                 core::Tensor<std::int64_t, 2> rows, core::Tensor<std::int64_t, 2> runs, core::Tensor<double, 2> values,
                 core::Tensor<std::uint8_t, 1> buffer, core::Tensor<std::int64_t, 2> failures, core::Tensor<std::int64_t, 1> sizes) {
  std::string copy;
  const std::string_view all = traces::contiguous(text, copy);
  traces::Table table;
  traces::Works works;
  std::vector<Failure> failed;
  const Document document{format_of(format), table, works};
  const std::int64_t documents = offsets.shape[0] - 1;
  for (std::int64_t d = 0, low = 0; d <= documents; low = offsets(d++))
    if (offsets(d) < low || offsets(d) > text.shape[0])
      bad("read_traces", "offsets", "ascending in [0, " + std::to_string(text.shape[0]) + "]",
          std::to_string(offsets(d)) + " at " + std::to_string(d));
  table.text.reserve(all.size() / 4);
  for (std::int64_t d = 0; d < documents; ++d) {
    const auto begin = static_cast<Index>(offsets(d)), end = static_cast<Index>(offsets(d + 1));
    for (Index at = begin; at < end;) {
      const Index found = lines ? all.substr(0, end).find('\n', at) : all.npos;
      const Index stop = found == all.npos ? end : found;
      const std::string_view piece = all.substr(at, stop - at);
      at = stop + 1;
      if (traces::Reader(piece).done()) continue;
      try {
        document.value(piece);
      } catch (const json::Refused& e) {
        failed.push_back({d, e.at - (all.data() + begin), static_cast<std::int64_t>(e.fault)});
      }
    }
  }
  traces::arrange(table, works);
  columns(table.rows, rows);
  columns(table.runs, runs);
  columns(table.values, values);
  columns(failed, failures);
  const std::int64_t room = std::min(static_cast<std::int64_t>(table.text.size()), buffer.shape[0]);
  if (buffer.contiguous())
    std::copy_n(table.text.data(), room, reinterpret_cast<char*>(buffer.data));
  else
    for (std::int64_t i = 0; i < room; ++i) buffer(i) = static_cast<std::uint8_t>(table.text[static_cast<Index>(i)]);
  sizes(0) = static_cast<std::int64_t>(table.rows.size());
  sizes(1) = static_cast<std::int64_t>(table.runs.size());
  sizes(2) = static_cast<std::int64_t>(table.text.size());
  sizes(3) = static_cast<std::int64_t>(failed.size());
}

void zip_members(core::Tensor<const std::uint8_t, 1> archive, core::Tensor<std::int64_t, 2> members, core::Tensor<std::int64_t, 1> sizes) {
  std::string copy;
  const Archive read(traces::contiguous(archive, copy));
  columns(read.members, members);
  sizes(0) = static_cast<std::int64_t>(read.members.size());
  sizes(1) = read.damaged;
}

}  // namespace core_agents
