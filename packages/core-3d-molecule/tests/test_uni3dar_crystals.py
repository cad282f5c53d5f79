"""Uni-3DAR on crystals: the sampler against the model over whole sequences, compositions, training."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from core_3d_molecule import Crystals, OctreeTokenizer, crystal_files  # noqa: E402
from core_3d_molecule.crystal_tokens import CNT, COMPONENTS, PXRD, CrystalTokenizer, pxrd_peaks  # noqa: E402
from core_3d_molecule.octree import CLS, TREE, Augmentation, Tokens  # noqa: E402
from core_3d_molecule.training import Optimisation  # noqa: E402
from core_3d_molecule.uni3dar import (  # noqa: E402
    Config,
    CrystalSampler,
    Settings,
    Stream,
    Telling,
    Uni3DAR,
    Weights,
    collate,
    crystal_config,
    make_trainer,
)  # fmt: skip

DEPTH = 3
TOLD = {"composition": True, "pxrd": True}
TINY = crystal_config(layers=2, width=48, heads=2, merge_level=DEPTH, dropout=0.0, drop_path=0.0)


def seeded(config=TINY):
    torch.manual_seed(1)
    model = Uni3DAR(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.15)
    return model.eval()


def crystals():
    """A perovskite, and rock salt's primitive cell."""
    cubic = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    rock = np.array([[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]])
    return Crystals.from_list([[38, 22, 8, 8, 8], [11, 17]], [cubic, [[0, 0, 0], [0.5] * 3]], [np.eye(3) * 3.9, rock])


def drawn_tokens(tokens, bins, counts):
    """`Tokens` of one crystal from what was drawn: levels and places by reading its two trees, breadth first."""
    levels, centres, at = [], [], 0
    for _ in range(2):
        nodes = [(0, 0, 0)]
        for level in range(DEPTH, -1, -1):
            children = []
            for x, y, z in nodes:
                levels.append(level)
                centres.append((np.array([x, y, z]) + 0.5) * 2**level * 0.24)
                mask = tokens[at] - TREE if level else 0
                at += 1
                children += [
                    (2 * x + (child & 1), 2 * y + (child >> 1 & 1), 2 * z + (child >> 2))
                    for child in range(8)
                    if mask >> child & 1
                ]
            nodes = children
        assert tokens[at] == CLS
        levels.append(-1)
        centres.append(np.full(3, 2**DEPTH * 0.12))
        at += 1
    assert at == len(tokens)
    ends = np.flatnonzero(tokens == CLS) + 1
    return Tokens(
        tokens.astype(np.int32), np.array(levels, np.int32), np.array(centres, np.float32), bins.astype(np.int32),
        np.asarray(counts, np.int32), np.full(len(tokens), -1), np.array([0, *ends]), np.zeros((2, 3)),
    )  # fmt: skip


@pytest.mark.parametrize("told", [{}, {"composition": True}, TOLD])
@pytest.mark.parametrize("compact", [0.0, 0.9])
def test_decoding_equals_recomputation(compact, told):
    """Also behind a compaction; what remained of each level while drawing is what packing counts afterwards."""
    model, sizes = seeded(dataclasses.replace(TINY, **told)), np.array([3, 1, 6, 12, 2, 5, 3, 7])
    sampler = CrystalSampler(model, Settings(tree=2.0, max_tokens=120, compact=compact), batch=8)
    sampler.record = []
    sampler._sizes = torch.from_numpy(sizes)
    peaks = pxrd_peaks(crystals()).select([0, 1] * 4) if "pxrd" in told else None
    sampler._told = torch.from_numpy(sampler._conditions(8, np.eye(8, 118) * sizes[:, None], peaks, 0))
    first = [*(PXRD + np.arange(4 * model.config.pxrd)), COMPONENTS]
    drawn = sampler._batch(8, 0, torch.Generator().manual_seed(1), None)
    assert (min(len(rows) for rows, _ in sampler.record) < 8) == (compact > 0)
    assert drawn["done"].sum() > 3
    for row, tail, tokens, bins in zip(drawn["row"], drawn["tail"], drawn["tokens"], drawn["bins"], strict=True):
        if not drawn["done"][row] or tail >= 120:
            continue
        logits = [
            {k: v[int((rows == row).nonzero()[0, 0])] for k, v in one.items()} for rows, one in sampler.record[:tail]
        ]
        counts = [
            int(one["drawn"]) if token >= TREE else int(token < CLS)
            for one, token in zip(logits, tokens[:tail], strict=True)
        ]
        stream = np.append(tokens[:tail], CLS)
        assert (tokens[:tail] < CLS).sum() == 8 + sizes[row]
        given = drawn_tokens(stream, np.vstack([bins[:tail], [12] * 3]), [*counts, 0])
        before = np.array([[*first, CNT + sizes[row]]], np.int32)
        packed = OctreeTokenizer(DEPTH).pack(given, before, 2)
        totals = packed.remaining[packed.levels == DEPTH, 0]
        assert sorted(set(totals.tolist())) == sorted({8, int(sizes[row])})
        batch = collate(packed, DEPTH, 0.01, told=sampler._told[row : row + 1])
        with torch.no_grad():
            hidden = model.hidden(batch, len(batch.tokens))[batch.rows]
        for step, one in enumerate(logits):
            x, heads = hidden[step : step + 1], model.heads[int(batch.trees[batch.rows[step]])]
            if batch.tree[step] >= 0:
                torch.testing.assert_close(one["tree"], heads.tree(x)[0], rtol=1e-4, atol=1e-4)
                chosen = heads.chosen(batch.tree[step : step + 1])
                torch.testing.assert_close(one["count"], heads.count(x + chosen)[0], rtol=1e-4, atol=1e-4)
            elif batch.kind[step] >= 0:
                parts = [batch.kind[step : step + 1], *batch.bins[step : step + 1].T]
                want = torch.cat(heads.atom(x, lambda part, _, p=parts: p[part].clamp(min=0)), 1)[0]
                torch.testing.assert_close(one["atom"], want, rtol=1e-4, atol=1e-4)


def test_counts_of_a_level_add_up_and_compositions_come_out():
    wanted = np.zeros(118, np.int64)
    wanted[[7, 21, 37]] = 3, 1, 1
    sampler = CrystalSampler(seeded(), Settings(tree=2.0, atom=1.0, max_tokens=120), batch=16)
    sampler._sizes = torch.full((16,), 5)
    left = np.zeros(342, np.int64)
    left[:118] = wanted
    drawn = sampler._batch(16, 0, torch.Generator().manual_seed(0), torch.from_numpy(left))
    done = drawn["done"] & (drawn["tail"] < 120)
    assert done.sum() > 8
    for tail, tokens in zip(drawn["tail"][done], drawn["tokens"][done], strict=True):
        atoms = tokens[:tail][np.flatnonzero(tokens[:tail] == CLS)[0] :]
        atoms = atoms[atoms < CLS]
        np.testing.assert_array_equal(np.bincount(atoms, minlength=118), wanted)
    for bad in (wanted[:5], wanted * 2):
        with pytest.raises(ValueError, match="'composition' must be"):
            sampler.sample([5], composition=bad)
    for bad in ([0], [129], [[5]]):
        with pytest.raises(ValueError, match="'sizes' must be"):
            sampler.sample(bad)
    assert len(sampler.sample([]).rows) == 0


def test_learns_crystals_by_heart():
    given = crystals()
    config = crystal_config(layers=2, width=64, heads=2, dropout=0.0, drop_path=0.0)
    how = Optimisation(steps=110, lr=4e-3, warmup=5, ema=0.9)
    trainer = make_trainer(given, config, how, rows=440, weights=Weights(xyz=1.0))
    losses = [float(found["nll"]) for found in trainer.run(110)]
    assert losses[-1] < losses[0] / 20
    assert trainer.about["data"]["atoms"] == [0, 0, 1, 0, 0, 1]
    trainer.model.load_state_dict(trainer.averaged())
    sampler = CrystalSampler(trainer.model, Settings(tree=0, atom=0, xyz=0, max_tokens=128), batch=2, count=0)
    found = sampler.sample([5, 2])
    assert found.discarded == 0
    np.testing.assert_array_equal(found.rows, [0, 1])
    for (numbers, _, lattice), (wanted, _, cell) in zip(found.crystals, given, strict=True):
        assert sorted(numbers) == sorted(wanted)
        assert abs(np.linalg.det(lattice)) == pytest.approx(abs(np.linalg.det(cell)), rel=0.03)


def pair():
    """Rock salt and caesium chloride: as many atoms, other elements and patterns."""
    rock = np.array([[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]])
    return Crystals.from_list([[11, 17], [55, 17]], [[[0, 0, 0], [0.5] * 3]] * 2, [rock, np.eye(3) * 4.12])


@pytest.mark.parametrize("condition", list(TOLD))
def test_draws_the_crystal_that_it_is_told(condition):
    given, steps = pair(), 120
    config = dataclasses.replace(TINY, width=64, merge_level=6, **{condition: True})
    trainer = make_trainer(
        given, config, Optimisation(steps=steps, lr=4e-3, warmup=5, ema=0.9), rows=900, weights=Weights(xyz=1.0)
    )
    for _ in trainer.run(steps):
        pass
    trainer.model.load_state_dict(trainer.averaged())
    sampler = CrystalSampler(trainer.model, Settings(tree=0, atom=0, xyz=0, max_tokens=128), batch=2, count=0)
    compositions = np.array([np.bincount(numbers, minlength=119)[1:] for numbers, _, _ in given])
    told = (
        {"composition": compositions, "hold": False} if condition == "composition" else {"pattern": pxrd_peaks(given)}
    )
    found = sampler.sample([2, 2], **told)
    assert found.discarded == 0
    for (numbers, _, lattice), (wanted, _, cell) in zip(found.crystals, given, strict=True):
        assert sorted(numbers) == sorted(wanted)
        assert abs(np.linalg.det(lattice)) == pytest.approx(abs(np.linalg.det(cell)), rel=0.03)
    few = {name: value if name == "hold" else pick(value, 1) for name, value in told.items()}
    assert set(sampler.sample([2, 2], **few).crystals.numbers) == {55, 17}  # one for all


def pick(value, row):
    return value[row] if isinstance(value, np.ndarray) else value.select([row])


def test_what_a_model_cannot_be_told():
    patterns = pxrd_peaks(pair())
    sampler = CrystalSampler(seeded(dataclasses.replace(TINY, pxrd=True)), batch=2)
    with pytest.raises(ValueError, match="'pattern' must be 1 or 3 patterns, got 2"):
        sampler.sample([2, 2, 2], pattern=patterns)
    plain = CrystalSampler(seeded(), batch=2)
    with pytest.raises(ValueError, match="'pattern' must be None for a model that knows no patterns"):
        plain.sample([2], pattern=patterns)
    with pytest.raises(ValueError, match="'hold' must be True for a model that knows no compositions"):
        plain.sample([1], composition=np.eye(118)[0], hold=False)


def test_sequences_are_told_their_own():
    """Side by side and filled up, cross-entropies are those of each alone; they depend on what is told."""
    model, tokenizer = seeded(dataclasses.replace(TINY, **TOLD, merge_level=6)), CrystalTokenizer(OctreeTokenizer(6))
    tokens, conditions = tokenizer.tokenize(crystals()), tokenizer.conditions(crystals(), pxrd=True)
    told = conditions.told(True, True)
    packed = tokenizer.pack(tokens, conditions)
    rows = len(packed.tokens)
    both = model(collate(packed, 6, 0.01, rows + 97, 8, rows, told), rows)
    at = 0
    for row in range(2):
        few = crystals().select([row])
        alone = tokenizer.pack(tokenizer.tokenize(few), tokenizer.conditions(few, pxrd=True))
        losses = model(collate(alone, 6, 0.01, told=told[[row]]), rows)
        other = model(collate(alone, 6, 0.01, told=told[[1 - row]]), rows)
        end = at + len(losses["tree"])
        for name, value in losses.items():
            torch.testing.assert_close(both[name][at:end], value, rtol=1e-4, atol=1e-4)
        assert (losses["tree"] - other["tree"]).abs().max() > 1e-3
        at = end


def test_conditions_are_dropped_in_training_alone():
    given = pair().select([0, 1] * 32)
    config = crystal_config(layers=1, width=48, heads=2, merge_level=6, **TOLD)
    trainer = make_trainer(given, config, Optimisation(steps=1), rows=16384)
    columns = [0, 1201]  # of the pattern and the composition

    def told(stream, batches):
        found = [next(stream)[0] for _ in range(batches)]
        return np.vstack([batch.told[: int((batch.tokens == COMPONENTS).sum())].numpy() for batch in found])

    rows = told(iter(trainer._batches(None)), 70)
    assert len(rows) > 4000
    np.testing.assert_allclose(rows[:, columns].mean(0), 0.9, atol=0.01)
    both = rows[:, columns].all(1)
    assert both.mean() == pytest.approx(0.81, abs=0.02)
    assert (rows[rows[:, 0] == 0, 1:1201] == 0).all()
    tokenizer = CrystalTokenizer(OctreeTokenizer(6))
    exact = tokenizer.conditions(pair(), pxrd=True).told(True, True)[:, 1202:]
    noise = np.abs(rows[both][:, None, 1202:] - exact).mean(2).min(1)
    assert noise.mean() == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.05)
    evaluated = told(iter(Stream(given, tokenizer, 16384, telling=Telling(True, pxrd_peaks(given)))), 5)
    assert (evaluated[:, columns] == 1).all()
    drawn = CrystalSampler(trainer.model, batch=2)._conditions(500, np.eye(500, 118), pxrd_peaks(pair().select([0])), 0)
    assert (drawn[:, columns] == 1).all()


def test_models_without_conditions_are_as_before():
    assert not {"composition", "pxrd"} & set(TINY.record())
    assert Config(**TINY.record()) == TINY
    assert dataclasses.replace(TINY, **TOLD).record().items() >= TOLD.items()
    assert not any("conditions" in name for name in seeded().state_dict())
    batch, _ = next(iter(Stream(crystals(), CrystalTokenizer(), 420)))
    assert batch.told.shape[1] == 0
    for name in TOLD:
        with pytest.raises(ValueError, match=f"argument '{name}' is out of range"):
            Config(**{name: True})


def test_a_stream_of_crystals_goes_on():
    tokenizer = CrystalTokenizer()

    def stream(**state):
        return iter(Stream(crystals(), tokenizer, 420, Augmentation(rotate=0.5), seed=3, **state))

    whole = [next(it) for it in [stream()] for _ in range(4)]
    again = next(stream(**whole[1][1]))
    for one, other in zip(again[0], whole[2][0], strict=True):
        assert torch.equal(one, other)
    assert again[1] == whole[2][1]
    with pytest.raises(ValueError, match="'tokenizer' must be a CrystalTokenizer"):
        next(iter(Stream(crystals(), OctreeTokenizer(), 420)))
    with pytest.raises(ValueError, match="'model' must be a model of crystals"):
        CrystalSampler(Uni3DAR(Config(layers=1, width=48, heads=2, merge_level=2)))


def test_jobs(tmp_path, capsys):
    pytest.importorskip("safetensors")
    from core_3d_molecule import jobs_models

    file, checkpoint, out = tmp_path / "two.extxyz", tmp_path / "model.safetensors", tmp_path / "drawn.extxyz"
    crystal_files.write(file, crystals())
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu")
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu", resume=True)
    jobs_models.sample(checkpoint, out, count=2, device="cpu", formula="NaCl", temperature=(0.0, 0.3, 0.3))
    assert "crystals" in capsys.readouterr().out
    assert out.exists()
    peaks = tmp_path / "peaks.txt"
    peaks.write_text("# NaCl\n27.4, 12\n31.7; 100\n45.5 60\n")
    with pytest.raises(ValueError, match="expected a model trained with --condition pxrd"):
        jobs_models.sample(checkpoint, out, count=2, device="cpu", pattern=peaks)
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu", condition=["composition"])
    jobs_models.sample(checkpoint, out, count=2, device="cpu", formula="NaCl", temperature=(0.0, 0.3, 0.3))
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu", condition=list(TOLD))
    jobs_models.train(
        str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu", condition=list(TOLD), resume=True
    )
    jobs_models.sample(checkpoint, out, count=2, device="cpu", pattern=peaks, temperature=(0.0, 0.3, 0.3))
    with pytest.raises(ValueError, match="expected one crystal for --pattern, got 2"):
        jobs_models.sample(checkpoint, out, count=2, device="cpu", pattern=file)
    with pytest.raises(Exception, match="--condition must be one of composition, pxrd, got colour"):
        jobs_models.train(str(file), checkpoint, device="cpu", condition=["colour"])
    with pytest.raises(Exception, match="--condition goes with --model uni3dar on crystals alone"):
        jobs_models.train(str(file), checkpoint, model="uae3d", device="cpu", condition=["pxrd"])
    with pytest.raises(Exception, match="--model must be uni3dar for crystals"):
        jobs_models.train(str(file), checkpoint, model="uae3d", steps=2, device="cpu")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("27.4 12\n31.7 100 3\n", "line 2: a peak must be an angle and an intensity, got 3 fields"),
        ("27.4 x\n", "line 1: the intensity must be a finite number, got 'x'"),
        ("nan 5\n", "line 1: the angle must be a finite number"),
        ("27.4 5\n\n27.4 5\n", "line 3: the angle must be new, and in 0..180 degrees, got 27.4"),
        ("180.5 5\n", "line 1: the angle must be new, and in 0..180 degrees, got 180.5"),
        ("27.4 -1\n", "line 1: the intensity must be 0 or above, got -1"),
        ("# none\n27.4 0\n", "no line has a peak"),
        ("", "no line has a peak"),
        ("".join(f"{5 + 0.02 * i} {i % 7}\n" for i in range(300)), "300 angles at even steps are a measured curve"),
    ],
)
def test_bad_patterns(tmp_path, text, why):
    file = tmp_path / "peaks.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=why):
        crystal_files.read_pattern(file)


def test_patterns_of_a_file(tmp_path):
    file = tmp_path / "peaks.txt"
    file.write_text("# angle intensity\n31.7, 50\n27.4;5\n\n45.5\t0\n")
    found = crystal_files.read_pattern(file)
    np.testing.assert_allclose(found.two_theta, [27.4, 31.7, 45.5])
    np.testing.assert_allclose(found.intensity, [10, 100, 0])
    assert len(found) == 1
