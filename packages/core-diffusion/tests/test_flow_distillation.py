import copy

import pytest

torch = pytest.importorskip("torch")

from core_diffusion.flow_distillation import (  # noqa: E402
    FlowDistillation,
    StudentAndCritic,
    flow_points,
    guided,
    huber,
    sample_flow,
)

MEANS = torch.tensor([[-2.0, 0.5], [2.0, 0.5], [0.0, -1.5]])
SPREAD = 0.3


def teacher(x, t, condition):
    """The exact velocity of the flow to a normal law around a mean for each label; label 3: all of them."""
    t = t[:, None].clamp(max=0.999)
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2

    def toward(mean):
        return mean + (t * SPREAD**2 - (1 - t)) / variance * (x - t * mean)

    means = MEANS.to(x)
    weight = torch.stack([-((x - t * m) ** 2).sum(1) / (2 * variance[:, 0]) for m in means], 1).softmax(1)
    every = sum(w[:, None] * toward(m) for w, m in zip(weight.T, means, strict=True))
    own = toward(means[condition.clamp(max=2)])
    return torch.where((condition == 3)[:, None], every, own)


class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2 + 8 + 4, 96),
            torch.nn.SiLU(),
            torch.nn.Linear(96, 96),
            torch.nn.SiLU(),
            torch.nn.Linear(96, 2),
        )

    def forward(self, x, t, condition):
        angles = t[:, None] * torch.tensor([1.0, 3.0, 6.0, 12.0])
        label = torch.nn.functional.one_hot(condition, 4).float()
        return self.net(torch.cat([x, angles.sin(), angles.cos(), label], 1))


class Step:
    def __init__(self, model, ema, index, count=256):
        self.model = self.plain = model
        self.ema, self.index = ema, index
        self.generator = torch.Generator().manual_seed(index)
        label = torch.randint(3, (count,), generator=self.generator)
        x = MEANS[label] + SPREAD * torch.randn(count, 2, generator=self.generator)
        self.batch = {"x": x, "condition": label}


def train(model, losses, steps, rate=2e-3):
    """The trainer's work in a few lines: (loss, parameters) in turn, running mean."""
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizers = [torch.optim.Adam(parameters, rate) for _, parameters in losses]
    for i in range(steps):
        for (loss, _), optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss(Step(model, ema, i))["loss"].backward()
            optimizer.step()
        for ours, theirs in zip(ema.parameters(), model.parameters(), strict=True):
            ours.lerp_(theirs.detach(), 0.05)
    return ema


def test_points():
    assert flow_points(5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert flow_points(3, 10) == [0, 0.3, 0.6, 1]
    with pytest.raises(ValueError, match="'steps'"):
        flow_points(51)


def test_guidance_is_its_formula():
    x, t, label = torch.randn(5, 2), torch.rand(5), torch.tensor([0, 1, 2, 0, 1])
    want = teacher(x, t, torch.full((5,), 3))
    want = want + 2.5 * (teacher(x, t, label) - want)
    torch.testing.assert_close(guided(teacher, x, t, label, 2.5, 3), want)
    assert torch.equal(guided(teacher, x, t, label, 1, 3), teacher(x, t, label))


def test_a_straight_flow_is_consistent():
    """All paths lead to one point in straight lines: every jump ends there, so that the loss is 0 for any phases."""
    straight = lambda x, t, condition: (MEANS[condition] - x) / (1 - t)[:, None]  # noqa: E731
    for phases in (1, 5, 10):
        losses = FlowDistillation(straight, phases=phases)
        step = Step(straight, straight, 0)
        assert losses.consistency_loss(step)["loss"] < 1e-4
        assert losses.guidance_loss(step)["loss"] == 0
    label = torch.tensor([0, 1, 2])
    torch.testing.assert_close(sample_flow(straight, torch.randn(3, 2), label, 5), MEANS)


def test_huber():
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    c = 0.1 * 2
    want = torch.stack([((a - b).square().sum() + c**2).sqrt() - c for a, b in zip(x, y, strict=True)]).mean()
    torch.testing.assert_close(huber(x, y, 0.1), want)


def test_targets_have_no_gradient():
    student, ema = Student(), Student()
    FlowDistillation(teacher, 2.0, 3).consistency_loss(Step(student, ema, 0))["loss"].backward()
    assert all(p.grad is None for p in ema.parameters())
    assert all(p.grad is not None for p in student.parameters())
    both = StudentAndCritic(Student(), torch.nn.Linear(2, 1))
    FlowDistillation(teacher).critic_loss(Step(both, both, 0))["loss"].backward()
    assert all(p.grad is None for p in both.student.parameters())


def test_few_steps_of_the_student_are_many_of_the_guided_teacher():
    torch.manual_seed(0)
    losses = FlowDistillation(teacher, guidance=1.5, null=3, phases=5)
    student = Student()
    student.load_state_dict(train(student, [(losses.guidance_loss, student.parameters())], 800).state_dict())
    student.load_state_dict(train(student, [(losses.consistency_loss, student.parameters())], 600, 5e-4).state_dict())
    both = StudentAndCritic(
        student, torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))
    )
    phases = [(losses.student_loss, both.student.parameters()), (losses.critic_loss, both.critic.parameters())]
    final = train(both, phases, 100, 2e-4).student
    noise, label = torch.randn(1500, 2), torch.arange(1500) % 3
    want = sample_flow(teacher, noise, label, 50, guidance=1.5, null=3)
    ours = sample_flow(final, noise, label, 5)
    coarse = sample_flow(teacher, noise, label, 5, guidance=1.5, null=3)
    error, of_coarse = ((x - want).norm(dim=1).mean() for x in (ours, coarse))
    assert error < 0.6 * of_coarse


def test_bad_arguments_are_named():
    for name, value in [("phases", 0), ("phases", 7), ("width", 0), ("adversarial_weight", -1)]:
        with pytest.raises(ValueError, match=f"'{name}'"):
            FlowDistillation(teacher, **{name: value})


def test_the_stages_run_in_the_trainer():
    pytest.importorskip("accelerate")
    from core_diffusion.training import TrainConfig, Trainer

    torch.manual_seed(0)
    label = torch.arange(60) % 3
    data = {"x": MEANS[label] + SPREAD * torch.randn(60, 2), "condition": label}
    config = TrainConfig(steps=3, batch_size=12, ema_decay=0.9, progress=False, log_every=1)
    losses = FlowDistillation(teacher, 2.0, 3)
    student = Student()
    for loss in (losses.guidance_loss, losses.consistency_loss):
        assert Trainer(student, loss, data, config).fit()[-1]["loss"] > 0
    both = StudentAndCritic(student, torch.nn.Linear(2, 1))
    before = [p.detach().clone() for p in both.parameters()]
    line = Trainer(both, losses.adversarial(1e-3), data, config).fit()[-1]
    assert {"student_loss", "student_word", "critic_loss"} <= set(line)
    assert all((a != b).any() for a, b in zip(before, both.parameters(), strict=True))
