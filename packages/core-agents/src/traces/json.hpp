// A strict JSON reader that goes over the text once and keeps no tree: each caller takes the keys that it knows and skips the rest.
#pragma once
#include <array>
#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <string_view>

namespace core_agents::json {

/// Why a text was refused; the order is that of FAULTS in traces.py.
enum class Fault : std::int64_t { none, truncated, syntax, utf8, escape, number, deep, kind };

struct Refused : std::exception {
  Refused(const char* at, Fault fault) : at(at), fault(fault) {}
  const char* at;
  Fault fault;
};

inline constexpr int max_depth = 256;

/// Eight bytes at once; a byte's highest bit is set in the result where the predicate holds (exact for the lowest such byte).
constexpr std::uint64_t repeat(std::uint8_t c) { return 0x0101010101010101ULL * c; }
constexpr std::uint64_t zero_bytes(std::uint64_t x) { return (x - repeat(1)) & ~x & repeat(0x80); }

/// The first byte in [p, end) that a string cannot hold as it is: a quote, a backslash, a control character, or one >= 0x80.
inline const char* plain_end(const char* p, const char* end) {
  for (; end - p >= 8; p += 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    const std::uint64_t stops = zero_bytes(word ^ repeat('"')) | zero_bytes(word ^ repeat('\\')) |
                                ((word - repeat(0x20)) & ~word & repeat(0x80)) | (word & repeat(0x80));
    if (stops) {
      if constexpr (std::endian::native == std::endian::little) return p + std::countr_zero(stops) / 8;
      break;
    }
  }
  for (; p < end; ++p) {
    const auto c = static_cast<unsigned char>(*p);
    if (c == '"' || c == '\\' || c < 0x20 || c >= 0x80) break;
  }
  return p;
}

/// The length of the well-formed UTF-8 sequence of more than one byte at p, or 0.
inline int utf8_length(const char* p, const char* end) {
  const auto byte = [&](int i) { return static_cast<unsigned char>(p[i]); };
  const auto follows = [&](int n) {
    if (end - p <= n) return false;
    for (int i = 1; i <= n; ++i)
      if ((byte(i) & 0xC0) != 0x80) return false;
    return true;
  };
  const unsigned c = byte(0);
  if (c >= 0xC2 && c <= 0xDF) return follows(1) ? 2 : 0;
  if (c >= 0xE0 && c <= 0xEF) return follows(2) && (c != 0xE0 || byte(1) >= 0xA0) && (c != 0xED || byte(1) < 0xA0) ? 3 : 0;
  if (c >= 0xF0 && c <= 0xF4) return follows(3) && (c != 0xF0 || byte(1) >= 0x90) && (c != 0xF4 || byte(1) < 0x90) ? 4 : 0;
  return 0;
}

/// Appends a code point as UTF-8.
template <class Sink>
void append_utf8(Sink& to, std::uint32_t c) {
  std::array<char, 4> bytes{};
  std::size_t n = 0;
  if (c < 0x80) {
    bytes[n++] = static_cast<char>(c);
  } else {
    if (c < 0x800) {
      bytes[n++] = static_cast<char>(0xC0 | c >> 6);
    } else {
      if (c < 0x10000) {
        bytes[n++] = static_cast<char>(0xE0 | c >> 12);
      } else {
        bytes[n++] = static_cast<char>(0xF0 | c >> 18);
        bytes[n++] = static_cast<char>(0x80 | (c >> 12 & 0x3F));
      }
      bytes[n++] = static_cast<char>(0x80 | (c >> 6 & 0x3F));
    }
    bytes[n++] = static_cast<char>(0x80 | (c & 0x3F));
  }
  to.append(bytes.data(), n);
}

/// A position in a text. Every value must be consumed by one of its functions; all throw Refused.
class Reader {
 public:
  explicit Reader(std::string_view text) : p_(text.data()), end_(text.data() + text.size()) {}

  const char* at() const { return p_; }
  [[noreturn]] void refuse(Fault fault) const { throw Refused{p_, p_ >= end_ && fault == Fault::syntax ? Fault::truncated : fault}; }

  /// The next character that is not white space, 0 at the end.
  char peek() {
    while (p_ < end_ && (*p_ == ' ' || *p_ == '\n' || *p_ == '\r' || *p_ == '\t')) ++p_;
    return p_ < end_ ? *p_ : '\0';
  }
  bool done() {
    peek();
    return p_ >= end_;
  }

  /// Calls each(key) for each member; it must consume the value. The key is valid until the next string is read.
  template <class F>
  void object(F&& each) {
    begin('{');
    if (!close('}')) do {
        const std::string_view key = this->key();
        each(key);
      } while (more('}'));
    --depth_;
  }

  /// Calls each() for each element; it must consume it.
  template <class F>
  void array(F&& each) {
    begin('[');
    if (!close(']')) do
        each();
      while (more(']'));
    --depth_;
  }

  /// Reads a string and appends it to `to` (append(const char*, size_t)); a lone surrogate becomes U+FFFD.
  template <class Sink>
  void string(Sink& to) {
    if (peek() != '"') refuse(p_ < end_ ? Fault::kind : Fault::truncated);
    ++p_;
    for (;;) {
      const char* from = p_;
      while (p_ = plain_end(p_, end_), p_ < end_ && static_cast<unsigned char>(*p_) >= 0x80) multibyte();
      to.append(from, static_cast<std::size_t>(p_ - from));
      if (p_ >= end_) refuse(Fault::truncated);
      if (*p_ == '"') break;
      if (*p_ != '\\') refuse(Fault::syntax);
      escape(to);
    }
    ++p_;
  }

  /// A key or short string as a view: of the text where nothing is escaped, else of a buffer that the next one overwrites.
  std::string_view view() {
    if (peek() != '"') refuse(p_ < end_ ? Fault::kind : Fault::truncated);
    const char* from = p_ + 1;
    const char* to = plain_end(from, end_);
    if (to < end_ && *to == '"') {
      p_ = to + 1;
      return {from, static_cast<std::size_t>(to - from)};
    }
    scratch_.clear();
    string(scratch_);
    return scratch_;
  }

  /// A number (also as text), true and false as 1 and 0, null as NaN; `constants`: NaN and Infinity, as Python writes them.
  double number() {
    const char c = peek();
    if (c == '"') {
      const std::string_view text = view();
      double value = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      return error == std::errc() && end == text.data() + text.size() ? value : std::numeric_limits<double>::quiet_NaN();
    }
    const char* from = p_;
    skip();
    if (c == 't' || c == 'f') return c == 't';
    double value = std::numeric_limits<double>::quiet_NaN();
    if (c == '-' || (c >= '0' && c <= '9')) std::from_chars(from, p_, value);
    return value;
  }

  /// An integer, also as text; `missing` for anything else.
  std::int64_t integer(std::int64_t missing) {
    const char c = peek();
    const char* from = p_;
    const char* to = p_;
    if (c == '"') {
      const std::string_view text = view();
      from = text.data(), to = from + text.size();
    } else {
      skip();
      to = p_;
    }
    std::int64_t value = missing;
    const auto [end, error] = std::from_chars(from, to, value);
    return error == std::errc() && end == to ? value : missing;
  }

  /// Reads any value, checked as strictly as the rest; returns its text.
  std::string_view skip() {
    peek();
    const char* from = p_;
    const int outside = depth_;
    std::array<bool, max_depth + 1> in_object{};
    for (;;) {
      const char c = peek();
      if (c == '{' || c == '[') {
        begin(c);
        in_object[static_cast<std::size_t>(depth_)] = c == '{';
        if (!close(c == '{' ? '}' : ']')) {
          if (c == '{') key();
          continue;
        }
        --depth_;
      } else if (c == '"') {
        ++p_;
        skip_string();
      } else {
        word(c);
      }
      while (depth_ > outside) {
        const bool object = in_object[static_cast<std::size_t>(depth_)];
        if (more(object ? '}' : ']')) {
          if (object) key();
          break;
        }
        --depth_;
      }
      if (depth_ == outside) return {from, static_cast<std::size_t>(p_ - from)};
    }
  }

 private:
  void begin(char open) {
    if (peek() != open) refuse(p_ < end_ ? Fault::kind : Fault::truncated);
    if (depth_ == max_depth) refuse(Fault::deep);
    ++p_;
    ++depth_;
  }
  bool close(char c) {
    if (peek() != c) return false;
    ++p_;
    return true;
  }
  bool more(char last) {
    const char c = peek();
    if (c != ',' && c != last) refuse(Fault::syntax);
    ++p_;
    return c == ',';
  }
  std::string_view key() {
    if (peek() != '"') refuse(Fault::syntax);
    const std::string_view name = view();
    if (peek() != ':') refuse(Fault::syntax);
    ++p_;
    return name;
  }

  void multibyte() {
    const int n = utf8_length(p_, end_);
    if (!n) refuse(Fault::utf8);
    p_ += n;
  }

  std::uint32_t hex4() {
    std::uint32_t value = 0;
    if (end_ - p_ < 4) p_ = end_, refuse(Fault::truncated);
    const auto [to, error] = std::from_chars(p_, p_ + 4, value, 16);
    if (error != std::errc() || to != p_ + 4) refuse(Fault::escape);
    p_ += 4;
    return value;
  }

  template <class Sink>
  void escape(Sink& to) {
    if (end_ - p_ < 2) p_ = end_, refuse(Fault::truncated);
    const char c = p_[1];
    if (c == 'u') {
      p_ += 2;
      std::uint32_t code = hex4();
      if (code >= 0xD800 && code < 0xDC00 && end_ - p_ >= 6 && p_[0] == '\\' && p_[1] == 'u') {
        const char* second = p_;
        p_ += 2;
        const std::uint32_t low = hex4();
        if (low >= 0xDC00 && low < 0xE000)
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        else
          p_ = second;
      }
      append_utf8(to, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
      return;
    }
    static constexpr std::string_view codes = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
    const std::size_t which = codes.find(c);
    if (which == codes.npos) refuse(Fault::escape);
    to.append(&values[which], 1);
    p_ += 2;
  }

  void skip_string() {
    struct Nothing {
      void append(const char*, std::size_t) {}
    } nothing;
    for (;;) {
      p_ = plain_end(p_, end_);
      if (p_ >= end_) refuse(Fault::truncated);
      if (*p_ == '"') break;
      if (*p_ == '\\')
        escape(nothing);
      else if (static_cast<unsigned char>(*p_) >= 0x80)
        multibyte();
      else
        refuse(Fault::syntax);
    }
    ++p_;
  }

  bool digits() {
    const char* from = p_;
    while (p_ < end_ && *p_ >= '0' && *p_ <= '9') ++p_;
    return p_ > from;
  }

  void word(char c) {
    for (const std::string_view name : {"true", "false", "null", "NaN", "Infinity", "-Infinity"}) {
      if (c != name[0]) continue;
      const std::string_view rest(p_, static_cast<std::size_t>(end_ - p_));
      if (rest.substr(0, name.size()) == name) {
        p_ += name.size();
        return;
      }
      if (c != '-' && name.substr(0, rest.size()) == rest) p_ = end_, refuse(Fault::truncated);
    }
    if (c != '-' && (c < '0' || c > '9')) refuse(Fault::syntax);
    if (c == '-') ++p_;
    const char* first = p_;
    if (!digits() || (*first == '0' && p_ - first > 1)) refuse(p_ < end_ ? Fault::number : Fault::truncated);
    if (p_ < end_ && *p_ == '.') {
      ++p_;
      if (!digits()) refuse(p_ < end_ ? Fault::number : Fault::truncated);
    }
    if (p_ < end_ && (*p_ == 'e' || *p_ == 'E')) {
      ++p_;
      if (p_ < end_ && (*p_ == '+' || *p_ == '-')) ++p_;
      if (!digits()) refuse(p_ < end_ ? Fault::number : Fault::truncated);
    }
  }

  const char* p_;
  const char* end_;
  int depth_ = 0;
  std::string scratch_;
};

}  // namespace core_agents::json
