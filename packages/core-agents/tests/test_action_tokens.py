"""Joint actions and tokens: bijections, VPT's rules, the camera's formula, damaged text."""

import numpy as np
import pytest
from core_agents.action_tokens import (
    BUTTONS,
    INVENTORY,
    JARVIS_CAMERA,
    VPT_CAMERA,
    ActionTokenizer,
    CameraBins,
    decode_actions,
    encode_actions,
    stack_buttons,
)
from core_agents.reference import action_tokens as reference
from hypothesis import given, settings
from hypothesis import strategies as st

TOKENIZERS = {75: ActionTokenizer(), 51: ActionTokenizer(51)}


def pairs(bins):
    buttons, cameras = np.divmod(np.arange(8641 * bins.bins**2), bins.bins**2)
    legal = ((buttons % 2 == 1) & (buttons != INVENTORY)) == (cameras != bins.null_id)
    return buttons.astype(np.int32), cameras.astype(np.int32), legal


@pytest.mark.parametrize("vocabulary", [75, 51])
def test_every_legal_joint_action_is_its_own_tokens_and_its_own_environment_action(vocabulary):
    tokenizer = TOKENIZERS[vocabulary]
    buttons, cameras, legal = pairs(tokenizer.camera)
    buttons, cameras = buttons[legal], cameras[legal]
    assert len(buttons) == 4320 + 4320 * (tokenizer.camera.bins**2 - 1) + 1
    tokens, lengths = tokenizer.encode(buttons[:, None], cameras[:, None])
    assert (lengths.min(), lengths.max()) == ((4, 12) if vocabulary == 75 else (2, 10))
    again = tokenizer.decode(tokens)
    assert (again[0][:, 0] == buttons).all()
    assert (again[1][:, 0] == cameras).all()
    assert (again[2] == 1).all()
    order = np.unique(tokens @ np.random.default_rng(0).integers(1, 2**40, tokens.shape[1]))
    assert len(order) == len(buttons), "two actions share their tokens"

    keys, camera = decode_actions(buttons, cameras, tokenizer.camera)
    back = encode_actions(keys, camera, tokenizer.camera)
    assert (back[0] == buttons).all()
    assert (back[1] == cameras).all()


@pytest.mark.parametrize("vocabulary", [75, 51])
def test_every_illegal_pair_is_refused(vocabulary):
    tokenizer = TOKENIZERS[vocabulary]
    buttons, cameras, legal = pairs(tokenizer.camera)
    some = np.random.default_rng(1).choice(np.flatnonzero(~legal), 300)
    for i in some:
        with pytest.raises(ValueError, match=rf"argument 'button_ids' .* {buttons[i]} and {cameras[i]} at \[0, 0\]"):
            tokenizer.encode(buttons[i : i + 1, None], cameras[i : i + 1, None])


@pytest.mark.parametrize("seed", range(3))
def test_tokens_equal_the_reference_by_name(seed):
    rng = np.random.default_rng(seed)
    for vocabulary, tokenizer in TOKENIZERS.items():
        buttons, cameras, legal = pairs(tokenizer.camera)
        chosen = rng.choice(np.flatnonzero(legal), (100, 3))
        made = {"button_ids": buttons[chosen], "camera_ids": cameras[chosen]}
        tokens, lengths = tokenizer.encode(*made.values())
        settings_ = {"vocabulary": vocabulary, "first_id": tokenizer.first_id, "pad_id": tokenizer.pad_id}
        expected = reference.encode_tokens({**made, **settings_, "tokens": tokens})
        assert (tokens == expected["tokens"]).all()
        assert (lengths == expected["lengths"]).all()


def test_the_vocabulary_of_75_is_qwen2_vls():
    tokenizer = TOKENIZERS[75]
    assert tokenizer.texts[0] == "<|reserved_special_token_176|>"
    assert tokenizer.texts[-1] == "<|reserved_special_token_250|>"
    assert len(tokenizer.texts) == 75
    buttons = stack_buttons({"hotbar.9": 1, "forward": 1, "jump": 1})
    joint = encode_actions(buttons, np.array([[10.0, 0.0]], np.float32))
    tokens, lengths = tokenizer.encode(joint[0][:, None], joint[1][:, None])
    named = [tokenizer.texts[t - tokenizer.first_id] for t in tokens[0, : lengths[0]]]
    assert named == [f"<|reserved_special_token_{i}|>" for i in (178, 189, 191, 206, 229, 240, 179)]
    assert (tokens[0, lengths[0] :] == tokenizer.pad_id).all()


def test_the_rules_of_vpt():
    def pressed(*names, camera=(0, 0)):
        ids = encode_actions(stack_buttons(dict.fromkeys(names, 1)), np.array([camera], np.float32))
        keys, view = decode_actions(*ids)
        return {BUTTONS[i] for i in np.flatnonzero(keys[0])}, tuple(view[0]), ids

    assert pressed("forward", "back", "left", "right")[0] == set()
    assert pressed("sprint", "sneak")[0] == {"sneak"}
    assert pressed("hotbar.1", "hotbar.9", "hotbar.4")[0] == {"hotbar.9"}
    keys, view, ids = pressed("inventory", "attack", "forward", camera=(5, 5))
    assert (keys, view, int(ids[0][0]), int(ids[1][0])) == ({"inventory"}, (0, 0), 8640, 220)
    assert pressed(camera=(0.01, -0.01))[2][0] == 0
    assert pressed(camera=(3, 0))[2][0] == 1


@pytest.mark.parametrize("bins", [JARVIS_CAMERA, VPT_CAMERA, CameraBins(180, 1.5, 0), CameraBins(7, 0.5, 3)])
def test_a_million_angles_fall_where_the_formula_says(bins):
    rng = np.random.default_rng(0)
    settings_ = bins.maxval, bins.binsize, bins.mu
    angles = rng.uniform(-1.1 * bins.maxval, 1.1 * bins.maxval, (500_000, 2)).astype(np.float32)
    _, ids = encode_actions(np.zeros((len(angles), 20), bool), angles, bins)
    expected = reference.bin_of(angles, *settings_)
    assert (np.stack(np.divmod(ids, bins.bins), 1) == expected).all()

    flag = np.ones(len(ids), np.int32)
    _, back = decode_actions(flag, ids, bins)
    np.testing.assert_allclose(back, reference.angle_of(expected, *settings_), rtol=1e-6, atol=1e-6)

    def compressed(x):
        x = np.clip(x.astype(np.float64), -bins.maxval, bins.maxval)
        return (
            x
            if not bins.mu
            else np.sign(x) * np.log1p(bins.mu * np.abs(x) / bins.maxval) / np.log1p(bins.mu) * bins.maxval
        )

    assert np.abs(compressed(back) - compressed(angles)).max() <= bins.binsize / 2 * (1 + 1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 80), max_size=40), st.sampled_from([75, 51]))
def test_any_tokens_decode_as_the_reference_reads_them(tokens, vocabulary):
    made = {"tokens": np.array([tokens], np.int64).reshape(1, -1), "vocabulary": vocabulary, "first_id": 0}
    ours = ActionTokenizer(vocabulary, 0, -1).decode(made["tokens"], 4)
    expected = reference.decode_tokens({**made, "button_ids": ours[0]})
    for got, want in zip(ours, expected.values(), strict=True):
        assert (got == want).all()
    legal = ((ours[0] % 2 == 1) & (ours[0] != INVENTORY)) == (ours[1] != (220 if vocabulary == 75 else 60))
    assert legal.all()


def test_torch_tensors_stay_torch_tensors():
    torch = pytest.importorskip("torch")
    ids = encode_actions(torch.zeros(3, 20, dtype=torch.bool), torch.zeros(3, 2))
    tokens, _ = TOKENIZERS[75].encode(ids[0][:, None], ids[1][:, None])
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(TOKENIZERS[75].decode(tokens, 2)[0], torch.Tensor)


def test_a_tokenizer_with_the_special_tokens_keeps_them():
    tokenizers = pytest.importorskip("tokenizers")
    ours = ActionTokenizer(51, 3)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    made.add_special_tokens(ours.texts)
    assert [made.token_to_id(t) for t in ours.texts] == list(range(3, 54))
    assert made.encode("a" + "".join(ours.texts)).ids == [1, *range(3, 54)]


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match=r"argument 'camera' must be finite, got 0.0+, nan in row 1"):
        encode_actions(np.zeros((2, 20), bool), np.array([[0, 0], [0, np.nan]], np.float32))
    with pytest.raises(ValueError, match="argument 'binsize'"):
        encode_actions(np.zeros((1, 20), bool), np.zeros((1, 2), np.float32), CameraBins(10, 3, 1))
    with pytest.raises(ValueError, match="argument 'camera_ids' must be in"):
        decode_actions([1], [441])
    with pytest.raises(ValueError, match="argument 'vocabulary' must be 51 or 75"):
        ActionTokenizer(52).decode([[1]])
    with pytest.raises(ValueError, match="argument 'pad_id'"):
        ActionTokenizer(75, 0, 3).encode([[0]], [[220]])
    with pytest.raises(ValueError, match="0 or 1"):
        stack_buttons({"attack": 2})
