#include <core_agents/action_tokens.hpp>

#include <array>
#include <core/test.hpp>

using namespace core_agents;

CORE_TEST(inventory_survives_the_tokens) {
  const std::int32_t button = inventory_id, camera = 220;
  std::array<std::int64_t, 12> tokens{};
  std::int64_t length = 0, count = 0;
  encode_tokens(core::tensor<const std::int32_t>(&button, 1, 1), core::tensor<const std::int32_t>(&camera, 1, 1), 75, 151833, -1,
                core::tensor<std::int64_t>(tokens.data(), 1, 12), core::tensor<std::int64_t>(&length, 1));
  CHECK(length == 5);
  CHECK(tokens[0] == 151835 && tokens[1] == 151834 && tokens[4] == 151836);
  std::int32_t button_back = -1, camera_back = -1;
  decode_tokens(core::tensor<const std::int64_t>(tokens.data(), 1, 12), 75, 151833, core::tensor<std::int32_t>(&button_back, 1, 1),
                core::tensor<std::int32_t>(&camera_back, 1, 1), core::tensor<std::int64_t>(&count, 1));
  CHECK(button_back == button && camera_back == camera && count == 1);
}

CORE_TEST(illegal_pairs_are_refused) {
  const std::int32_t button = inventory_id, camera = 0;
  std::array<std::int64_t, 12> tokens{};
  std::int64_t length = 0;
  CHECK_THROWS(encode_tokens(core::tensor<const std::int32_t>(&button, 1, 1), core::tensor<const std::int32_t>(&camera, 1, 1), 75, 0, -1,
                             core::tensor<std::int64_t>(tokens.data(), 1, 12), core::tensor<std::int64_t>(&length, 1)),
               "ValueError");
}

CORE_TEST(opposite_keys_cancel_and_the_camera_is_binned) {
  std::array<bool, 20> buttons{};
  buttons[1] = buttons[2] = buttons[6] = buttons[7] = buttons[11] = buttons[19] = true;
  const std::array<float, 2> camera{10, -100};
  std::int32_t button = 0, id = 0;
  encode_actions(core::tensor<const bool>(buttons.data(), 1, 20), core::tensor<const float>(camera.data(), 1, 2), 10, 1, 20,
                 core::tensor<std::int32_t>(&button, 1), core::tensor<std::int32_t>(&id, 1));
  CHECK(button == 9 * 864 + 2 * 32 + 1);
  CHECK(id == 20 * 21);
}
