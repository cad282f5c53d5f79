"""The three stages: what trains, where the loss is, that a run goes on exactly, that models of transformers fit."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_agents import ActionTokenizer  # noqa: E402
from core_agents import post_training as pt  # noqa: E402
from core_agents.action_policy import ActionPolicy, grammar  # noqa: E402
from core_agents.reference.small_vlm import SmallVLM  # noqa: E402

TOKENS = ActionTokenizer(51, first_id=20, pad_id=0)


def model(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return SmallVLM(71, (6, 12), dim=16, vision_layers=1, layers=1, dropout=dropout)


def picture(x, rng):
    image = rng.integers(0, 40, (1, 3, 6, 12))
    image[..., x] = 255
    return torch.as_tensor(image, dtype=torch.uint8)


def stages(steps=(6, 6, 6), batch=8, micro=8):
    rng = np.random.default_rng(0)
    text = [pt.example([2, a], [3 + a, 1]) for a in range(6)]
    asked = [pt.example([9, 10], [3 + x // 2, 1], pixel_values=picture(x, rng)) for x in rng.integers(0, 12, 30)]
    acted = []
    for x in rng.integers(0, 12, 30):
        turn = 0 if x == 6 else 1
        camera = 60 + (3 if x > 6 else -3) * turn
        acted.append(pt.action_example([12], [2 * (x == 6) * 2 + turn], [camera], TOKENS, pixel_values=picture(x, rng)))
    options = {"batch": batch, "micro": micro, "learning_rate": 3e-3, "warmup": 2}
    made = (pt.language, pt.vision_language, pt.action)
    return [(m(n, **options), d) for m, n, d in zip(made, steps, (text, asked, acted), strict=True)]


def test_each_stage_trains_its_part_and_nothing_else():
    vlm = model()
    trainer = pt.PostTraining(vlm, stages())
    vision = pt.vision_parameters(vlm)
    assert {n.split(".")[0] for n in vision} == {"vision_tower", "multi_modal_projector"}
    for moves in (False, True, False):
        before = {n: p.detach().clone() for n, p in vlm.named_parameters()}
        list(trainer.run(6))
        changed = {n for n, p in vlm.named_parameters() if not torch.equal(p, before[n])}
        assert (changed & vision == vision) if moves else not changed & vision
        assert {"lm_head.weight", "embed_tokens.weight", "layers.0.qkv.weight"} <= changed
    assert trainer.done == trainer.total == 18
    assert list(trainer.run()) == []


def test_the_loss_is_on_the_right_tokens():
    one = pt.example([5, 6, 7], [8, 9])
    assert one.labels.tolist() == [-100, -100, -100, 8, 9]
    acted = pt.action_example([5, 6], [0, 5], [60, 61], TOKENS)
    tokens, lengths = TOKENS.encode(np.array([[0, 5]], np.int32), np.array([[60, 61]], np.int32))
    assert acted.input_ids[2:].tolist() == acted.labels[2:].tolist() == tokens[0, : lengths[0]].tolist()
    assert acted.labels[:2].tolist() == [-100, -100]
    batch = pt.collate([one, acted], pad_id=3)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    vlm = model().double()
    logits = vlm(batch["input_ids"], batch["attention_mask"]).logits
    expected = []
    for row, labels in zip(logits.log_softmax(-1).tolist(), batch["labels"].tolist(), strict=True):
        expected += [-row[t][label] for t, label in enumerate(labels[1:]) if label != -100]
    assert len(expected) == 2 + int(lengths[0])
    found = pt.token_losses(logits, batch["labels"])
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_what_stands_in_the_prompt_has_no_gradient():
    vlm = model()
    batch = pt.collate([pt.example([5, 6, 7], [8, 9])])
    logits = vlm(batch["input_ids"]).logits
    logits.retain_grad()
    pt.token_losses(logits, batch["labels"]).sum().backward()
    assert logits.grad.abs().sum(-1).ne(0).tolist() == [[False, False, True, True, False]]


def test_micro_batches_are_one_batch():
    """The mean is over the tokens of the whole batch, though its parts have different numbers of them."""
    runs = []
    for micro in (8, 3, 1):
        trainer = pt.PostTraining(model().double(), stages((1, 1, 4), micro=micro))
        runs.append(([p.loss for p in trainer.run()], trainer.model.lm_head.weight.detach()))
    for losses, weights in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-6)
        torch.testing.assert_close(weights, runs[0][1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("stop", [3, 6, 8, 15])
def test_an_interrupted_run_goes_on_exactly(tmp_path, stop):
    whole = pt.PostTraining(model(dropout=0.2), stages())
    losses = [p.loss for p in whole.run()]
    first = pt.PostTraining(model(dropout=0.2), stages())
    before = [p.loss for p in first.run(stop)]
    first.save(tmp_path / "c.safetensors")
    torch.manual_seed(99)
    second = pt.PostTraining(model(dropout=0.2, seed=5), stages())
    second.load(tmp_path / "c.safetensors")
    assert second.done == stop
    assert before + [p.loss for p in second.run()] == losses
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_looking_at_the_loss_changes_nothing():
    plain, watched = (pt.PostTraining(model(dropout=0.2), stages()) for _ in range(2))
    losses = [p.loss for p in plain.run()]
    seen = []
    for made in watched.run():
        seen.append(made.loss)
        assert watched.evaluate(watched.stages[0][1]) > 0
    assert seen == losses


def test_wrong_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trainer = pt.PostTraining(model(), stages())
    list(trainer.run(2))
    trainer.save(path)
    with pytest.raises(ValueError, match="belongs to another run"):
        pt.PostTraining(model(), stages((6, 6, 7))).load(path)
    other = SmallVLM(71, (6, 12), dim=16, vision_layers=1, layers=2)
    with pytest.raises(ValueError, match="belongs to another model"):
        pt.PostTraining(other, stages()).load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no checkpoint"):
        trainer.load(path)


def test_the_rates_are_those_of_transformers():
    schedules = pytest.importorskip("transformers.optimization")
    stage = pt.action(50, warmup=7, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = schedules.get_cosine_schedule_with_warmup(optimizer, 7, 50)
    for step in range(50):
        assert stage.rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_it_learns_to_act_and_the_bar_goes_on(tmp_path, capsys):
    plan = stages((20, 250, 250), batch=16, micro=16)
    path = tmp_path / "c.safetensors"
    short = pt.PostTraining(model(), plan)
    list(short.run(30))
    short.save(path)
    trainer, seen = pt.PostTraining(model(), plan), []
    pt.train(trainer, path, every=50, seen=lambda p: seen.append((p.stage, p.step)))
    assert seen[0] == ("vision-language", 10)
    assert seen[-1] == ("action", 249)
    assert "post-training" in capsys.readouterr().out
    assert trainer.evaluate(plan[2][1]) < 0.2
    again = pt.PostTraining(model(), plan)
    again.load(path)
    assert again.done == again.total
    policy = ActionPolicy(trainer.model, TOKENS)
    acted = plan[2][1]
    prompts = torch.stack([e.input_ids[:1] for e in acted])
    images = torch.cat([e.inputs["pixel_values"] for e in acted])
    buttons, cameras = policy.act(prompts, pixel_values=images)
    wanted = TOKENS.decode(np.stack([np.pad(e.labels[1:].numpy(), (0, 10 - len(e.labels) + 1)) for e in acted]))
    assert np.mean((buttons == wanted[0][:, 0]) & (cameras == wanted[1][:, 0])) > 0.9


@pytest.mark.parametrize("vocabulary", [51, 75])
def test_only_actions_can_be_written(vocabulary):
    """A model without knowledge writes legal actions, and whatever is encoded is a sentence of the grammar."""
    tokens = ActionTokenizer(vocabulary, first_id=20, pad_id=0)
    torch.manual_seed(1)
    blind = SmallVLM(20 + vocabulary, (6, 12), dim=16, vision_layers=1, layers=1)
    policy = ActionPolicy(blind, tokens)
    buttons, cameras = policy.act(torch.full((200, 3), 5), torch.Generator().manual_seed(2))
    written, lengths = tokens.encode(buttons[:, None], cameras[:, None])
    assert len({*zip(buttons.tolist(), cameras.tolist(), strict=True)}) > 100
    rules = grammar(vocabulary)
    for row, n in zip(written - 20, lengths, strict=True):
        assert rules[-1, row[0]]
        assert all(rules[a, b] for a, b in itertools.pairwise(row[:n]))
        assert not rules[row[n - 1]].any()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="its vision part"):
        pt.PostTraining(torch.nn.Linear(2, 2), stages())
    with pytest.raises(ValueError, match="stage action has no examples"):
        pt.PostTraining(model(), [(pt.action(3), [])])
    with pytest.raises(ValueError, match="argument 'batch'"):
        pt.language(3, batch=0)
    with pytest.raises(ValueError, match="argument 'answer'"):
        pt.example([1, 2], [])
    with pytest.raises(ValueError, match="an example has 5 tokens, at most 4"):
        list(pt.PostTraining(model(), [(pt.language(2, max_tokens=4), [pt.example([1, 2, 3], [4, 5])])]).run())
    broken = model()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(FloatingPointError, match="stage language, step 0"):
        list(pt.PostTraining(broken, stages()).run())


def test_models_of_transformers_fit():
    transformers = pytest.importorskip("transformers")
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = transformers.LlamaConfig(
        vocab_size=90, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=80, vision_feature_layer=-1)
    )
    vision_names = pt.vision_parameters(llava)
    assert all(("vision_tower" in n) or ("multi_modal_projector" in n) for n in vision_names)
    assert not any("language_model" in n or "lm_head" in n for n in vision_names)
    image = torch.randn(1, 3, 16, 16)
    asked = [pt.example([80] * 4 + [7, a], [a + 1, 2], pixel_values=image * a) for a in range(3, 9)]
    texts = [pt.example([7, a], [a + 1, 2]) for a in range(3, 9)]
    acted = [
        pt.action_example([80] * 4 + [7], [2 * a], [60], TOKENS, pixel_values=torch.randn_like(image))
        for a in range(1, 7)
    ]
    options = {"batch": 6, "micro": 3, "learning_rate": 1e-2, "warmup": 1}
    plan = [(pt.language(3, **options), texts), (pt.vision_language(3, **options), asked)]
    trainer = pt.PostTraining(llava, [*plan, (pt.action(40, **options), acted)])
    batch = pt.collate(asked)
    with torch.no_grad():
        mine, theirs = pt.token_losses(llava(**batch).logits, batch["labels"]).mean(), llava(**batch).loss
    torch.testing.assert_close(mine, theirs)
    start = trainer.evaluate(acted)
    before = {n: p.detach().clone() for n, p in llava.named_parameters() if n in vision_names}
    list(trainer.run(3))
    assert all(torch.equal(p, before[n]) for n, p in llava.named_parameters() if n in before)
    list(trainer.run(3))
    assert any(not torch.equal(p, before[n]) for n, p in llava.named_parameters() if n in before)
    list(trainer.run())
    assert trainer.evaluate(acted) < start / 2
    buttons, _ = ActionPolicy(llava, TOKENS).act(
        torch.tensor([[80] * 4 + [7]] * 2), pixel_values=image.repeat(2, 1, 1, 1)
    )
    assert buttons.shape == (2,)
