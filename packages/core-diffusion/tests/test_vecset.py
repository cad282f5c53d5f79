import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from core_diffusion import vecset  # noqa: E402
from core_diffusion.vecset import VecSetDecoder, VecSetVAE, fourier_features, vae_loss  # noqa: E402
from core_diffusion.volume_decoding import decode_volume  # noqa: E402


def decoder(**options):
    torch.manual_seed(0)
    return VecSetDecoder(**{"width": 32, "heads": 4, **options}).eval()


def by_hand(model, points, latents):
    """The decoder in float64 from its weights, head by head."""
    w = {name: t.double() for name, t in model.state_dict().items()}
    c, block = model.config, "cross_attn_decoder."

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])

    angles = [points * 2.0**i * (math.pi if c.include_pi else 1) for i in range(c.num_freqs)]
    axis = torch.stack(angles, -1).flatten(-2)
    x = linear(torch.cat([points, axis.sin(), axis.cos()], -1), "query_proj")
    q = linear(norm(x, block + "ln_1"), block + "attn.c_q")
    kv = linear(norm(latents, block + "ln_2"), block + "attn.c_kv")
    each, heads = c.width // c.heads, []
    for h in range(c.heads):
        qh = q[..., h * each : (h + 1) * each]
        kh, vh = kv[..., 2 * h * each : (2 * h + 1) * each], kv[..., (2 * h + 1) * each : 2 * (h + 1) * each]
        if c.qk_norm:
            qh, kh = norm(qh, block + "attn.attention.q_norm"), norm(kh, block + "attn.attention.k_norm")
        heads.append((qh @ kh.transpose(1, 2) / math.sqrt(each)).softmax(-1) @ vh)
    x = x + linear(torch.cat(heads, -1), block + "attn.c_proj")
    x = x + linear(torch.nn.functional.gelu(linear(norm(x, block + "ln_3"), block + "mlp.c_fc")), block + "mlp.c_proj")
    return linear(norm(x, "ln_post") if c.enable_ln_post else x, "output_proj")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_ratio": 4, "qkv_bias": True, "qk_norm": True, "enable_ln_post": True},
        {"latent_width": 24, "include_pi": True, "num_freqs": 5},
    ],
)
def test_the_decoder_is_its_formula_and_loads_from_published_keys(options):
    model = decoder(**options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    points, latents = torch.rand(2, 9, 3) * 2 - 1, torch.randn(2, 7, options.get("latent_width", 32))
    out = model(points, latents)
    torch.testing.assert_close(out.double(), by_hand(model, points.double(), latents.double()), rtol=1e-4, atol=1e-4)
    prefixed = {"vae.geo_decoder." + name: t for name, t in model.state_dict().items()} | {"vae.other": torch.ones(1)}
    for state in (model.state_dict(), prefixed):
        again = VecSetDecoder.from_state_dict(state, 4, options.get("include_pi", False))
        assert torch.equal(again(points, latents), out)


def test_the_published_names():
    names = set(decoder(qkv_bias=True, qk_norm=True, enable_ln_post=True).state_dict())
    for name in ("query_proj", "ln_post", "output_proj", "cross_attn_decoder.attn.c_q", "cross_attn_decoder.attn.c_kv"):
        assert {name + ".weight", name + ".bias"} <= names
    for part in ("attn.c_proj", "attn.attention.q_norm", "attn.attention.k_norm", "ln_1", "ln_2", "ln_3", "mlp.c_fc"):
        assert f"cross_attn_decoder.{part}.weight" in names


def test_all_keys_are_the_whole_attention():
    model, points, latents = decoder(), torch.rand(2, 50, 3) * 2 - 1, torch.randn(2, 12, 32)
    with torch.no_grad():
        whole = model(points, latents)[..., 0]
        torch.testing.assert_close(model.field(latents)(points), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.field(latents, 12)(points), whole, rtol=0, atol=1e-5)
        few = model.field(latents, 11)(points)
    assert not torch.allclose(few, whole, atol=1e-6)


def test_a_cell_takes_the_keys_of_the_largest_mean_product():
    model, cells, keys = decoder(heads=2), 2, 3
    points, latents = torch.rand(2, 1500, 3) * 2.2 - 1.1, torch.randn(2, 10, 32)
    places = (torch.arange(4) + 0.5) / 4
    probes = torch.cartesian_prod(places, places, places)
    with torch.no_grad():
        found = model.field(latents, keys, cells)(points)
        block = model.cross_attn_decoder
        k, v = block.attn.keys_values(block.ln_2(latents))
        embedded = lambda at: model.query_proj(fourier_features(at, 8))  # noqa: E731
        queries = lambda x: block.attn.queries(block.ln_1(x))[0]  # noqa: E731
        for shape in range(2):
            for corner in torch.cartesian_prod(*[torch.tensor([-1.0, 0.0])] * 3):
                mine = ((points[shape] >= 0) == (corner == 0)).all(1)
                q, x = queries(embedded(corner + probes)[None]), embedded(points[shape, mine])[None]
                heads = []
                for h in range(2):
                    top = (q[h] @ k[shape, h].T).mean(0).argsort(descending=True)[:keys]
                    weights = (queries(x)[h] @ k[shape, h, top].T / 4).softmax(-1)
                    heads.append(weights @ v[shape, h, top])
                y = x[0] + block.attn.c_proj(torch.cat(heads, -1))
                y = model.output_proj(y + block.mlp(block.ln_3(y)))[:, 0]
                torch.testing.assert_close(found[shape, mine], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 2000])
def test_a_value_does_not_depend_on_what_is_asked_with_it(count):
    model, points = decoder(), torch.rand(1, count, 3) * 2 - 1
    field = model.field(torch.randn(1, 20, 32), 5, 3)
    with torch.no_grad():
        together = field(points)
        apart = torch.cat([field(part) for part in points.flip(1).split(300, 1)], 1).flip(1)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_the_order_of_the_points_changes_no_value(apart):
    """Nor does a cell without points, or with one."""
    model, points = decoder(), torch.cat([torch.rand(2, 300, 3), torch.tensor([-0.9, 0.1, 0.4]).expand(2, 1, 3)], 1)
    field, order = model.field(torch.randn(2, 20, 32), 5 if apart else None, 2), torch.randperm(301)
    with torch.no_grad():
        found = field(points)
        assert torch.equal(found, field(points))
        torch.testing.assert_close(field(points[:, order]), found[:, order], rtol=0, atol=1e-6)
        torch.testing.assert_close(field(points[:, -1:]), found[:, -1:], rtol=0, atol=1e-6)


def test_cells_of_their_own_lengths_in_one_call(monkeypatch):
    """What CUDA does in half precision, with a plain attention in place of its kernel."""

    def ragged(q, k, v, begin_q, begin_k, longest_q, longest_k):
        assert begin_q.dtype == begin_k.dtype == torch.int32
        assert begin_q[-1] == len(q)
        assert begin_k[-1] == len(k) == len(v)
        assert longest_q == begin_q.diff().max()
        assert bool((begin_k.diff() == longest_k).all())
        out = []
        for cell in range(len(begin_q) - 1):
            mine, keys = slice(begin_q[cell], begin_q[cell + 1]), slice(begin_k[cell], begin_k[cell + 1])
            weights = torch.einsum("nhd,mhd->hnm", q[mine], k[keys]) / math.sqrt(q.shape[-1])
            out.append(torch.einsum("hnm,mhd->nhd", weights.softmax(-1), v[keys]))
        return torch.cat(out)

    model, points, latents = decoder(qk_norm=True), torch.rand(2, 700, 3) * 1.4 - 1, torch.randn(2, 20, 32)
    with torch.no_grad():
        in_groups = model.field(latents, 7, 3)(points)
        monkeypatch.setattr(vecset, "_flash_takes", lambda q: True)
        monkeypatch.setattr(vecset, "varlen_attn", ragged)
        torch.testing.assert_close(model.field(latents, 7, 3)(points), in_groups, rtol=0, atol=1e-5)


def test_probes_in_parts_choose_the_same_keys(monkeypatch):
    model, points, latents = decoder(), torch.rand(1, 200, 3) * 2 - 1, torch.randn(1, 20, 32)
    with torch.no_grad():
        whole = model.field(latents, 5, 5)(points)
        monkeypatch.setattr(vecset, "_PROBED", 2 * 5**2 * 4**3)
        torch.testing.assert_close(model.field(latents, 5, 5)(points), whole, rtol=0, atol=1e-5)


def test_any_decoder_is_a_field():
    latents = torch.tensor([[[0.5]], [[0.8]]])
    by_callable = lambda p: latents[:, 0] - p.norm(dim=-1)  # noqa: E731
    first, second = decode_volume(by_callable, 32, batch=2, coarsest=8, device="cpu")
    assert np.abs(np.linalg.norm(first.mesh()[0], axis=1) - 0.5).max() < 0.01
    assert np.abs(np.linalg.norm(second.mesh()[0], axis=1) - 0.8).max() < 0.01
    model = decoder()
    (part,) = decode_volume(model.field(torch.randn(1, 6, 32), 4), 16, coarsest=4, device="cpu")
    assert part.values.isfinite().all()


def test_the_autoencoder_saves_learns_and_names_bad_input(tmp_path):
    torch.manual_seed(0)
    vae = VecSetVAE(8, 4, 16, 2, 1)
    cloud = torch.nn.functional.normalize(torch.randn(3, 64, 3), dim=2)
    surface, points = torch.cat([0.6 * cloud, cloud], 2), torch.rand(3, 128, 3) * 2 - 1
    step_of = lambda i: type(  # noqa: E731
        "Step",
        (),
        {
            "model": vae,
            "plain": vae,
            "batch": {"surface": surface, "points": points, "inside": points.norm(dim=2) < 0.6},
            "generator": torch.Generator().manual_seed(i),
        },
    )
    losses, optimizer = [], torch.optim.AdamW(vae.parameters(), 3e-3)
    for i in range(60):
        optimizer.zero_grad()
        loss = vae_loss(step_of(i), 32, 64)
        loss["loss"].backward()
        optimizer.step()
        losses.append(float(loss["loss"].detach()))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    vae.save_pretrained(tmp_path)
    again = VecSetVAE.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval().field(surface)(points), vae.eval().field(surface)(points))
    for bad in (surface[..., :3], surface[:, :4], surface[0]):
        with pytest.raises(ValueError, match="'surface'"):
            vae.encode(bad)
    with pytest.raises(ValueError, match="'width'"):
        VecSetDecoder(10, 4)
    with pytest.raises(ValueError, match="'keys'"):
        decoder().field(torch.randn(1, 6, 32), 0)
    with pytest.raises(ValueError, match="'cells'"):
        decoder().field(torch.randn(1, 6, 32), 4, 65)
    with pytest.raises(ValueError, match="'state'"):
        VecSetDecoder.from_state_dict({"query_proj.weight": torch.ones(4, 51)}, 2)
