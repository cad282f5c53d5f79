"""A flow over the latent sets of an autoencoder of shapes learns, saves, and is distilled through all three stages."""

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from core_diffusion.flow_distillation import FlowDistillation, StudentAndCritic, flow_loss, sample_flow  # noqa: E402
from core_diffusion.latent_flow import LatentTransformer, encode_latents  # noqa: E402
from core_diffusion.vecset import VecSetVAE  # noqa: E402


def model(**changes):
    torch.manual_seed(0)
    net = LatentTransformer(**{"latent_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2, **changes})
    for p in (net.final.linear.weight, net.final.modulation.weight, *(b.modulation.weight for b in net.blocks)):
        torch.nn.init.normal_(p, std=0.05)  # these start at 0
    return net


def test_velocities_follow_the_set_and_the_condition(tmp_path):
    net = model(condition_dim=2).eval()
    x, t, c = torch.randn(3, 7, 4), torch.rand(3), torch.randn(3, 2)
    with torch.no_grad():
        out, order = net(x, t, c), torch.randperm(7)
        torch.testing.assert_close(net(x[:, order], t, c), out[:, order], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(net(x, t, c + 1), out)
        net.save_pretrained(tmp_path)
        assert torch.equal(LatentTransformer.from_pretrained(tmp_path).eval()(x, t, c), out)
    for bad in (None, torch.zeros(3, 1)):
        with pytest.raises(ValueError, match=r"'condition' must have shape \(3, 2\)"):
            net(x, t, bad)
    with pytest.raises(ValueError, match=r"'x' must have shape \(B, M, 4\)"):
        net(x[..., :3], t, c)
    with pytest.raises(ValueError, match="'condition' must have shape None"):
        model()(x, t, c)


def test_latents_are_of_unit_size_and_decode():
    vae = VecSetVAE(8, 4, 16, 2, 1).eval()
    normal = torch.nn.functional.normalize(torch.randn(5, 64, 3), dim=2)
    surface = torch.cat([0.5 * normal, normal], 2)
    latents, scale = encode_latents(vae, surface.half(), batch=2)
    assert latents.shape == (5, 8, 4)
    assert float(latents.std()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scale * latents, vae.encode(surface.half().float())[0], atol=1e-5, rtol=1e-4)


def test_two_steps_of_the_student_are_twenty_of_the_guided_teacher():
    pytest.importorskip("accelerate")
    from core_diffusion.training import TrainConfig, Trainer

    torch.manual_seed(0)
    vae = VecSetVAE(8, 4, 16, 2, 1).eval()
    kind = torch.arange(64) % 2
    normal = torch.nn.functional.normalize(torch.randn(64, 64, 3), dim=2)
    places = normal * torch.where(kind == 0, 0.9, 0.3)[:, None, None]  # large balls and small ones
    latents, _ = encode_latents(vae, torch.cat([places, normal], 2))
    data = {"x": latents, "condition": torch.where(kind == 0, 1.0, -1.0)[:, None]}

    def train(net, loss, steps, rate):
        config = TrainConfig(steps=steps, batch_size=32, learning_rate=rate, ema_decay=0.9, progress=False)
        return Trainer(net, loss, data, config).fit(), net.eval()

    history, teacher = train(model(condition_dim=1), flow_loss(), 250, 3e-3)
    assert history[-1]["loss"] < 0.85 * history[0]["loss"]
    losses = FlowDistillation(teacher.requires_grad_(False), guidance=1.5, points=20, phases=2)
    student = copy.deepcopy(teacher).requires_grad_(True)
    for stage, steps, rate in ((losses.guidance_loss, 60, 1e-3), (losses.consistency_loss, 250, 1e-3)):
        _, student = train(student.train(), stage, steps, rate)
    both = StudentAndCritic(
        student.train(), torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1))
    )
    line = train(both, losses.adversarial(1e-3), 10, 1e-4)[0][-1]
    assert {"student_loss", "student_word", "critic_loss"} <= set(line)
    noise, condition = torch.randn(64, 8, 4), data["condition"]
    want = sample_flow(teacher, noise, condition, 20, 20, guidance=1.5, null=0)
    coarse = sample_flow(teacher, noise, condition, 2, 20, guidance=1.5, null=0)
    with torch.no_grad():
        ours = sample_flow(both.student.eval(), noise, condition, 2, 20)
    error, of_coarse = ((x - want).flatten(1).norm(dim=1).mean() for x in (ours, coarse))
    assert error < 0.3 * of_coarse
    assert vae.decode(ours).shape == (64, 8, 16)
