// The octree operators as C++ functions, and streams that no structure has.
#include <core/test.hpp>
#include <core_3d_molecule/octree.hpp>

#include <algorithm>

namespace {
struct Water {
  std::vector<std::int32_t> numbers{8, 1, 1}, tokens, levels, bins, counts;
  std::vector<double> positions{0, 0, 0.119, 0, 0.763, -0.477, 0, -0.763, -0.477}, origins = std::vector<double>(3);
  std::vector<std::int64_t> offsets{0, 3}, token_offsets{0, 0}, atoms;
  std::vector<float> centres;
  std::int64_t total = 0;

  template <class T, class... S>
  static core::Tensor<const T, sizeof...(S)> in(const std::vector<T>& v, S... shape) {
    return core::tensor(v.data(), shape...);
  }
  Water() {
    core_3d_molecule::octree_count_f64(in(positions, 3, 3), in(offsets, 2), 6, 0.24, 0.01, false, false, 0, {}, {},
                                       core::tensor(&total, 1));
    token_offsets[1] = total;
    const auto n = static_cast<std::size_t>(total);
    tokens.resize(n), levels.resize(n), atoms.resize(n), counts.resize(n), bins.resize(3 * n), centres.resize(3 * n);
    core_3d_molecule::octree_tokenize_f64(in(numbers, 3), in(positions, 3, 3), in(offsets, 2), in(token_offsets, 2), 6, 0.24, 0.01, false,
                                          false, 0, {}, {}, core::tensor(tokens.data(), total), core::tensor(levels.data(), total),
                                          core::tensor(centres.data(), total, 3), core::tensor(bins.data(), total, 3),
                                          core::tensor(counts.data(), total), core::tensor(atoms.data(), total),
                                          core::tensor(origins.data(), 1, 3));
  }
  int read() {
    std::vector<std::int32_t> z(3);
    std::vector<double> p(9);
    core_3d_molecule::octree_detokenize(in(tokens, total), in(bins, total, 3), in(token_offsets, 2), in(origins, 1, 3), in(offsets, 2), 6,
                                        0.24, 0.01, core::tensor(z.data(), 3), core::tensor(p.data(), 3, 3));
    for (std::int64_t t = 0, i = 0; t < total; ++t)
      if (atoms[static_cast<std::size_t>(t)] >= 0) {
        const auto from = static_cast<std::size_t>(atoms[static_cast<std::size_t>(t)]), to = static_cast<std::size_t>(i++);
        CHECK(z[to] == numbers[from]);
        for (std::size_t axis = 0; axis < 3; ++axis) CHECK_NEAR(p[3 * to + axis], positions[3 * from + axis], 0.00501);
      }
    return 0;
  }
};
}  // namespace

CORE_TEST(round_trip) { Water().read(); }

CORE_TEST(stream_of_water) {
  Water w;
  CHECK(w.levels.front() == 6 && w.levels.back() == -1 && w.tokens.back() == core_3d_molecule::cls_token);
  CHECK(std::count(w.levels.begin(), w.levels.end(), 0) == 3 && std::count(w.levels.begin(), w.levels.end(), 6) == 1);
}

CORE_TEST(hostile_streams) {
  for (std::int32_t bad : {-1, 139, 340, 342, 344, 346, 602, INT32_MAX, INT32_MIN})
    for (std::size_t at = 0; at < Water().tokens.size(); ++at) {
      Water w;
      if (w.tokens[at] == bad) continue;
      w.tokens[at] = bad;
      CHECK_THROWS(w.read(), "ValueError");
    }
  Water shorter, longer, bins;
  shorter.token_offsets[1] = --shorter.total;
  CHECK_THROWS(shorter.read(), "ValueError");
  longer.tokens.push_back(0), longer.bins.resize(longer.bins.size() + 3), longer.token_offsets[1] = ++longer.total;
  CHECK_THROWS(longer.read(), "ValueError");
  bins.bins[bins.bins.size() - 4] = 24;
  CHECK_THROWS(bins.read(), "ValueError");
}
