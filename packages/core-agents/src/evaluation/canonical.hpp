// JSON values in one form for equal values, as bytes that compare and sort.
#pragma once
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../traces/json.hpp"

namespace core_agents::json {

/// Writes values so that two are equal exactly if their bytes are: members sorted by name, the last of equal names, numbers by their
/// value (1, 1.0 and 10e-1 are one), a string up to a byte that no UTF-8 has.
class Canonical {
 public:
  static constexpr char end_of_string = '\xff';

  /// Appends the one object that the text holds; throws Refused for anything else.
  void object(std::string_view text, std::string& to) {
    Reader r(text);
    if (r.peek() != '{') {
      const char* const begin = r.at();
      r.skip();
      throw Refused{begin, Fault::kind};
    }
    value(r, to);
    if (!r.done()) r.refuse(Fault::syntax);
  }

 private:
  using Index = std::size_t;
  struct Member {
    Index begin, end_of_name, end;
  };
  /// Python reads no longer integers.
  static constexpr Index max_digits = 4300;

  void value(Reader& r, std::string& to) {
    switch (r.peek()) {
      case '{': return members(r, to);
      case '[':
        to += '[';
        r.array([&] { value(r, to); });
        to += ']';
        return;
      case '"':
        to += '"';
        r.string(to);
        to += end_of_string;
        return;
      default: {
        const char* const begin = r.at();
        if (!word(r.skip(), to)) throw Refused{begin, Fault::number};
        to += ',';
      }
    }
  }

  void members(Reader& r, std::string& to) {
    const Index first = members_.size();
    const Index begin = to.size();
    bool sorted = true;
    to += '{';
    r.object([&](std::string_view key) {
      const Index at = to.size();
      to.append(key);
      to += end_of_string;
      const Index named = to.size();
      value(r, to);
      if (members_.size() > first) {
        const Member& before = members_.back();
        sorted &= view(to, before.begin, before.end_of_name) < view(to, at, named);
      }
      members_.push_back({at, named, to.size()});
    });
    if (!sorted) sort(to, first, begin + 1);
    members_.resize(first);
    to += '}';
  }

  void sort(std::string& to, Index first, Index begin) {
    const auto from = members_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto name = [&](const Member& m) { return view(to, m.begin, m.end_of_name); };
    std::stable_sort(from, members_.end(), [&](const Member& a, const Member& b) { return name(a) < name(b); });
    made_.clear();
    for (auto m = from; m != members_.end(); ++m)
      if (m + 1 == members_.end() || name(*m) != name(m[1])) made_.append(view(to, m->begin, m->end));
    to.replace(begin, to.npos, made_);
  }

  static std::string_view view(const std::string& text, Index begin, Index end) {
    return std::string_view(text).substr(begin, end - begin);
  }

  /// A number, or a word by its first letters; false for an integer that is too long.
  static bool word(std::string_view token, std::string& to) {
    const bool negative = token[0] == '-';
    const char c = token[negative];
    if (c < '0' || c > '9') {
      to.append(token.substr(0, 2));  // true, false, null, NaN, Infinity, -Infinity
      return true;
    }
    if (token.find_first_of(".eE") == token.npos) {
      if (token.size() - negative > max_digits) return false;
      to.append(token == "-0" ? token.substr(1) : token);
      return true;
    }
    double value = 0;
    const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), value);
    if (error == std::errc::result_out_of_range && large(token)) value = HUGE_VAL;
    if (std::isinf(value)) {
      to.append(negative ? "-I" : "In");
      return true;
    }
    std::array<char, 400> digits{};
    char* const to_end = digits.data() + digits.size();
    const auto written = value == std::trunc(value)
                             ? std::to_chars(digits.data(), to_end, value == 0 ? 0.0 : value, std::chars_format::fixed, 0)
                             : std::to_chars(digits.data(), to_end, value);
    to.append(digits.data(), written.ptr);
    return true;
  }

  /// Whether a number that no double is near is too large, not too small: by the place of its first digit.
  static bool large(std::string_view token) {
    const Index e = token.find_first_of("eE");
    const std::string_view mantissa = token.substr(0, e);
    const Index point = std::min(mantissa.find('.'), mantissa.size()), digit = mantissa.find_first_of("123456789");
    if (digit == mantissa.npos) return false;
    std::int64_t exponent = 0;
    if (e != token.npos) {
      const char* from = token.data() + e + 1;
      if (*from == '+') ++from;
      const auto [end, error] = std::from_chars(from, token.data() + token.size(), exponent);
      if (error != std::errc()) return *from != '-';
    }
    return exponent + static_cast<std::int64_t>(point) - static_cast<std::int64_t>(digit) > 0;
  }

  std::vector<Member> members_;
  std::string made_;
};

}  // namespace core_agents::json
