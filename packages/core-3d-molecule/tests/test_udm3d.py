import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule.structures import Structures  # noqa: E402
from core_3d_molecule.training import Optimisation  # noqa: E402
from core_3d_molecule.udm3d import UAE3D, Dataset, dit, make_autoencoder_trainer, make_diffusion_trainer  # noqa: E402
from core_3d_molecule.udm3d.batches import orders_of, ragged, rotations  # noqa: E402
from core_3d_molecule.udm3d.vae import SELF_LOOP, Config, Weights, deviation, reconstruction, weighted  # noqa: E402

SMALL = Config(hidden=16, edge=8, heads=2, encoder_layers=2, decoder_layers=1, latent=4, most_atoms=7, dropout=0)
DIT = dit.Config(latent=4, layers=2, width=16, heads=2)


def molecules(counts=(5, 3, 7, 2), seed=0):
    rng = np.random.default_rng(seed)
    return Structures.from_list(
        [rng.choice([1, 6, 7, 8], n).astype(np.int32) for n in counts], [rng.normal(0, 1.2, (n, 3)) for n in counts]
    )


def dataset(counts=(5, 3, 7, 2), seed=0):
    return Dataset.of(molecules(counts, seed), SMALL.elements, SMALL.most_atoms)


def woken(model, seed=1):
    """A model in which nothing is zero: some layers begin so."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_batches_hold_what_was_given():
    given = molecules()
    pairs, orders = np.array([[0, 1], [8, 10]]), np.array([2, 3])
    data = Dataset.of(given, SMALL.elements, SMALL.most_atoms, bonds=(pairs, orders))
    batch = data.batch(torch.tensor([0, 2]), 2.0, False)
    assert batch.offsets.tolist() == [0, 5, 12]
    assert (
        batch.kinds == torch.tensor([SMALL.elements.index(z) for z in [*given.numbers[:5], *given.numbers[8:15]]])
    ).all()
    for molecule, rows in ((0, slice(0, 5)), (1, slice(8, 15))):
        at = given.positions[rows] - given.positions[rows].mean(0)
        np.testing.assert_allclose(batch.positions[batch.rows[molecule][batch.real[molecule]]], at / 2, atol=1e-6)
    first, second = batch.bonds[:25].reshape(5, 5), batch.bonds[25:].reshape(7, 7)
    want = np.diag([SELF_LOOP] * 5)
    want[0, 1] = want[1, 0] = 2
    np.testing.assert_array_equal(first, want)
    assert second[0, 2] == second[2, 0] == 3
    both, classes = batch.pairs()
    np.testing.assert_array_equal(classes[0, :5, :5], first)
    assert int(both.sum()) == 25 + 49


def test_augmentation_keeps_distances():
    data = dataset()
    plain, turned = (data.batch(torch.arange(4), 1.0, turn) for turn in (False, True))
    for begin, end in zip(plain.offsets[:-1], plain.offsets[1:], strict=True):
        a, b = (torch.cdist(m.positions[begin:end].double(), m.positions[begin:end].double()) for m in (plain, turned))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    turns = rotations(500, "cpu")
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(500, 3, 3), atol=1e-5, rtol=0)
    assert (torch.linalg.det(turns) > 0.99).all()
    assert turns.mean(0).abs().max() < 0.15


@pytest.mark.parametrize(
    ("change", "says"), [({"most_atoms": 6}, "1 to 6 atoms"), ({"elements": (1, 6, 7)}, "elements")]
)
def test_molecules_that_do_not_fit(change, says):
    c = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=says):
        Dataset.of(molecules(), c.elements, c.most_atoms)


def test_terms_of_the_loss():
    """Against the same sums written with loops."""
    data = dataset((3, 2))
    m = data.batch(torch.arange(2), 1.0, False)
    torch.manual_seed(0)
    atoms, at, bonds = torch.randn(2, 7, 5), torch.randn(2, 7, 3), torch.randn(2, 7, 7, 6)
    found = reconstruction(m, atoms, at, bonds, 2.0)
    kind, bond, position, distance, bonded = [], [], [], [], []
    for b, n in enumerate((3, 2)):
        for i in range(n):
            kind.append(-float(atoms[b, i].log_softmax(-1)[data.kinds[b, i]]))
            position += ((at[b, i] - data.positions[b, i]) ** 2).tolist()
            for j in range(n):
                bond.append(-float(bonds[b, i, j].log_softmax(-1)[int(data.bonds[b, i, j])]))
                if i != j:
                    error = (
                        float((at[b, i] - at[b, j]).norm() - (data.positions[b, i] - data.positions[b, j]).norm()) ** 2
                    )
                    distance.append(error)
                    if data.bonds[b, i, j]:
                        bonded.append(error)
    for name, want in (("atom", kind), ("bond", bond), ("position", position), ("distance", distance)):
        assert float(found[name]) == pytest.approx(np.mean(want), rel=1e-5), name
    assert float(found["bonded"]) == pytest.approx(np.mean(bonded) if bonded else 0.0, rel=1e-4)
    assert float(found["rmsd"]) == pytest.approx(2 * np.sqrt(np.sum(position) / 5), rel=1e-5)
    ones = dict.fromkeys(("atom", "bond", "position", "distance", "bonded", "kl"), torch.ones(()))
    assert float(weighted(ones, Weights())) == pytest.approx(14)


def test_atoms_may_be_renamed():
    """The encoder and the decoder do not know the order of atoms."""
    data, model = dataset((6,)), woken(UAE3D(SMALL))
    order = torch.randperm(6)
    m = data.batch(torch.tensor([0]), 1.0, False)
    other = ragged(
        m.kinds[order][None], m.positions[order][None], m.bonds.view(6, 6)[order][:, order][None], torch.tensor([6])
    )
    with torch.no_grad():
        one, two = model.encode(m)[0], model.encode(other)[0]
        torch.testing.assert_close(one[order], two, atol=1e-4, rtol=1e-4)
        real = torch.ones(1, 6, dtype=torch.bool)
        at, also = (model.decode(z[None], real)[1][0] for z in (one, two))
    torch.testing.assert_close(at[order], also, atol=1e-4, rtol=1e-4)


def test_molecules_do_not_see_each_other():
    data, model = dataset(), woken(UAE3D(SMALL))
    with torch.no_grad():
        together = model.encode(data.batch(torch.arange(4), 1.0, False))[0]
        alone = model.encode(data.batch(torch.tensor([2]), 1.0, False))[0]
    torch.testing.assert_close(together[8:15], alone, atol=1e-5, rtol=1e-5)


def test_autoencoder_learns_and_resumes(tmp_path):
    def trainer():
        return make_autoencoder_trainer(dataset(), SMALL, Optimisation(steps=60, lr=5e-3, warmup=5), batch=4)

    whole = trainer()
    losses = [float(f["loss"]) for f in whole.run(30)]
    whole.save(tmp_path / "half.safetensors")
    losses += [float(f["loss"]) for f in whole.run(30)]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])
    again = trainer()
    again.load(tmp_path / "half.safetensors")
    assert [float(f["loss"]) for f in again.run(30)] == losses[30:]


def test_errors_of_latent_vectors():
    """Of so many standard deviations in evaluation, of a share of them for each molecule in training; 0 adds none."""
    m, model = dataset((5, 3, 7, 2) * 16).batch(torch.arange(64), 1.0, False), woken(UAE3D(SMALL))
    seen = []
    model.decode = lambda z, real: seen.append(z) or UAE3D.decode(model, z, real)
    with torch.no_grad():
        clean, noisy = (model(m, noise)["rmsd"] for noise in (0.0, 0.2))
        model.train()
        model.latent.bias[SMALL.latent :] = -1e9  # the posterior has no width
        model.latent.weight[SMALL.latent :] = 0
        model(m), model(m, 0.2)
    assert clean != noisy
    errors = (seen[1] - seen[0])[m.real]
    want = 0.2 * float(seen[0][m.real].std(correction=0))
    assert float(deviation(seen[0], m.real)) == pytest.approx(want / 0.2, rel=1e-4)
    assert float(errors.std()) == pytest.approx(want, rel=0.05)
    assert float((seen[2] - seen[0]).abs().max()) < 1e-4
    sizes = (seen[3] - seen[2]).square().sum((1, 2)).div(SMALL.latent * m.real.sum(1)).sqrt() / want
    assert 0.3 < float(sizes.mean()) < 0.7
    assert float(sizes.max()) < 1.5
    assert float(sizes.std()) > 0.2


class TestDiffusion:
    def model(self, context=0, qk_norm=False):
        return woken(dit.DiT(dataclasses.replace(DIT, context=context, qk_norm=qk_norm)))

    def test_guidance(self):
        model = self.model(2)
        x, t, told = torch.randn(3, 7, 4), torch.rand(3), torch.randn(3, 2)
        real = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
        with torch.no_grad():
            conditional, unconditional = model(x, t, real, told), model(x, t, real)
            assert (conditional - unconditional).abs().max() > 1e-3
            assert torch.equal(dit.guided(model, x, t, real, told, 0.0), conditional)
            assert torch.equal(dit.guided(model, x, t, real, told, -1.0), unconditional)
            want = 1.5 * conditional - 0.5 * unconditional
            torch.testing.assert_close(dit.guided(model, x, t, real, told, 0.5), want, atol=1e-4, rtol=1e-4)

    def test_rows_lose_their_context_in_training_only(self):
        torch.manual_seed(0)
        share = float((~dit.dropped(100_000, 0.1, "cpu")).float().mean())
        assert 0.09 < share < 0.11
        seen = []

        class Spy(dit.DiT):
            def forward(self, x, t, real, context=None, given=None, packing=None):
                seen.append(given)
                return x * 0

        spy = Spy(dataclasses.replace(DIT, context=1))
        x, real, told = torch.randn(4000, 2, 4), torch.ones(4000, 2, dtype=torch.bool), torch.randn(4000, 1)
        dit.noise_loss(spy.train(), x, real, told)
        dit.noise_loss(spy.eval(), x, real, told)
        assert 0.08 < float((~seen[0]).float().mean()) < 0.12
        assert seen[1].all()

    def test_more_times_with_little_noise(self):
        seen = []

        class Spy(dit.DiT):
            def forward(self, x, t, real, context=None, given=None, packing=None):
                seen.append(t)
                return x * 0

        x, real = torch.randn(4000, 2, 4), torch.ones(4000, 2, dtype=torch.bool)
        for early in (1.0, 2.0):
            dit.noise_loss(Spy(DIT), x, real, early=early)
        assert float((seen[0] < 0.1).float().mean()) == pytest.approx(0.1, abs=0.01)
        assert float((seen[1] < 0.1).float().mean()) == pytest.approx(0.1**0.5, abs=0.01)
        assert float(seen[1].min()) >= dit.BEGIN
        assert float(seen[1].max()) <= dit.END

    def test_context_of_a_dropped_row_is_not_seen(self):
        model = self.model(1)
        x, t, real = torch.randn(2, 7, 4), torch.rand(2), torch.ones(2, 7, dtype=torch.bool)
        given = torch.tensor([True, False])
        with torch.no_grad():
            one, two = (model(x, t, real, torch.full((2, 1), v), given) for v in (0.0, 3.0))
        assert not torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])

    def test_absent_atoms_are_not_seen(self):
        model = self.model()
        x, t, real = torch.randn(1, 7, 4), torch.rand(1), torch.arange(7)[None] < 4
        other = torch.where(real[..., None], x, torch.randn(1, 7, 4))
        with torch.no_grad():
            torch.testing.assert_close(model(x, t, real)[:, :4], model(other, t, real)[:, :4])

    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_packed_atoms_give_the_same(self, qk_norm):
        """Side by side or packed, behind them molecules that only fill: the same noise, the same gradients."""
        model, x, t, told = self.model(1, qk_norm=qk_norm), torch.randn(3, 7, 4), torch.rand(3), torch.randn(3, 1)
        counts = torch.tensor([7, 3, 5])
        real = torch.arange(7) < counts[:, None]
        offsets = torch.tensor([0, 7, 10, 15, 17, 18])
        rows = torch.where(real, offsets[:3, None] + torch.arange(7), 0)
        molecule = torch.repeat_interleave(torch.arange(5), offsets.diff())
        packing = dit.Packing(molecule, rows, offsets.int())
        atoms = torch.cat([x[real], torch.randn(3, 4)])
        direction, gradients = torch.randn(15, 4), []
        for found in (model(x, t, real, told)[real], model(atoms, t, real, told, packing=packing)[:15]):
            model.zero_grad()
            (found * direction).sum().backward()
            gradients.append([found, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda y: dit._Spread.apply(y, molecule, rows, real)[:15].square(), y)

    def test_normed_queries_and_keys_have_one_length(self):
        """However long those are that come out of the projection."""
        block, seen = self.model(qk_norm=True).blocks[0], []
        torch.nn.init.ones_(block.q_norm.weight)
        torch.nn.init.ones_(block.k_norm.weight)

        def attend(q, k, v):
            seen.extend((q, k))
            return v

        with torch.no_grad():
            for scale in (1, 1000):
                block.qkv.weight *= scale
                block(torch.randn(5, 16), torch.randn(1, 16), attend, lambda y: y)
        for one in seen:
            torch.testing.assert_close(one.square().mean(-1), torch.ones(5, 2))

    def test_schedule(self):
        t = torch.linspace(0, dit.END, 1000)
        alpha = dit.signal(t)
        assert alpha[0] == 1
        assert (alpha.diff() < 0).all()
        assert 0 < alpha[-1] < 0.01

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_sampling_reaches_the_distribution(self, eta):
        """With the exact noise of normal latents of mean 2 and deviation 0.5, samples are those."""
        mean, deviation = 2.0, 0.5

        def exact(x, t):
            alpha = dit.signal(t)[:, None, None]
            variance = (alpha * deviation) ** 2 + 1 - alpha**2
            return (1 - alpha**2).sqrt() * (x - alpha * mean) / variance

        real = torch.ones(4000, 1, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        z = dit.sample(self.model(), real, steps=200, eta=eta, temperature=1.0, generator=generator, step=exact)
        assert float(z.mean()) == pytest.approx(mean, abs=0.03)
        assert float(z.std()) == pytest.approx(deviation, abs=0.03)

    def test_eta_zero_depends_on_the_first_noise_alone(self):
        model, real = self.model(), torch.arange(7) < torch.tensor([7, 3])[:, None]
        one, same = (
            dit.sample(model, real, steps=5, eta=0.0, generator=torch.Generator().manual_seed(1)) for _ in "ab"
        )
        assert torch.equal(one, same)
        assert not one[1, 3:].any()

    def test_bad_settings(self):
        real = torch.ones(1, 2, dtype=torch.bool)
        for setting in ({"steps": 0}, {"eta": 1.5}, {"temperature": -1.0}):
            with pytest.raises(ValueError, match=f"argument '{next(iter(setting))}'"):
                dit.sample(self.model(), real, **setting)
        with pytest.raises(ValueError, match="argument 'context'"):
            dit.sample(self.model(2), real)


def test_molecules_as_they_lie():
    """Without turning, the loss is that of molecules encoded as they lie, which is done once."""
    data, how = dataset((5, 3, 7, 2) * 4), Optimisation(steps=2, warmup=1, seed=3)
    trainer = make_diffusion_trainer(data, woken(UAE3D(SMALL)), DIT, how, batch=8, turn=False)
    model = trainer.model.train()
    z = model.latents(data.batch(torch.arange(16), SMALL.scale, False))
    assert float(z[z != 0].std(correction=0)) == pytest.approx(1, abs=1e-3)
    rows = next(orders_of(data, 8, how.seed, None))[0][0]
    torch.manual_seed(how.seed * 1_000_003)
    want = float(model.loss(data.batch(rows, SMALL.scale, False))["loss"].detach())
    model.autoencoder.encode = None
    found = [float(f["loss"]) for f in trainer.run(2)]
    assert found[0] == pytest.approx(want, rel=1e-5)
    assert found[1] != found[0]


def test_whole_model(tmp_path):
    data = dataset((5, 3, 7, 2) * 8)
    told = torch.randn(32, 1) * 3 + 5
    autoencoder = woken(UAE3D(SMALL))
    trainer = make_diffusion_trainer(
        data, autoencoder, dataclasses.replace(DIT, context=1), Optimisation(steps=4, warmup=1), context=told, batch=8
    )
    model = trainer.model
    frozen = [p.clone() for p in autoencoder.parameters()]
    z = torch.cat([model.latents(data.batch(torch.arange(32), SMALL.scale, True))])
    real = data.batch(torch.arange(32), SMALL.scale, True).real
    assert float(z[real].mean()) == pytest.approx(0, abs=0.02)
    assert float(z[real].std()) == pytest.approx(1, abs=0.02)
    list(trainer.run(2))
    trainer.save(tmp_path / "m.safetensors")
    rest = [float(f["loss"]) for f in trainer.run(2)]
    assert all(torch.equal(a, b) for a, b in zip(frozen, autoencoder.parameters(), strict=True))
    again = make_diffusion_trainer(
        data,
        woken(UAE3D(SMALL)),
        dataclasses.replace(DIT, context=1),
        Optimisation(steps=4, warmup=1),
        context=told,
        batch=8,
    )
    again.load(tmp_path / "m.safetensors")
    assert [float(f["loss"]) for f in again.run(2)] == rest
    found, same = (model.eval().sample(9, seed=3, context=told[:9], steps=4, w=0.5, batch=4) for _ in "ab")
    np.testing.assert_array_equal(found.structures.positions, same.structures.positions)
    sizes = np.diff(found.structures.offsets)
    assert len(sizes) == 9
    assert set(sizes) <= {2, 3, 5, 7}
    assert set(found.structures.numbers) <= set(SMALL.elements)
    molecule = np.repeat(np.arange(9), sizes)
    pairs, orders, cuts = found.bonds
    assert (molecule[pairs[:, 0]] == molecule[pairs[:, 1]]).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert ((orders >= 1) & (orders <= 4)).all()
    np.testing.assert_array_equal(np.repeat(np.arange(9), np.diff(cuts)), molecule[pairs[:, 0]])
    assert len(found.select([2, 5])) == 2
    assert len(model.sample(0, context=told[:0])) == 0
