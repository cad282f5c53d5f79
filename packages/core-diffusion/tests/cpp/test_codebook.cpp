#include <core/test.hpp>
#include <core_diffusion/codebook.hpp>

#include <limits>
#include <string>
#include <vector>

using core::tensor;
using std::int64_t;

namespace {
core::Tensor<const float, 2> rows(const std::vector<float>& x, int64_t n, int64_t d) { return tensor(x.data(), n, d); }
}  // namespace

CORE_TEST(nearest_of_equal_codes_is_the_first) {
  const std::vector<float> x{1, 1, 5, 5}, codes{5, 5, 1, 1, 1, 1};
  std::vector<int64_t> index(2);
  std::vector<float> distance(2);
  core_diffusion::nearest_codes(rows(x, 2, 2), rows(codes, 3, 2), tensor(index.data(), 2), tensor(distance.data(), 2));
  CHECK(index == std::vector<int64_t>({1, 0}));
  CHECK(distance == std::vector<float>({0, 0}));
}

CORE_TEST(equal_rows_leave_no_cluster_empty) {
  const std::vector<float> x(7, 2.5f);
  std::vector<float> init(4), centers(4);
  std::vector<int64_t> labels(7), rounds(1);
  std::vector<double> inertia(1);
  core_diffusion::kmeans_init(rows(x, 7, 1), 3, 1, tensor(init.data(), 4, 1));
  core_diffusion::kmeans(rows(x, 7, 1), rows(init, 4, 1), 10, 0, tensor(centers.data(), 4, 1), tensor(labels.data(), 7),
                         tensor(inertia.data(), 1), tensor(rounds.data(), 1));
  std::vector<int> size(4);
  for (const int64_t k : labels) ++size[static_cast<std::size_t>(k)];
  for (const int n : size) CHECK(n > 0);
  CHECK(inertia[0] == 0);
}

CORE_TEST(values_that_float32_cannot_square_are_refused) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
    const std::vector<float> x{0, 0, 0, bad}, codes{0, 0};
    std::vector<int64_t> index(2);
    std::vector<float> distance(2);
    std::string message;
    try {
      core_diffusion::nearest_codes(rows(x, 2, 2), rows(codes, 1, 2), tensor(index.data(), 2), tensor(distance.data(), 2));
    } catch (const core::Error& e) {
      message = e.what();
    }
    CHECK(message.find("'x'") != std::string::npos && message.find("row 1, column 1") != std::string::npos);
  }
}
