import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
from core_3d_molecule.octree import CLS, MASK, TREE, Augmentation, OctreeTokenizer, Packed  # noqa: E402
from core_3d_molecule.structures import Structures  # noqa: E402
from core_3d_molecule.training import Optimisation, Trainer  # noqa: E402
from core_3d_molecule.uni3dar import (  # noqa: E402
    Config,
    PropertyHead,
    Sampler,
    Settings,
    Stream,
    Uni3DAR,
    Weights,
    collate,
    loss,
    make_trainer,
)

DEPTH = 3
TINY = Config(layers=2, width=48, heads=2, merge_level=DEPTH, dropout=0, drop_path=0)
TOKENIZER = OctreeTokenizer(DEPTH)


def structures(counts, seed=0):
    """Atoms in different cells of the small cube."""
    rng = np.random.default_rng(seed)
    numbers, positions = [], []
    for n in counts:
        cells = rng.permutation(64)[:n]
        at = np.stack([cells % 4, cells // 4 % 4, cells // 16], 1) * 0.24 + rng.uniform(0.02, 0.2, (n, 3))
        numbers.append(rng.choice([1, 6, 7, 8], n).astype(np.int32))
        positions.append(at)
    return Structures.from_list(numbers, positions)


def packed(given):
    return TOKENIZER.pack(TOKENIZER.tokenize(given))


def seeded(config=TINY, seed=0):
    """A model whose layers do something: they begin at zero."""
    torch.manual_seed(seed)
    model = Uni3DAR(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0)
    return model.eval()


def test_targets_are_the_own_copies():
    given = packed(structures([3, 5]))
    batch = collate(given, DEPTH, 0.01)
    tokens = np.asarray(given.tokens)
    masks = np.flatnonzero(tokens == MASK)
    np.testing.assert_array_equal(batch.rows, masks)
    own = tokens[masks + 1]
    np.testing.assert_array_equal(batch.tree.numpy()[own >= TREE], own[own >= TREE] - TREE - 1)
    np.testing.assert_array_equal(batch.kind.numpy()[own < CLS], own[own < CLS])
    assert ((batch.tree.numpy() >= 0) | (batch.kind.numpy() >= 0) == (own != CLS)).all()


def test_filling_changes_no_prediction():
    given = packed(structures([3, 5, 2]))
    plain = collate(given, DEPTH, 0.01)
    filled = collate(given, DEPTH, 0.01, rows=500, sequences=40, longest=64)
    assert len(filled.tokens) == 500
    assert len(filled.cu_seqlens) == 41
    assert filled.cu_seqlens[-1] == 500
    model = seeded()
    with torch.no_grad():
        one, other = model(plain, 64), model(filled, 64)
    for name, nats in one.items():
        torch.testing.assert_close(other[name][: len(nats)], nats, rtol=1e-5, atol=1e-5)
        assert not other[name][len(nats) :].any()
    torch.testing.assert_close(loss(one, plain, Weights()), loss(other, filled, Weights()))
    with pytest.raises(ValueError, match="do not fit into 20 rows"):
        collate(given, DEPTH, 0.01, rows=20)


def test_nothing_is_read_ahead_or_beside():
    """What a row gives depends on the rows before it in its own sequence alone."""
    batch = collate(packed(structures([4, 4])), DEPTH, 0.01)
    model, cut = seeded(), int(batch.cu_seqlens[1])
    with torch.no_grad():
        before = model.hidden(batch, 128)
        for at in (5, cut + 7):
            tokens = batch.tokens.clone()
            tokens[at] = 7
            changed = (model.hidden(batch._replace(tokens=tokens), 128) - before).abs().sum(1) > 0
            end = cut if at < cut else len(tokens)
            assert not changed[:at].any()
            assert changed[at]
            assert not changed[end:].any()


def test_loss_is_the_weighted_sum_over_predicted_tokens():
    batch = collate(packed(structures([3, 6])), DEPTH, 0.01)
    nats = seeded()(batch, 128)
    predicted = int(((batch.tree >= 0) | (batch.kind >= 0)).sum())
    want = sum(v.sum() * (0.1 if k in "xyz" else 1.0) for k, v in nats.items()) / predicted
    torch.testing.assert_close(loss(nats, batch, Weights()), want)
    trees = int((batch.tree >= 0).sum())
    assert predicted == trees + 9


def unfold(tokens, bins, depth=DEPTH, cell=0.24):
    """Levels and coarse and fine positions of a stream, by walking the tree."""
    line, rows = [(depth, 0, 0, 0)], []
    middle = [2**depth * cell / 2] * 3
    for token, place in zip(tokens, bins, strict=True):
        if token == CLS:
            rows.append((-1, middle, middle))
            continue
        level, *at = line.pop(0)
        side = cell * 2**level
        coarse = [(x + 0.5) * side for x in at]
        rows.append(
            (level, coarse, [x * cell + b * 0.01 for x, b in zip(at, place, strict=True)] if level == 0 else coarse)
        )
        if token >= TREE:
            line += [
                (level - 1, *(2 * x + (child >> axis & 1) for axis, x in enumerate(at)))
                for child in range(8)
                if (token - TREE) >> child & 1
            ]
    assert not line
    return (np.array(x) for x in zip(*rows, strict=True))


def replayed(tokens, bins):
    """The packed rows of one stream."""
    levels, coarse, fine = unfold(tokens, bins)
    n = len(tokens)
    zero = np.zeros(2 * n, np.int32)
    return Packed(
        np.stack([np.full(n, MASK), tokens], 1).ravel(), np.repeat(levels, 2),
        np.stack([coarse, fine], 1).reshape(-1, 3),
        np.repeat(bins, 2, 0), zero, zero, np.zeros((2 * n, 2), np.int32), np.array([0, 2 * n]),
    )  # fmt: skip


@pytest.mark.parametrize(("compact", "turned"), [(0.0, False), (0.95, False), (0.95, True)])
def test_cached_decoding_equals_recomputation(compact, turned):
    model = seeded(dataclasses.replace(TINY, turn_values=turned))
    sampler = Sampler(model, Settings(tree=2.0, compact=compact, max_tokens=300), batch=24)
    sampler.record = []
    found = sampler.sample(24, seed=1)
    assert len(found.rows) > 8
    sizes = [len(rows) for rows, _ in sampler.record]
    assert (min(sizes) < 24) == (compact > 0)
    for row, begin, end in zip(found.rows, found.offsets[:-1], found.offsets[1:], strict=True):
        batch = collate(replayed(found.tokens[begin:end], found.bins[begin:end]), DEPTH, 0.01)
        with torch.no_grad():
            hidden = model.hidden(batch, len(batch.tokens))[batch.rows]
            tree = model.heads[0].tree(hidden)
            parts = [batch.kind, *batch.bins.T]
            atom = torch.cat(model.heads[0].atom(hidden, lambda part, _, p=parts: p[part].clamp(min=0)), 1)
        for step in range(end - begin - 1):
            rows, logits = sampler.record[step]
            at = int((rows == row).nonzero()[0, 0])
            name, want = ("tree", tree) if batch.tree[step] >= 0 else ("atom", atom)
            torch.testing.assert_close(logits[name][at], want[step], rtol=1e-4, atol=1e-4)


def test_turned_values_know_relative_positions_alone():
    batch = collate(packed(structures([3, 5])), DEPTH, 0.01)
    moved = batch._replace(positions=batch.positions + torch.tensor([7.0, -20.0, 3.0]))
    plain, turned = (seeded(dataclasses.replace(TINY, turn_values=t)) for t in (False, True))
    with torch.no_grad():
        rows = [model.hidden(b, len(b.tokens)) for model in (plain, turned) for b in (batch, moved)]
    torch.testing.assert_close(rows[3], rows[2], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(rows[2][0], rows[0][0], atol=1e-4, rtol=1e-4)  # the first of a sequence sees itself only
    assert float((rows[2][1:8] - rows[0][1:8]).abs().max()) > 0.01


def test_scores_are_perplexities_of_what_was_drawn():
    model = seeded()
    found = Sampler(model, Settings(tree=2.0, max_tokens=300), batch=8).sample(8, seed=3)
    assert len(found.rows)
    for i, (begin, end) in enumerate(zip(found.offsets[:-1], found.offsets[1:], strict=True)):
        batch = collate(replayed(found.tokens[begin:end], found.bins[begin:end]), DEPTH, 0.01)
        with torch.no_grad():
            nats = model(batch, len(batch.tokens))
        atoms = int((batch.kind >= 0).sum())
        assert found.scores[i] == pytest.approx(float((nats["kind"].sum() / atoms).exp()), rel=1e-4)
        whole = sum(float(nats[k].sum()) for k in ("kind", "x", "y", "z"))
        assert found.xyz_scores[i] == pytest.approx(np.exp(whole / (4 * atoms)), rel=1e-4)
    best = found.best(0.5)
    assert len(best) == max(round(len(found.rows) / 2), 1)


def test_wanted_composition():
    wanted = np.zeros(118, np.int64)
    wanted[[0, 5, 7]] = 3, 1, 1
    model = seeded(dataclasses.replace(TINY, merge_level=1))  # a root and up to 8 atoms
    sampler = Sampler(model, Settings(tree=2.0, atom=1.0, max_tokens=12), batch=50)
    found = sampler.sample(100, seed=0, composition=wanted)
    assert found.discarded == 100 - len(found.rows)
    assert len(found.rows)
    for numbers, _ in found.structures:
        np.testing.assert_array_equal(np.bincount(numbers - 1, minlength=118), wanted)
    with pytest.raises(ValueError, match="'composition' must be"):
        sampler.sample(1, composition=wanted[:5])


def test_fillers_of_a_compacted_batch_are_not_given():
    sampler = Sampler(seeded(), Settings(tree=2.0, max_tokens=300, compact=0.9), batch=40)
    sampler.record = []
    found = sampler.sample(40, seed=2)
    sizes = [len(rows) for rows, _ in sampler.record]
    assert {size % 2 for size in sizes} == {0}
    assert min(sizes) < 40
    assert any((rows < 0).any() for rows, _ in sampler.record)
    assert len(found.rows) + found.discarded == 40
    assert len(set(found.rows)) == len(found.rows)


def test_sampling_is_deterministic():
    sampler = Sampler(seeded(), Settings(tree=2.0, top_p=0.95), batch=8)
    one, same, other = (sampler.sample(16, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    np.testing.assert_array_equal(one.bins, same.bins)
    assert not np.array_equal(one.tokens[:20], other.tokens[:20])
    assert len(sampler.sample(0).rows) == 0


def test_min_p_leaves_out_what_is_unlikely():
    """1 leaves the likeliest alone whatever the temperature, 0 nothing out; a sampler that is retuned follows."""
    model, hot = seeded(), {"tree": 5.0, "atom": 5.0, "xyz": 5.0}
    sampler = Sampler(model, Settings(**hot, min_p=1.0), batch=6)
    cold = Sampler(model, Settings(tree=0.0, atom=0.0, xyz=0.0), batch=6).sample(6, seed=2)
    np.testing.assert_array_equal(sampler.sample(6, seed=2).tokens, cold.tokens)
    sampler.retune(**hot)
    free = Sampler(model, Settings(**hot), batch=6).sample(6, seed=2)
    np.testing.assert_array_equal(sampler.sample(6, seed=2).tokens, free.tokens)
    assert not np.array_equal(free.tokens, cold.tokens)
    sampler.retune(**hot, min_p=0.5)
    sampler.record = []
    found = sampler.sample(6, seed=2)
    for row, begin, end in zip(found.rows, found.offsets[:-1], found.offsets[1:], strict=True):
        for step, token in enumerate(found.tokens[begin:end]):
            if token >= TREE:
                rows, logits = sampler.record[step]
                tree = logits["tree"][int((rows == row).nonzero()[0, 0])]
                assert tree[token - TREE - 1] >= tree.max() + np.log(0.5) - 1e-5
    with pytest.raises(ValueError, match="'min_p' must be in"):
        Settings(min_p=1.5)


def test_temperatures_by_level():
    """0 takes the likeliest at that level alone, and a sampler that is retuned draws as a new one."""
    model = seeded()
    sampler = Sampler(model, Settings(tree=(0.0, 2.0), max_tokens=300), batch=12)
    sampler.record = []
    found = sampler.sample(12, seed=4)
    greedy = {1: set(), 2: set(), 3: set()}
    for row, begin, end in zip(found.rows, found.offsets[:-1], found.offsets[1:], strict=True):
        levels, _, _ = unfold(found.tokens[begin:end], found.bins[begin:end])
        for step, level in enumerate(levels):
            if level > 0:
                rows, logits = sampler.record[step]
                tree = logits["tree"][int((rows == row).nonzero()[0, 0])]
                greedy[level].add(int(tree.argmax()) == found.tokens[begin + step] - TREE - 1)
    assert greedy[1] == {True}
    assert False in greedy[2] | greedy[3]
    sampler.record = None
    sampler.retune(tree=0.7, atom=1.0, xyz=0.0)
    again, new = (s.sample(12, seed=4) for s in (sampler, Sampler(model, sampler.settings, batch=12)))
    np.testing.assert_array_equal(again.tokens, new.tokens)
    assert not np.array_equal(again.tokens, found.tokens)
    for tree in ((), (0.5, -1.0), float("nan")):
        with pytest.raises(ValueError, match="'tree' must be 0 or above"):
            Settings(tree=tree)


def test_learns_by_heart():
    """Two molecules, no augmentation: the loss of a molecule falls to ln 2, not below, and samples are those two."""
    given = structures([3, 4])
    config = Config(layers=2, width=64, heads=2, merge_level=DEPTH, dropout=0, drop_path=0)
    batch = collate(packed(given), DEPTH, 0.01)
    torch.manual_seed(0)
    model = Uni3DAR(config)

    def step(one):
        nats = model(one, 128)
        return {"loss": loss(nats, one, Weights(xyz=1.0)), "nll": sum(v.sum() for v in nats.values()) / 2}

    def batches(state):
        while True:
            yield batch, {}

    trainer = Trainer(model, step, batches, Optimisation(steps=120, lr=5e-3, warmup=10, ema=0.9))
    last = [float(found["nll"]) for found in trainer.run(120)][-1]
    assert np.log(2) - 1e-4 < last < np.log(2) + 0.02
    model.load_state_dict(trainer.averaged())
    found = Sampler(model, batch=32).sample(32, seed=0)
    want = TOKENIZER.tokenize(given)
    streams = {tuple(want.tokens[a:b]) for a, b in zip(want.offsets[:-1], want.offsets[1:], strict=True)}
    drawn = [tuple(found.tokens[a:b]) for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    assert len(drawn) == 32
    assert set(drawn) == streams


def test_resumed_run_is_the_same_run(tmp_path):
    def trainer():
        config = Config(layers=2, width=48, heads=2, merge_level=DEPTH, dropout=0.1)
        augment = Augmentation(rotate=0.0, shift=0, noise=0.0)
        return make_trainer(structures([3] * 12), config, Optimisation(steps=6, warmup=2), rows=120, augment=augment)

    whole = trainer()
    list(whole.run(3))
    whole.save(tmp_path / "half.safetensors")
    rest = [float(f["loss"]) for f in whole.run(9)]
    again = trainer()
    again.load(tmp_path / "half.safetensors")
    assert [float(f["loss"]) for f in again.run(9)] == rest
    assert len(rest) == 3
    for name, value in whole.parameters.items():
        assert torch.equal(value, again.parameters[name])
        assert torch.equal(whole.average[name], again.average[name])
    different = make_trainer(structures([3] * 12), TINY, Optimisation(steps=6, warmup=2), rows=120)
    with pytest.raises(ValueError, match="expected a run with"):
        different.load(tmp_path / "half.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"\x10" + bytes(40))
    with pytest.raises(ValueError, match="expected a checkpoint"):
        again.load(tmp_path / "noise.safetensors")


def test_stream_goes_on_and_visits_all():
    given = structures([2, 3, 4, 5, 3, 2, 4])

    def stream(**state):
        return iter(Stream(given, TOKENIZER, 90, None, 7, **state))

    batches = [x for x, _ in zip(stream(), range(8), strict=False)]
    again = stream(**batches[3][1])
    for (one, behind), (other, also) in zip(batches[4:], again, strict=False):
        assert behind == also
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    seen = sum(int((b.tokens == CLS).sum()) for b, s in batches if s["epoch"] == 0)
    assert seen == len(given)
    with pytest.raises(ValueError, match="'rows' must hold a structure"):
        next(iter(Stream(given, TOKENIZER, 4)))


def test_property_heads():
    batch = collate(packed(structures([3, 5])), DEPTH, 0.01)
    hidden = seeded().hidden(batch, 128)
    assert PropertyHead(TINY, 2, -1)(hidden, batch).shape == (2, 2)
    assert PropertyHead(TINY, 1, 0)(hidden, batch).shape == (8, 1)
    with pytest.raises(ValueError, match="'level' must be"):
        PropertyHead(TINY, 1, 2)


def test_counts_are_predicted_given_the_node():
    config = Config(layers=1, width=48, heads=2, merge_level=DEPTH, max_num_atom=128, dropout=0, drop_path=0)
    batch = collate(packed(structures([3, 6])), DEPTH, 0.01)
    nats = seeded(config)(batch, 128)
    assert ((nats["count"] > 0) == (batch.tree >= 0)).all()
    assert batch.count[0] == 3


@pytest.mark.parametrize(
    "change", [{"layers": 0}, {"width": 50, "heads": 4}, {"dropout": 1.0}, {"trees": 3}, {"merge_level": 11}]
)
def test_bad_configurations(change):
    with pytest.raises(ValueError, match=f"argument '{next(iter(change))}' is out of range"):
        Config(**change)


def test_crystals_have_a_head_for_each_tree():
    """Conditions, lattice and atoms in one sequence: each tree's targets reach its own heads and no others."""
    from core_3d_molecule import Crystals
    from core_3d_molecule.crystal_tokens import VOCABULARY, CrystalTokenizer

    lattices = np.array([np.diag([4.0, 4.1, 4.3]), np.diag([3.9, 4.2, 5.0])])
    fractional = np.array([[0.1, 0.1, 0.1], [0.6, 0.6, 0.6], [0.2, 0.3, 0.4]])
    crystals = Crystals(np.array([38, 22, 8], np.int32), fractional, lattices, np.array([0, 2, 3]))
    tokenizer = CrystalTokenizer()
    given = tokenizer.pack(tokenizer.tokenize(crystals), tokenizer.conditions(crystals))
    config = Config(
        layers=1, width=48, heads=2, merge_level=8, vocabulary=VOCABULARY, atom_types=342, max_num_atom=128, trees=2
    )
    batch = collate(given, 8, 0.01)
    assert int((batch.kind >= 0).sum()) == 2 * 8 + 3
    model = seeded(config)
    nats = model(batch, 1024)
    trees = batch.trees[batch.rows]
    assert set(trees.tolist()) == {0, 1}
    predicted = (batch.tree >= 0) | (batch.kind >= 0)
    assert ((nats["tree"] + nats["kind"] > 0) == predicted).all()
    nats["tree"][trees == 1].sum().backward()
    assert model.heads[1].tree[0].weight.grad.any()
    assert model.heads[0].tree[0].weight.grad is None or not model.heads[0].tree[0].weight.grad.any()
