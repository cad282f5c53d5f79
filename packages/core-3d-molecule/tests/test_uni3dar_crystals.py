"""Uni-3DAR on crystals: the sampler against the model over whole sequences, compositions, training."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from core_3d_molecule import Crystals, OctreeTokenizer  # noqa: E402
from core_3d_molecule.crystal_tokens import CNT, COMPONENTS, CrystalTokenizer  # noqa: E402
from core_3d_molecule.octree import CLS, TREE, Augmentation, Tokens  # noqa: E402
from core_3d_molecule.training import Optimisation  # noqa: E402
from core_3d_molecule.uni3dar import (  # noqa: E402
    Config,
    CrystalSampler,
    Settings,
    Stream,
    Uni3DAR,
    Weights,
    collate,
    crystal_config,
    make_trainer,
)  # fmt: skip

DEPTH = 3
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


@pytest.mark.parametrize("compact", [0.0, 0.9])
def test_decoding_equals_recomputation(compact):
    """Also behind a compaction; what remained of each level while drawing is what packing counts afterwards."""
    model, sizes = seeded(), np.array([3, 1, 6, 12, 2, 5, 3, 7])
    sampler = CrystalSampler(model, Settings(tree=2.0, max_tokens=120, compact=compact), batch=8)
    sampler.record = []
    sampler._sizes = torch.from_numpy(sizes)
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
        before = np.array([[COMPONENTS, CNT + sizes[row]]], np.int32)
        packed = OctreeTokenizer(DEPTH).pack(given, before, 2)
        totals = packed.remaining[packed.levels == DEPTH, 0]
        assert sorted(set(totals.tolist())) == sorted({8, int(sizes[row])})
        batch = collate(packed, DEPTH, 0.01)
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
    from core_3d_molecule import crystal_files, jobs_models

    file, checkpoint, out = tmp_path / "two.extxyz", tmp_path / "model.safetensors", tmp_path / "drawn.extxyz"
    crystal_files.write(file, crystals())
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu")
    jobs_models.train(str(file), checkpoint, size="tiny", steps=2, batch=2, device="cpu", resume=True)
    jobs_models.sample(checkpoint, out, count=2, device="cpu", formula="NaCl", temperature=(0.0, 0.3, 0.3))
    assert "crystals" in capsys.readouterr().out
    assert out.exists()
    with pytest.raises(Exception, match="--model must be uni3dar for crystals"):
        jobs_models.train(str(file), checkpoint, model="uae3d", steps=2, device="cpu")
