"""Muon: its updates are orthogonal, its steps are those of a plain reference, and runs with it resume exactly."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule.muon import DECAY, MOMENTUM, SPREAD, Muon, orthogonalised  # noqa: E402
from core_3d_molecule.training import Optimisation, Trainer  # noqa: E402
from core_3d_molecule.udm3d import dit  # noqa: E402
from core_3d_molecule.uni3dar import Config, Uni3DAR  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
PIECES = {"three.weight": 3, "tall.weight": 2, "wide.weight": 1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(16, 16), (24, 64), (64, 64), (1, 5)])
def test_orthogonal_as_by_singular_values(shape, device):
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.logspace(-6, 6, 7, dtype=torch.float64)[:, None, None]
    found = orthogonalised(x.float().to(device)).double().cpu()
    u, values, vh = torch.linalg.svd(x, full_matrices=False)
    again = u.mT @ found @ vh.mT  # what the steps made of each singular value, where it was
    kept = torch.diagonal(again, dim1=1, dim2=2)
    large = values > 0.02 * values.norm(dim=1, keepdim=True)
    assert float(kept[large].min()) > 0.6
    assert float(kept[large].max()) < 1.3
    assert float((again - torch.diag_embed(kept)).abs().max()) < (0.05 if device == "cuda" else 1e-4)
    assert torch.equal(orthogonalised(torch.zeros(1, *shape, device=device)).cpu(), torch.zeros(1, *shape))


def weights(device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"three.weight": (48, 16), "tall.weight": (80, 16), "wide.weight": (16, 40)}
    return {n: torch.nn.Parameter(torch.randn(s, generator=generator).to(device)) for n, s in shapes.items()}


def test_steps_are_the_reference_s():
    """One matrix after the other, in float64, with the polynomial written out."""
    mine, theirs = weights(), {n: w.detach().double() for n, w in weights().items()}
    muon = Muon(mine, PIECES, lr=0.02)
    momenta = {n: torch.zeros_like(w) for n, w in theirs.items()}
    for turn, rate in enumerate((0.02, 0.01, 0.005)):
        muon.lr.fill_(rate)
        for (name, weight), gradient in zip(mine.items(), weights(seed=turn + 1).values(), strict=True):
            weight.grad = gradient.detach().clone()
            g = gradient.detach().double()
            momenta[name] = MOMENTUM * momenta[name] + (1 - MOMENTUM) * g
            ahead = MOMENTUM * momenta[name] + (1 - MOMENTUM) * g
            for k, one in enumerate(ahead.chunk(PIECES[name])):
                y = one / one.norm()
                for _ in range(5):
                    y = 3.4445 * y - 4.7750 * y @ y.T @ y + 2.0315 * y @ y.T @ y @ y.T @ y
                w = theirs[name].chunk(PIECES[name])[k]
                w *= 1 - rate * DECAY
                w -= rate * SPREAD * max(one.shape) ** 0.5 * y
        muon.step()
        for name, weight in mine.items():
            torch.testing.assert_close(weight.detach().double(), theirs[name], atol=1e-5, rtol=1e-5)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="2 matrices under each other, got 'w' of shape \\(3, 4\\)"):
        Muon({"w": torch.nn.Parameter(torch.zeros(3, 4))}, {"w": 2}, 0.1)
    with pytest.raises(ValueError, match="must all have gradients"):
        Muon(weights(), PIECES, 0.1).step()
    for matrices in (None, {"none": 1}):
        with pytest.raises(ValueError, match="'matrices' must name parameters"):
            trainer(Optimisation(steps=1, muon=True), matrices=matrices)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.three, self.tall = torch.nn.Linear(16, 48), torch.nn.Linear(48, 16, bias=False)
        self.wide = torch.nn.Linear(16, 5)

    def forward(self, x):
        return self.wide(self.tall(torch.tanh(self.three(x))))


def trainer(optimisation, device="cpu", matrices=None):
    torch.manual_seed(0)
    model = Model().to(device)

    def batches(state):
        at = (state or {"at": 0})["at"]
        while True:
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(at)).to(device)
            at += 1
            yield x, {"at": at}

    def loss(x):
        return {"loss": (model(x) - x[:, :5].sin()).square().mean()}

    return Trainer(model, loss, batches, optimisation, graph=True, matrices=matrices)


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns_and_resumes_exactly(device, tmp_path):
    how, matrices = Optimisation(steps=60, lr=0.02, warmup=5, muon=True), {"three.weight": 3, "tall.weight": 1}
    whole, first, second = (trainer(how, device, matrices) for _ in range(3))
    losses = [float(f["loss"]) for f in whole.run(60)]
    assert np.mean(losses[-5:]) < 0.2 * losses[0]
    list(first.run(25))
    first.save(tmp_path / "m.safetensors")
    second.load(tmp_path / "m.safetensors")
    list(second.run(60))
    assert second.done
    for name, value in whole.parameters.items():
        if device == "cpu":
            assert torch.equal(second.parameters[name], value), name
        torch.testing.assert_close(second.parameters[name], value, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="expected a run with"):
        trainer(Optimisation(steps=60, lr=0.02, warmup=5), device).load(tmp_path / "m.safetensors")


def test_models_name_their_hidden_matrices():
    for model, count in (
        (Uni3DAR(Config(layers=2, width=48, heads=1)), 2 * 7),
        (dit.DiT(dit.Config(latent=4, layers=3, width=32, heads=2)), 3 * 6),
    ):
        found = dict(model.named_parameters())
        Muon({n: found[n] for n in model.matrices()}, model.matrices(), 0.1)
        assert sum(model.matrices().values()) == count
