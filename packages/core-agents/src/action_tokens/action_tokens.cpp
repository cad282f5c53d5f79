#include "../errors.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <core/isa.hpp>
#include <core/parallel.hpp>
#include <core_agents/action_tokens.hpp>
#include <cstring>
#include <string>
#include <vector>

namespace core_agents {
namespace {

constexpr std::int64_t tile = 256;
constexpr int rest_ids = 864;  // joint ids for each value of hotbar

enum Button { ATTACK, BACK, FORWARD, JUMP, LEFT, RIGHT, SNEAK, SPRINT, USE, DROP, INVENTORY, HOTBAR };

/// The rest of a joint id (all groups but hotbar and flag) for each pattern of the buttons before INVENTORY.
constexpr auto rest_of_buttons = [] {
  std::array<std::uint16_t, 1 << INVENTORY> to{};
  for (std::size_t bits = 0; bits < to.size(); ++bits) {
    const auto on = [&](Button b) { return static_cast<int>(bits >> b & 1); };
    const int fore_back = on(FORWARD) == on(BACK) ? 0 : 1 + on(BACK);
    const int left_right = on(LEFT) == on(RIGHT) ? 0 : 1 + on(RIGHT);
    const int sprint_sneak = on(SNEAK) ? 2 : on(SPRINT);
    int id = (fore_back * 3 + left_right) * 3 + sprint_sneak;
    for (Button b : {USE, DROP, ATTACK, JUMP}) id = id * 2 + on(b);
    to[bits] = static_cast<std::uint16_t>(id * 2);
  }
  return to;
}();

constexpr auto buttons_of_rest = [] {
  std::array<std::uint16_t, rest_ids> to{};
  for (std::size_t r = 0; r < to.size(); ++r) {
    auto id = static_cast<unsigned>(r) / 2;
    unsigned bits = 0;
    for (Button b : {JUMP, ATTACK, DROP, USE}) {
      bits |= (id % 2) << b;
      id /= 2;
    }
    const auto three = [&](Button first, Button second) {
      bits |= unsigned{id % 3 == 1} << first | unsigned{id % 3 == 2} << second;
      id /= 3;
    };
    three(SPRINT, SNEAK), three(LEFT, RIGHT), three(FORWARD, BACK);
    to[r] = static_cast<std::uint16_t>(bits);
  }
  return to;
}();

/// The first row that a thread found wrong, whatever the number of threads.
struct FirstBad {
  std::atomic<std::int64_t> row{INT64_MAX};
  void found(std::int64_t i) {
    for (std::int64_t seen = row.load(); i < seen && !row.compare_exchange_weak(seen, i);) {}
  }
};

struct Camera {
  double maxval, binsize, mu;
  std::int32_t bins;

  double bin(double x) const {
    x = std::clamp(x, -maxval, maxval);
    if (mu > 0) x = std::copysign(std::log(1 + mu * (std::abs(x) / maxval)) / std::log(1 + mu), x) * maxval;
    return std::nearbyint((x + maxval) / binsize);
  }
  double angle(std::int32_t b) const {
    double x = b * binsize - maxval;
    if (mu > 0) x = std::copysign((std::pow(1 + mu, std::abs(x) / maxval) - 1) / mu, x) * maxval;
    return x;
  }
};

Camera camera_of(const char* op, double maxval, double binsize, double mu) {
  if (!(std::isfinite(maxval) && maxval > 0 && maxval < 1e6)) bad(op, "maxval", "in (0, 1e6)", std::to_string(maxval));
  const double half = maxval / binsize;
  if (!(binsize > 0 && half >= 0.5 && half <= 500.5 && std::abs(half - std::nearbyint(half)) < 1e-9 * half))
    bad(op, "binsize", "maxval divided by a whole number from 1 to 500", std::to_string(binsize));
  if (!(mu >= 0 && mu < 1e6)) bad(op, "mu", "in [0, 1e6)", std::to_string(mu));
  return {maxval, binsize, mu, 2 * static_cast<std::int32_t>(std::nearbyint(half)) + 1};
}

/// Floats in their order as integers, and back.
std::int32_t rank_of(float x) {
  const auto i = std::bit_cast<std::int32_t>(x);
  return i < 0 ? INT32_MIN - i : i;
}
float of_rank(std::int32_t r) { return std::bit_cast<float>(r < 0 ? INT32_MIN - r : r); }

/// For each bin but the first, the least float that falls into it or a later one: counting these gives the exact bin without a logarithm.
std::vector<float> thresholds(const Camera& c) {
  std::vector<float> t;
  const std::int32_t end = rank_of(std::nextafter(static_cast<float>(c.maxval), HUGE_VALF));
  for (std::int32_t b = 1; b < c.bins; ++b) {
    std::int64_t low = -std::int64_t{end}, high = end;
    while (low < high) {
      const std::int64_t middle = (low + high) >> 1;
      if (c.bin(of_rank(static_cast<std::int32_t>(middle))) >= b)
        high = middle;
      else
        low = middle + 1;
    }
    t.push_back(of_rank(static_cast<std::int32_t>(low)));
  }
  return t;
}

/// Eight bytes of 0 or 1 to eight bits, the first byte lowest.
std::uint32_t pack(const unsigned char* p) {
  std::uint64_t v;
  std::memcpy(&v, p, 8);
  if constexpr (std::endian::native == std::endian::big) v = __builtin_bswap64(v);
  return static_cast<std::uint32_t>((v * 0x0102040810204080ULL) >> 56);
}
void unpack(std::uint32_t bits, unsigned char* p) {
  // 0x8040...: bit k lands at the top of byte 7 - k.
  std::uint64_t v = ((bits & 0xff) * 0x8040201008040201ULL & 0x8080808080808080ULL) >> 7;
  if constexpr (std::endian::native == std::endian::little) v = __builtin_bswap64(v);
  std::memcpy(p, &v, 8);
}

struct EncodeJob {
  core::Tensor<const bool, 2> buttons;
  core::Tensor<const float, 2> camera;
  core::Tensor<std::int32_t, 1> button_ids, camera_ids;
  const float* thresholds;
  std::int32_t bins;
};

void encode_tile(const EncodeJob* job, std::int64_t begin, std::int64_t n, FirstBad* wrong) {
  const auto& [buttons, camera, button_ids, camera_ids, limits, bins] = *job;
  float x[tile] = {}, y[tile] = {};
  std::int32_t bx[tile] = {}, by[tile] = {};
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    x[i] = camera(begin + i, 0), y[i] = camera(begin + i, 1);
    finite &= std::isfinite(x[i]) && std::isfinite(y[i]);
  }
  if (!finite) {
    for (std::int64_t i = 0; i < n; ++i)
      if (!std::isfinite(x[i]) || !std::isfinite(y[i])) return wrong->found(begin + i);
  }
  for (std::int32_t k = 0; k + 1 < bins; ++k) {
    const float t = limits[k];
    for (std::int64_t i = 0; i < tile; ++i) bx[i] += x[i] >= t;
    for (std::int64_t i = 0; i < tile; ++i) by[i] += y[i] >= t;
  }
  const std::int32_t half = bins / 2, null_id = half * bins + half;
  const bool whole = buttons.stride[1] == 1;
  unsigned char row[24] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    if (whole)
      std::memcpy(row, &buttons(begin + i, 0), num_buttons);
    else
      for (std::int64_t b = 0; b < num_buttons; ++b) row[b] = buttons(begin + i, b);
    const std::uint32_t bits = pack(row) | pack(row + 8) << 8 | pack(row + 16) << 16;
    const auto hotbar = static_cast<std::int32_t>(std::bit_width(bits >> HOTBAR));
    const std::int32_t camera_id = bx[i] * bins + by[i];
    const std::int32_t id = hotbar * rest_ids + rest_of_buttons[bits & (rest_of_buttons.size() - 1)] + (camera_id != null_id);
    const bool inventory = bits >> INVENTORY & 1;
    button_ids(begin + i) = inventory ? static_cast<std::int32_t>(inventory_id) : id;
    camera_ids(begin + i) = inventory ? null_id : camera_id;
  }
}

struct DecodeJob {
  core::Tensor<const std::int32_t, 1> button_ids, camera_ids;
  core::Tensor<bool, 2> buttons;
  core::Tensor<float, 2> camera;
  const float* angles;
  std::int32_t bins;
};

void decode_tile(const DecodeJob* job, std::int64_t begin, std::int64_t n, FirstBad* wrong) {
  const auto& [button_ids, camera_ids, buttons, camera, angles, bins] = *job;
  const bool whole = buttons.stride[1] == 1;
  const std::int32_t half = bins / 2, null_id = half * bins + half;
  for (std::int64_t i = begin; i < begin + n; ++i) {
    const std::int32_t id = button_ids(i), camera_id = camera_ids(i);
    if (id < 0 || id >= num_button_ids || camera_id < 0 || camera_id >= bins * bins) return wrong->found(i);
    const bool inventory = id == inventory_id;
    const std::int32_t known = inventory ? 0 : id;
    const std::uint32_t bits = buttons_of_rest[static_cast<std::size_t>(known % rest_ids)] | std::uint32_t{inventory} << INVENTORY |
                               ((1U << known / rest_ids) >> 1) << HOTBAR;
    unsigned char row[24];
    unpack(bits, row), unpack(bits >> 8, row + 8), unpack(bits >> 16, row + 16);
    if (whole)
      std::memcpy(&buttons(i, 0), row, num_buttons);
    else
      for (std::int64_t b = 0; b < num_buttons; ++b) buttons(i, b) = row[b] != 0;
    const std::int32_t c = known % 2 ? camera_id : null_id;
    camera(i, 0) = angles[c / bins], camera(i, 1) = angles[c % bins];
  }
}

// ---- tokens ----

constexpr int groups = 8;  // hotbar, fore/back, left/right, sprint/sneak, use, drop, attack, jump
constexpr std::int32_t group_sizes[groups] = {10, 3, 3, 3, 2, 2, 2, 2};

struct Vocabulary {
  std::int64_t first, size;
  std::int32_t bins, hotbar, inventory, x, y;  // offsets of the groups' first tokens; the button groups follow hotbar
  bool marks;                                  // begin is hotbar - 2, end is hotbar - 1

  std::int32_t null_id() const { return bins * bins / 2; }
};

Vocabulary vocabulary_of(const char* op, std::int64_t vocabulary, std::int64_t first_id) {
  if (vocabulary != 51 && vocabulary != 75) bad(op, "vocabulary", "51 or 75", std::to_string(vocabulary));
  if (first_id < 0 || first_id > INT32_MAX) bad(op, "first_id", "in [0, 2^31)", std::to_string(first_id));
  if (vocabulary == 75) return {first_id, 75, 21, 4, 0, 33, 54, true};
  return {first_id, 51, 11, 0, 27, 29, 40, false};
}

bool legal(const Vocabulary& v, std::int32_t button_id, std::int32_t camera_id) {
  if (button_id < 0 || button_id >= num_button_ids || camera_id < 0 || camera_id >= v.bins * v.bins) return false;
  return (button_id != inventory_id && button_id % 2) == (camera_id != v.null_id());
}

/// For each rest of a joint id (without the flag): the tokens of its groups, counted from hotbar's first, and their number.
struct Rest {
  std::uint8_t tokens[groups - 1]{}, count = 0;
};
constexpr auto tokens_of_rest = [] {
  std::array<Rest, rest_ids / 2> to{};
  for (int r = 0; r < rest_ids / 2; ++r) {
    std::int32_t base = 0, unit = rest_ids / 2, id = r;
    for (int g = 1; g < groups; ++g) {
      base += group_sizes[g - 1];
      unit /= group_sizes[g];
      Rest& rest = to[static_cast<std::size_t>(r)];
      if (const int digit = id / unit) rest.tokens[rest.count++] = static_cast<std::uint8_t>(base + digit);
      id %= unit;
    }
  }
  return to;
}();

/// Writes an action's tokens, at most 12, and returns their end; seven more places may be overwritten.
std::int64_t* write_action(const Vocabulary& v, std::int32_t button_id, std::int32_t camera_id, std::int64_t* to) {
  const std::int64_t base = v.first + v.hotbar;
  *to = base - 2;
  to += v.marks;
  if (button_id == inventory_id) {
    *to++ = v.first + v.inventory + 1;
  } else {
    const std::int32_t hotbar = button_id / rest_ids;
    *to = base + hotbar;
    to += hotbar != 0;
    const Rest& rest = tokens_of_rest[static_cast<std::size_t>(button_id % rest_ids / 2)];
    for (int g = 0; g < groups - 1; ++g) to[g] = base + rest.tokens[g];
    to += rest.count;
  }
  *to++ = v.first + v.x + camera_id / v.bins;
  *to++ = v.first + v.y + camera_id % v.bins;
  *to = base - 1;
  return to + v.marks;
}

/// What a token says: `part` of an action is `value`. The parts of a button id add up to it.
struct Meaning {
  std::int32_t part = nothing, value = 0;
  static constexpr std::int32_t x = groups, y = groups + 1, inventory = groups + 2, nothing = groups + 3, begin = groups + 4,
                                end = groups + 5;
};

std::array<Meaning, 75> meanings(const Vocabulary& v) {
  std::array<Meaning, 75> to{};
  const auto at = [&](std::int32_t offset) -> Meaning& { return to[static_cast<std::size_t>(offset)]; };
  std::int32_t base = v.hotbar, unit = static_cast<std::int32_t>(inventory_id);
  for (int g = 0; g < groups; base += group_sizes[g++]) {
    unit /= group_sizes[g];
    for (std::int32_t k = 0; k < group_sizes[g]; ++k) at(base + k) = {g, k * unit};
  }
  for (std::int32_t k = 0; k < 2; ++k) at(v.inventory + k) = {Meaning::inventory, k};
  for (std::int32_t k = 0; k < v.bins; ++k) {
    at(v.x + k) = {Meaning::x, k * v.bins};
    at(v.y + k) = {Meaning::y, k};
  }
  if (v.marks) at(v.hotbar - 2).part = Meaning::begin, at(v.hotbar - 1).part = Meaning::end;
  return to;
}

/// An action as it is read.
struct Reading {
  std::int32_t parts[Meaning::nothing + 1] = {};

  explicit Reading(const Vocabulary& v) {
    parts[Meaning::x] = v.bins / 2 * v.bins;
    parts[Meaning::y] = v.bins / 2;
  }
  void finish(const Vocabulary& v, std::int32_t& button_id, std::int32_t& camera_id) const {
    const bool inventory = parts[Meaning::inventory] != 0;
    const std::int32_t camera = parts[Meaning::x] + parts[Meaning::y];
    std::int32_t id = camera != v.null_id();
    for (int g = 0; g < groups; ++g) id += parts[g];
    camera_id = inventory ? v.null_id() : camera;
    button_id = inventory ? static_cast<std::int32_t>(inventory_id) : id;
  }
};

}  // namespace

void encode_actions(core::Tensor<const bool, 2> buttons, core::Tensor<const float, 2> camera, double maxval, double binsize, double mu,
                    core::Tensor<std::int32_t, 1> button_ids, core::Tensor<std::int32_t, 1> camera_ids) {
  const Camera c = camera_of("encode_actions", maxval, binsize, mu);
  const auto limits = thresholds(c);
  const EncodeJob job{buttons, camera, button_ids, camera_ids, limits.data(), c.bins};
  FirstBad wrong;
  core::parallel_for((buttons.shape[0] + tile - 1) / tile, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t)
      core::multiversion<&encode_tile>(&job, t * tile, std::min(tile, buttons.shape[0] - t * tile), &wrong);
  });
  if (const std::int64_t row = wrong.row; row != INT64_MAX)
    bad("encode_actions", "camera", "finite",
        std::to_string(camera(row, 0)) + ", " + std::to_string(camera(row, 1)) + " in row " + std::to_string(row));
}

void decode_actions(core::Tensor<const std::int32_t, 1> button_ids, core::Tensor<const std::int32_t, 1> camera_ids, double maxval,
                    double binsize, double mu, core::Tensor<bool, 2> buttons, core::Tensor<float, 2> camera) {
  const Camera c = camera_of("decode_actions", maxval, binsize, mu);
  std::vector<float> angles;
  for (std::int32_t b = 0; b < c.bins; ++b) angles.push_back(static_cast<float>(c.angle(b)));
  const DecodeJob job{button_ids, camera_ids, buttons, camera, angles.data(), c.bins};
  FirstBad wrong;
  core::parallel_for(button_ids.shape[0], 16 * tile,
                     [&](std::int64_t begin, std::int64_t end) { core::multiversion<&decode_tile>(&job, begin, end - begin, &wrong); });
  if (const std::int64_t row = wrong.row; row != INT64_MAX) {
    const bool button = button_ids(row) < 0 || button_ids(row) >= num_button_ids;
    bad("decode_actions", button ? "button_ids" : "camera_ids",
        "in [0, " + std::to_string(button ? num_button_ids : std::int64_t{c.bins} * c.bins) + ")",
        std::to_string(button ? button_ids(row) : camera_ids(row)) + " in row " + std::to_string(row));
  }
}

void encode_tokens(core::Tensor<const std::int32_t, 2> button_ids, core::Tensor<const std::int32_t, 2> camera_ids, std::int64_t vocabulary,
                   std::int64_t first_id, std::int64_t pad_id, core::Tensor<std::int64_t, 2> tokens,
                   core::Tensor<std::int64_t, 1> lengths) {
  const Vocabulary v = vocabulary_of("encode_tokens", vocabulary, first_id);
  if (pad_id >= v.first && pad_id < v.first + v.size)
    bad("encode_tokens", "pad_id", "outside the vocabulary's ids", std::to_string(pad_id));
  const std::int64_t chunk = button_ids.shape[1], width = tokens.shape[1];
  FirstBad wrong, narrow;
  const auto rows = [&](std::int64_t begin, std::int64_t end) {
    std::int64_t action[20];
    for (std::int64_t b = begin; b < end; ++b) {
      std::int64_t at = 0;
      for (std::int64_t c = 0; c < chunk; ++c) {
        if (!legal(v, button_ids(b, c), camera_ids(b, c))) return wrong.found(b * chunk + c);
        const std::int64_t n = write_action(v, button_ids(b, c), camera_ids(b, c), action) - action;
        if (at + n > width) return narrow.found(b);
        for (std::int64_t k = 0; k < n; ++k) tokens(b, at + k) = action[k];
        at += n;
      }
      lengths(b) = at;
      for (; at < width; ++at) tokens(b, at) = pad_id;
    }
  };
  core::parallel_for(button_ids.shape[0], 2048 / (chunk + 1) + 1, rows);
  if (const std::int64_t i = wrong.row; i != INT64_MAX) {
    const std::int64_t b = i / chunk, c = i % chunk;
    bad("encode_tokens", "button_ids", "legal together with camera_ids (ids in range, the flag on exactly if the camera moves)",
        std::to_string(button_ids(b, c)) + " and " + std::to_string(camera_ids(b, c)) + " at [" + std::to_string(b) + ", " +
            std::to_string(c) + "]");
  }
  if (const std::int64_t b = narrow.row; b != INT64_MAX)
    bad("encode_tokens", "tokens", "wide enough for each row's actions",
        std::to_string(width) + " columns, too few for row " + std::to_string(b));
}

void decode_tokens(core::Tensor<const std::int64_t, 2> tokens, std::int64_t vocabulary, std::int64_t first_id,
                   core::Tensor<std::int32_t, 2> button_ids, core::Tensor<std::int32_t, 2> camera_ids,
                   core::Tensor<std::int64_t, 1> counts) {
  const Vocabulary v = vocabulary_of("decode_tokens", vocabulary, first_id);
  const std::int64_t width = tokens.shape[1], chunk = button_ids.shape[1];
  const auto known = meanings(v);
  core::parallel_for(tokens.shape[0], 2048 / (width + 1) + 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      std::int64_t count = 0;
      Reading reading(v);
      bool open = !v.marks;
      for (std::int64_t t = 0; t < width; ++t) {
        const auto offset = static_cast<std::uint64_t>(tokens(b, t)) - static_cast<std::uint64_t>(v.first);
        if (offset >= static_cast<std::uint64_t>(v.size)) continue;
        const Meaning m = known[offset];
        if (m.part < Meaning::begin) {
          reading.parts[m.part] = m.value;
          if (v.marks || m.part != Meaning::y) continue;
        } else if (m.part == Meaning::begin) {
          reading = Reading(v);
          open = true;
          continue;
        } else if (!open) {
          continue;
        }
        if (count < chunk) reading.finish(v, button_ids(b, count), camera_ids(b, count));
        ++count;
        reading = Reading(v);
        open = !v.marks;
      }
      counts(b) = count;
      for (std::int64_t c = count; c < chunk; ++c) button_ids(b, c) = 0, camera_ids(b, c) = v.null_id();
    }
  });
}

}  // namespace core_agents
