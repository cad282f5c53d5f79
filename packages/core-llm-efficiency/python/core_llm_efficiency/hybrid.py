"""A language model of Mamba-2, attention and MLP layers in torch, on this package's scan: the hybrid backbone.

The layout of Nemotron-H, on which Cosmos-Reason1 stands (arXiv 2503.15558): every layer is one mixer behind an RMSNorm,
with one residual; squared ReLU in the MLPs; no positional embedding. The layers are written as a pattern of M
(Mamba-2), * (attention) and - (MLP). Weights come from transformers' Mamba-2, Bamba and Nemotron-H models. float32, on
the CPU and on CUDA.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .state_space import mamba_chunk_scan_combined
from .xattention import xattention


@dataclasses.dataclass(frozen=True)
class HybridConfig:
    """Sizes. pattern: a letter for each layer, M, * or -; mlp: "relu2" (squared ReLU) or "swiglu"; rotary: how many
    channels of a head turn with the position (0: no positional embedding), at base `rope_theta`; time_step_limit bounds
    Mamba's step sizes. Raises ValueError for sizes that do not fit."""

    vocab_size: int
    hidden_size: int
    pattern: str
    intermediate_size: int = 0
    mlp: str = "relu2"
    mlp_bias: bool = False
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    head_dim: int = 64
    attention_bias: bool = False
    rotary: int = 0
    rope_theta: float = 10000.0
    mamba_num_heads: int = 1
    mamba_head_dim: int = 64
    n_groups: int = 1
    ssm_state_size: int = 128
    conv_kernel: int = 4
    use_conv_bias: bool = True
    use_bias: bool = False
    time_step_limit: tuple[float, float] = (0.0, float("inf"))
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if not self.pattern or set(self.pattern) - set("M*-"):
            raise ValueError(f"argument 'pattern' must be of the letters M, * and -, got {self.pattern!r}")
        if self.mlp not in ("relu2", "swiglu"):
            raise ValueError(f"argument 'mlp' must be 'relu2' or 'swiglu', got {self.mlp!r}")
        if self.num_attention_heads % self.num_key_value_heads or self.mamba_num_heads % self.n_groups:
            raise ValueError("arguments 'num_key_value_heads' and 'n_groups' must divide the numbers of heads")
        if self.rotary % 2 or not 0 <= self.rotary <= self.head_dim:
            raise ValueError(f"argument 'rotary' must be even and in [0, {self.head_dim}], got {self.rotary}")

    @classmethod
    def from_transformers(cls, config: Any) -> HybridConfig:
        """The sizes of a Mamba2Config, BambaConfig or NemotronHConfig.

        Raises ValueError for other kinds, and for what has no counterpart here (experts, sliding windows, other
        activations, scaled rotary embeddings).
        """
        kind = config.model_type
        if kind not in ("mamba2", "bamba", "nemotron_h"):
            raise ValueError(f"argument 'config' must be of a Mamba-2, Bamba or Nemotron-H model, got {kind!r}")
        act = config.mamba_hidden_act if kind == "nemotron_h" else config.hidden_act
        if act != "silu" or (kind == "nemotron_h" and config.mlp_hidden_act != "relu2"):
            raise ValueError("argument 'config' must have silu, and relu2 in Nemotron-H's MLPs, as activations")
        common = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size}
        common["tie_word_embeddings"] = bool(config.tie_word_embeddings)
        if kind == "mamba2":
            return cls(
                **common,
                pattern="M" * config.num_hidden_layers,
                mamba_num_heads=config.num_heads,
                mamba_head_dim=config.head_dim,
                n_groups=config.n_groups,
                ssm_state_size=config.state_size,
                conv_kernel=config.conv_kernel,
                use_conv_bias=config.use_conv_bias,
                use_bias=config.use_bias,
                time_step_limit=tuple(config.time_step_limit),
                norm_eps=config.layer_norm_epsilon,
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        common |= {
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": head_dim,
            "mlp_bias": config.mlp_bias,
        }
        if kind == "bamba":
            rope = config.rope_parameters
            if rope.get("rope_type", "default") != "default":
                raise ValueError(f"argument 'config' must have plain rotary embeddings, got {rope['rope_type']!r}")
            letters = {"linear_attention": "M-", "mamba": "M-", "full_attention": "*-", "attention": "*-"}
            return cls(
                **common,
                pattern="".join(letters[x] for x in config.layers_block_type),
                mlp="swiglu",
                attention_bias=config.attention_bias,
                rotary=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
                rope_theta=rope["rope_theta"],
                mamba_num_heads=config.mamba_n_heads,
                mamba_head_dim=config.mamba_d_head,
                n_groups=config.mamba_n_groups,
                ssm_state_size=config.mamba_d_state,
                conv_kernel=config.mamba_d_conv,
                use_conv_bias=config.mamba_conv_bias,
                use_bias=config.mamba_proj_bias,
                time_step_limit=tuple(config.time_step_limit),
                norm_eps=config.rms_norm_eps,
            )
        if config.sliding_window is not None:
            raise ValueError("argument 'config' must have no sliding window")
        return cls(
            **common,
            pattern=config.hybrid_override_pattern,
            mamba_num_heads=config.mamba_num_heads,
            mamba_head_dim=config.mamba_head_dim,
            n_groups=config.n_groups,
            ssm_state_size=config.ssm_state_size,
            conv_kernel=config.conv_kernel,
            use_conv_bias=config.use_conv_bias,
            use_bias=config.use_bias,
            time_step_limit=(config.time_step_min, float("inf")),  # what transformers' Nemotron-H limits them to
            norm_eps=config.layer_norm_epsilon,
        )


class HybridCache:
    """What the layers remember, for decoding: a layer's convolution inputs and scan state, or its keys and values."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    @property
    def nbytes(self) -> int:
        """All bytes held."""
        return sum(x.nbytes for pair in self.layers.values() for x in pair)


class Mamba2Mixer(nn.Module):
    """Mamba-2 (arXiv 2405.21060, section 7): projections, causal convolution, scan, gated RMSNorm over groups."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.config, heads = config, config.mamba_num_heads
        self.inner = heads * config.mamba_head_dim
        self.of_groups = config.n_groups * config.ssm_state_size
        width = self.inner + 2 * self.of_groups
        self.in_proj = nn.Linear(config.hidden_size, self.inner + width + heads, bias=config.use_bias)
        self.conv1d = nn.Conv1d(width, width, config.conv_kernel, groups=width, bias=config.use_conv_bias)
        steps = torch.exp(torch.empty(heads).uniform_(-6.9, -2.3))  # step sizes of 0.001 to 0.1
        self.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, heads + 1, dtype=torch.float32)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.inner, config.norm_eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=config.use_bias)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, place: int) -> tuple[Tensor, Any]:
        """x (B, L, hidden); past: the last conv_kernel - 1 inputs of the convolution, and the state."""
        c, (batch, length, _) = self.config, x.shape
        z, mixed, dt = self.in_proj(x).split([self.inner, self.inner + 2 * self.of_groups, c.mamba_num_heads], -1)
        mixed = mixed.mT
        before = mixed.new_zeros(batch, mixed.shape[1], c.conv_kernel - 1) if past is None else past[0]
        mixed = torch.cat([before, mixed], 2)
        kept = mixed[:, :, length:]
        mixed = functional.silu(self.conv1d(mixed)).mT
        inner, B, C = mixed.split([self.inner, self.of_groups, self.of_groups], -1)
        y, state = mamba_chunk_scan_combined(
            inner.unflatten(-1, (c.mamba_num_heads, c.mamba_head_dim)),
            dt,
            -torch.exp(self.A_log),
            B.unflatten(-1, (c.n_groups, -1)),
            C.unflatten(-1, (c.n_groups, -1)),
            D=self.D,
            dt_bias=self.dt_bias,
            initial_states=None if past is None else past[1],
            dt_softplus=True,
            dt_limit=c.time_step_limit,
            return_final_states=True,
        )
        gated = (y.flatten(2) * functional.silu(z)).unflatten(-1, (c.n_groups, -1))
        gated = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + c.norm_eps)
        return self.out_proj(gated.flatten(2) * self.norm.weight), (kept, state)


class Attention(nn.Module):
    """Causal attention with grouped queries; `threshold` below 1: prompts by `xattention`."""

    def __init__(self, config: HybridConfig, threshold: float) -> None:
        super().__init__()
        self.config, self.threshold = config, threshold
        queries, keys = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def _turned(self, x: Tensor, place: int) -> Tensor:
        half = self.config.rotary // 2
        if half == 0:
            return x
        frequency = self.config.rope_theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(place, place + x.shape[2], device=x.device)[:, None] * frequency
        a, b, rest = x.split([half, half, x.shape[3] - 2 * half], -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, place: int) -> tuple[Tensor, Any]:
        """x (B, L, hidden) at positions from `place` on; past: keys and values (B, G, place, head_dim)."""
        q, k, v = (p(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2) for p in self.projections())
        q, k = self._turned(q, place), self._turned(k, place)
        if past is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(past, (k, v), strict=True))
        if self.threshold < 1 and q.shape[2] > 1:
            y = xattention(q, k, v, threshold=self.threshold)
        else:
            length, seen = q.shape[2], k.shape[2]
            mask = None
            if past is not None and length > 1:
                mask = torch.ones(length, seen, dtype=torch.bool, device=x.device).tril(seen - length)
            plain = past is None and length > 1
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2)), (k, v)

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Those of queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj


class MLP(nn.Module):
    """Squared ReLU, or SwiGLU, between two projections."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        sizes, bias = (config.hidden_size, config.intermediate_size), config.mlp_bias
        self.gate_proj = nn.Linear(*sizes, bias=bias) if config.mlp == "swiglu" else None
        self.up_proj = nn.Linear(*sizes, bias=bias)
        self.down_proj = nn.Linear(*sizes[::-1], bias=bias)

    def forward(self, x: Tensor, past: Any, place: int) -> tuple[Tensor, Any]:
        """x (B, L, hidden); remembers nothing."""
        up = self.up_proj(x)
        up = functional.relu(up).square() if self.gate_proj is None else functional.silu(self.gate_proj(x)) * up
        return self.down_proj(up), None


class Layer(nn.Module):
    """x + mixer(RMSNorm(x))."""

    def __init__(self, config: HybridConfig, letter: str, threshold: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        if letter == "M":
            self.mixer: nn.Module = Mamba2Mixer(config)
        elif letter == "*":
            self.mixer = Attention(config, threshold)
        else:
            self.mixer = MLP(config)


class HybridModel(nn.Module):
    """The language model. Its parameters are named as in transformers' Nemotron-H.

    threshold: below 1, attention over prompts reads the blocks that `xattention` chooses at this threshold.
    """

    def __init__(self, config: HybridConfig, threshold: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(config, letter, threshold) for letter in config.pattern)
        self.norm_f = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embeddings.weight

    @classmethod
    def from_transformers(cls, model: Any, threshold: float = 1.0) -> HybridModel:
        """A model with the weights of transformers' Mamba2ForCausalLM, BambaForCausalLM, NemotronHForCausalLM, or of
        their bodies, whose head is then the embedding. Raises ValueError where `HybridConfig.from_transformers` does.
        """
        config = HybridConfig.from_transformers(model.config)
        weights = {_renamed(name, model.config.model_type): x.float() for name, x in model.state_dict().items()}
        if "lm_head.weight" not in weights:
            config = dataclasses.replace(config, tie_word_embeddings=True)
        made = cls(config, threshold)
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["embeddings.weight"]
        made.load_state_dict(weights)
        made.eval()
        return made

    def forward(self, input_ids: Tensor, cache: HybridCache | None = None) -> Tensor:
        """Logits (B, L, vocab) of input_ids (B, L), which follow what `cache` holds; it then holds them too.

        Raises ValueError unless L >= 1.
        """
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"argument 'input_ids' must be (B, L) with L >= 1, got shape {tuple(input_ids.shape)}")
        x, place = self.embeddings(input_ids), 0 if cache is None else cache.length
        for i, layer in enumerate(self.layers):
            more, kept = layer.mixer(layer.norm(x), None if cache is None else cache.layers.get(i), place)
            x = x + more
            if cache is not None and kept is not None:
                cache.layers[i] = kept
        if cache is not None:
            cache.length += input_ids.shape[1]
        logits: Tensor = self.lm_head(self.norm_f(x))
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int, temperature: float = 0.0) -> Tensor:
        """input_ids (B, L) continued by max_new_tokens tokens: the likeliest, or drawn at `temperature` by torch's
        generator."""
        cache = HybridCache()
        out, last = [input_ids], input_ids
        for _ in range(max_new_tokens):
            logits = self(last, cache)[:, -1]
            if temperature > 0:
                last = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                last = logits.argmax(-1, keepdim=True)
            out.append(last)
        return torch.cat(out, 1)


def _renamed(name: str, kind: str) -> str:
    """A parameter's name here, from that in transformers' model."""
    name = re.sub(r"^(model|backbone)\.", "", name)
    if kind != "bamba":
        return name
    name = name.replace("embed_tokens", "embeddings").replace("final_layernorm", "norm_f")
    found = re.fullmatch(r"layers\.(\d+)\.(input_layernorm|mamba|self_attn|pre_ff_layernorm|feed_forward)\.(.*)", name)
    if found is None:
        return name
    index, part, rest = int(found[1]), found[2], found[3]
    index = 2 * index + (part in ("pre_ff_layernorm", "feed_forward"))
    return f"layers.{index}.{'norm' if part.endswith('layernorm') else 'mixer'}.{rest}"
