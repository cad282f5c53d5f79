// core_agents/action_tokens.hpp - Minecraft actions as joint ids and as tokens of a language model.
//
// VPT (arXiv 2206.11795) gives the joint action space and the camera's mu-law bins, JARVIS-VLA (arXiv 2503.16365) the tokens.
//
// Buttons, in VPT's order: attack, back, forward, jump, left, right, sneak, sprint, use, drop, inventory, hotbar.1 ... hotbar.9.
// Their groups: hotbar (none, 1-9), fore/back (none, forward, back), left/right (none, left, right), sprint/sneak (none, sprint,
// sneak), use, drop, attack, jump and the flag "the camera moves" (each none or pressed). A joint button id counts through the
// groups, the flag fastest: 10 * 3^3 * 2^5 = 8640 ids, and 8640 is inventory alone. A camera id is x_bin * bins + y_bin, x the
// first camera angle. The flag is on exactly if the camera is not in the middle bin of both axes, the null bin; inventory has it off.
#pragma once
#include <core/tensor.hpp>

#include <cstdint>

namespace core_agents {

inline constexpr std::int64_t num_buttons = 20, num_button_ids = 8641, inventory_id = 8640;

/// Environment actions to joint ids. Opposite keys cancel; in the other groups the later button of the group wins; with
/// `inventory` pressed everything else is dropped. An angle in degrees is clipped to +-maxval and, with mu > 0, compressed to
/// v = sign(x) maxval ln(1 + mu |x| / maxval) / ln(1 + mu); its bin is (v + maxval) / binsize rounded half to even (in float64).
/// buttons [N, 20], camera [N, 2] finite; maxval / binsize a whole number, at most 500; mu >= 0, 0 is linear.
CORE_EXPORT void encode_actions(core::Tensor<const bool, 2> buttons, core::Tensor<const float, 2> camera, double maxval, double binsize,
                                double mu, core::Tensor<std::int32_t, 1> button_ids, core::Tensor<std::int32_t, 1> camera_ids);

/// Joint ids to environment actions: the angle is the middle of its bin. Where the flag is off the camera stands still.
CORE_EXPORT void decode_actions(core::Tensor<const std::int32_t, 1> button_ids, core::Tensor<const std::int32_t, 1> camera_ids,
                                double maxval, double binsize, double mu, core::Tensor<bool, 2> buttons, core::Tensor<float, 2> camera);

/// Chunks of C joint actions to tokens: for each action the tokens of those groups that are not none, then both camera tokens.
/// vocabulary 75 (JARVIS-VLA's program): 21 bins, an action stands between a begin and an end token; ids in the order inventory 2,
/// begin, end, hotbar 10, fore/back 3, left/right 3, sprint/sneak 3, use 2, drop 2, attack 2, jump 2, flag 2 (never written), x 21, y 21.
/// vocabulary 51 (the paper's count): 11 bins, no marks, the y token ends an action; hotbar 10 to jump 2, inventory 2, x 11, y 11.
/// The first id is `first_id`. Rows of `tokens` are filled up with `pad_id`. Refuses pairs of ids that are not legal (see above).
CORE_EXPORT void encode_tokens(core::Tensor<const std::int32_t, 2> button_ids, core::Tensor<const std::int32_t, 2> camera_ids,
                               std::int64_t vocabulary, std::int64_t first_id, std::int64_t pad_id, core::Tensor<std::int64_t, 2> tokens,
                               core::Tensor<std::int64_t, 1> lengths);

/// Tokens to joint actions, the inverse. Any tokens are safe: those outside the vocabulary are skipped, those of an action may come
/// in any order, the last one of a group counts, a missing camera token means the middle bin, the flag follows from the camera. An
/// action that is not ended is dropped. `counts` is the number of actions of a row; the first C are written, the rest is null actions.
CORE_EXPORT void decode_tokens(core::Tensor<const std::int64_t, 2> tokens, std::int64_t vocabulary, std::int64_t first_id,
                               core::Tensor<std::int32_t, 2> button_ids, core::Tensor<std::int32_t, 2> camera_ids,
                               core::Tensor<std::int64_t, 1> counts);

}  // namespace core_agents
