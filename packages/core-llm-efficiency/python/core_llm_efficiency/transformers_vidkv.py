"""VidKV in transformers: `VidKVCache` as past_key_values, `register_vidkv()` for decoding from its packed form."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .vidkv import (
    PackedKeys,
    PackedValues,
    pack_keys,
    pack_values,
    packed_attention,
    select_channels,
    unpack_keys,
    unpack_values,
)


def semantic_tokens(visual: torch.Tensor, text: torch.Tensor, ratio: float = 0.2, first: int = 0) -> torch.Tensor:
    """Positions (int64, ascending) of the visual tokens that matter most to the text: semantic token protection.

    visual (N, E) and text (T, E): embeddings in the model's space; a token's score is its mean inner product with the
    text tokens. The best floor(ratio N / 32) runs of 32 tokens are taken, one at least, N at most; `first` is the
    position of visual[0] in the prompt. Raises ValueError on shapes that do not fit or ratio outside [0, 1].
    """
    if visual.ndim != 2 or text.ndim != 2 or visual.shape[1] != text.shape[1] or text.shape[0] == 0:
        raise ValueError(f"argument 'text' must be (T, E) beside visual (N, E), got {text.shape} and {visual.shape}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"argument 'ratio' must be in [0, 1], got {ratio}")
    count = min(max(32, int(ratio * visual.shape[0] / 32) * 32), visual.shape[0])
    scores = visual.float() @ text.float().mean(0)
    return scores.topk(count).indices.sort().values + first


def _map(state: Any, change: Any) -> Any:
    """The packed arrays, each changed along the batch or the tokens."""
    if state is None:
        return None
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return type(state)(**{name: change(name, x) if torch.is_tensor(x) else x for name, x in fields.items()})


_ON_GPU = (torch.float32, torch.float16, torch.bfloat16)


def _coded(x: torch.Tensor) -> torch.Tensor:
    """x in a dtype that the coders take on its device."""
    return x if x.device.type == "cuda" and x.dtype in (torch.float16, torch.bfloat16) else x.float()


def _joined(old: Any, new: Any) -> Any:
    if old is None:
        return new
    return _map(old, lambda name, x: x if name == "channels" else torch.cat([x, getattr(new, name)], 2))


@dataclasses.dataclass(frozen=True)
class _State:
    """What a layer holds at one time. `slots` (tokens) int64 says where among the packed tokens each of the first ones
    lies; the others are recent, in full precision."""

    packed_keys: PackedKeys | None
    protected: PackedValues | None
    packed_values: PackedValues | None
    slots: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def length(self) -> int:
        return len(self.slots) + int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        packed = (self.packed_keys, self.protected, self.packed_values)
        return sum(x.nbytes for x in (*packed, self.slots, self.keys, self.values) if x is not None)

    def dense_keys(self) -> torch.Tensor:
        if self.packed_keys is None:
            return self.keys
        return torch.cat([unpack_keys(self.packed_keys)[:, :, self.slots].to(self.keys.dtype), self.keys], 2)

    def dense_values(self) -> torch.Tensor:
        parts = [unpack_values(x) for x in (self.protected, self.packed_values) if x is not None]
        if not parts:
            return self.values
        return torch.cat([torch.cat(parts, 2)[:, :, self.slots].to(self.values.dtype), self.values], 2)

    def batch(self, change: Any) -> _State:
        keys, four, three = (
            _map(x, lambda _, t: change(t)) for x in (self.packed_keys, self.protected, self.packed_values)
        )
        return _State(keys, four, three, self.slots, change(self.keys), change(self.values))

    def attend(self, query: torch.Tensor, seen: torch.Tensor | None, scale: float | None) -> torch.Tensor:
        """Attention of query (B, H, D) from the packed form; seen bool (B, tokens)."""
        assert self.packed_keys is not None
        count, tokens, recent = self.packed_keys.length, len(self.slots), self.keys.shape[2]
        if seen is not None or tokens < count:
            given = query.new_ones(len(query), self.length, dtype=torch.bool) if seen is None else seen
            seen = query.new_zeros(len(query), count + recent, dtype=torch.bool)
            seen[:, self.slots], seen[:, count:] = given[:, :tokens], given[:, tokens:]
        values = self.packed_values
        if values is None:
            assert self.protected is not None
            values = pack_values(self.values[:, :, :0], group=self.packed_keys.group)
        out: torch.Tensor = packed_attention(
            query, self.packed_keys, values, self.keys, self.values, protected=self.protected, seen=seen, scale=scale
        )
        return out


class _Packed(torch.Tensor):
    """Keys or values that are unpacked when an operator other than this package's attention reads them."""

    state: _State
    of_values: bool

    @staticmethod
    def __new__(cls, state: _State, of_values: bool) -> _Packed:
        like = state.values if of_values else state.keys
        shape = (*like.shape[:2], state.length, like.shape[3])
        self: _Packed = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        self.state, self.of_values = state, of_values
        return self

    def dense(self) -> torch.Tensor:
        return self.state.dense_values() if self.of_values else self.state.dense_keys()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"packed {'values' if self.of_values else 'keys'} of shape {tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(_Packed, _Packed.dense, (args, kwargs or {}))
        return func(*args, **kwargs)


class VidKVLayer(DynamicLayer):
    """One layer of a `VidKVCache`; arguments as there."""

    is_initialized: bool

    def __init__(
        self,
        bits: float = 1.5,
        group: int = 32,
        residual_length: int = 128,
        gamma: float = 0.5,
        protect: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        if group not in (32, 64, 128):
            raise ValueError(f"argument 'group' must be 32, 64 or 128, got {group}")
        if not 1 <= bits <= 2:
            raise ValueError(f"argument 'bits' must be in [1, 2], got {bits}")
        if residual_length < 0:
            raise ValueError(f"argument 'residual_length' must not be negative, got {residual_length}")
        if not 0 <= gamma <= 4:
            raise ValueError(f"argument 'gamma' must be in [0, 4], got {gamma}")
        self.bits, self.group, self.residual_length, self.gamma, self.protect = (
            bits, group, residual_length, gamma, protect,
        )  # fmt: skip
        self.state: _State | None = None

    @property
    def nbytes(self) -> int:
        """All bytes held: bits, scales, zeros, orders and the recent tokens."""
        return 0 if self.state is None else self.state.nbytes

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, and gives all: as they came while nothing was packed, then as they are stored."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        if self.state is None:
            before = _State(None, None, None, key_states.new_zeros(0, dtype=torch.int64), key_states, value_states)
        else:
            keys = torch.cat([self.state.keys, key_states], 2)
            values = torch.cat([self.state.values, value_states], 2)
            before = dataclasses.replace(self.state, keys=keys, values=values)
        self.state = self._packed(before)
        if before.packed_keys is None:
            return before.keys, before.values
        return _Packed(before, False), _Packed(before, True)

    def _packed(self, state: _State) -> _State:
        """Packs the whole runs that lie before the last `residual_length` tokens; what is packed stays."""
        count = (state.keys.shape[2] - self.residual_length) // self.group * self.group
        if count <= 0:
            return state
        keys, values = (_coded(x[:, :, :count]) for x in (state.keys, state.values))
        order, protected = torch.arange(count, device=keys.device), None
        if state.packed_keys is None:
            channels, wide = select_channels(keys, self.bits)
            if self.protect is not None:
                chosen = self.protect[self.protect < count].unique().to(keys.device)
                chosen = chosen[: len(chosen) // self.group * self.group]
                if len(chosen):
                    order = torch.cat([chosen, order[~torch.isin(order, chosen)]])
                    keys, values = keys[:, :, order], values[:, :, order]
                    protected = pack_values(values[:, :, : len(chosen)], 4, self.group)
                    values = values[:, :, len(chosen) :]
        else:
            channels, wide, protected = state.packed_keys.channels, state.packed_keys.zeros.shape[3], state.protected
        old = 0 if state.packed_keys is None else state.packed_keys.length
        three = pack_values(values, 3, self.group, self.gamma) if values.shape[2] else None
        return _State(
            _joined(state.packed_keys, pack_keys(keys, channels, wide, self.group)),
            protected,
            state.packed_values if three is None else _joined(state.packed_values, three),
            torch.cat([state.slots, order.argsort() + old]),
            state.keys[:, :, count:].clone(),
            state.values[:, :, count:].clone(),
        )

    def get_seq_length(self) -> int:
        """The number of tokens."""
        return 0 if self.state is None else self.state.length

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last -tokens_to_remove tokens; packed ones are left where their run is still needed, unread."""
        if tokens_to_remove > 0:
            raise ValueError(f"argument 'tokens_to_remove' must not be positive, got {tokens_to_remove}")
        if tokens_to_remove == 0 or self.state is None:
            return
        state, left = self.state, self.state.length + tokens_to_remove
        if left <= 0:
            self.reset()
            return
        recent = max(left - len(state.slots), 0)
        state = dataclasses.replace(
            state, slots=state.slots[:left], keys=state.keys[:, :, :recent], values=state.values[:, :, :recent]
        )
        if state.packed_keys is not None and recent == 0:
            two = 0 if state.protected is None else state.protected.length
            runs = max(-(-(int(state.slots.max()) + 1) // self.group), two // self.group)
            tokens = {"planes": runs * self.group // 32, "codes": runs * self.group - two}

            def cut(shift: int) -> Any:
                return lambda name, x: x if name == "channels" else x[:, :, : tokens.get(name, runs - shift)]

            state = dataclasses.replace(
                state,
                packed_keys=_map(state.packed_keys, cut(0)),
                packed_values=_map(state.packed_values, cut(two // self.group)),
            )
        self.state = state

    def reset(self) -> None:
        """Drops all tokens."""
        self.state, self.is_initialized = None, False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows of the batch in the order of `beam_idx`."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch `repeats` times."""
        if self.state is not None:
            self.state = self.state.batch(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only the rows `indices` of the batch."""
        if self.state is not None:
            self.state = self.state.batch(lambda x: x[indices])


class VidKVCache(Cache):
    """A cache of 1.x bits an element for `model.generate(..., past_key_values=VidKVCache(model.config))`.

    bits: of keys, in [1, 2]; values have three levels. group: tokens that share a scale, 32, 64 or 128. The last
    residual_length tokens and what is short of a run stay as they came; runs before them are packed once and never
    again. Which channels of the keys get two bits is chosen for each row of the batch when its first run is packed.
    gamma: see `pack_values`. protect: positions (int64) whose values get two bits instead, as from `semantic_tokens`;
    only positions that are packed first, and whole runs of them, count; they are packed in runs of their own.
    Layers with a sliding window keep transformers' own. Works with every attention implementation, which then sees the
    unpacked tokens; `register_vidkv` makes decoding read the packed form. Raises ValueError on values out of range.
    """

    def __init__(self, config: Any, **options: Any) -> None:
        layers = DynamicCache(config=config).layers
        super().__init__(layers=[VidKVLayer(**options) if type(x) is DynamicLayer else x for x in layers])

    @property
    def nbytes(self) -> int:
        """All bytes that the layers hold."""
        found = 0
        for layer in self.layers:
            if isinstance(layer, VidKVLayer):
                found += layer.nbytes
            elif layer.get_seq_length():
                found += layer.keys.nbytes + layer.values.nbytes
        return found


def register_vidkv(name: str = "core_vidkv", prefill: str = "sdpa") -> None:
    """Registers the attention implementation `name`: decoding one token reads a `VidKVCache` packed.

    The query is float32, on CUDA also float16 or bfloat16. All else goes to the implementation `prefill`, which sees
    unpacked tokens: prompts, gradients, dropout, other dtypes, masks that are not boolean, models that ask for more
    (bias, soft caps), and on CUDA heads of more than 256 channels. `prefill` is any implementation of transformers but
    "eager", which is a function of each model; KeyError for a name it does not know.
    """
    other = ALL_ATTENTION_FUNCTIONS[prefill]

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **rest: Any,
    ) -> tuple[torch.Tensor, Any]:
        if isinstance(key, _Packed) and isinstance(value, _Packed):
            plain = all(rest.get(x) is None for x in ("softcap", "position_bias", "s_aux"))
            on_gpu = query.device.type == "cuda" and max(query.shape[3], value.shape[3]) <= 256
            fits = query.dtype == key.dtype and (
                query.dtype in _ON_GPU if on_gpu else query.dtype == torch.float32 and query.device.type == "cpu"
            )
            if query.shape[2] == 1 and plain and dropout == 0 and fits and not query.requires_grad:
                mask = attention_mask
                if mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1):
                    seen = None if mask is None else mask[:, 0, 0].expand(len(query), -1)
                    return key.state.attend(query[:, :, 0], seen, scaling)[:, None], None
            key, value = key.dense(), value.dense()
        answer: tuple[torch.Tensor, Any] = other(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
        return answer

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[prefill])
