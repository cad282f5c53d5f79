"""A vision-language model that acts: it writes action tokens, which are read as joint actions (arXiv 2503.16365)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .action_tokens import ActionTokenizer

_SIZES = {75: (2, 2, 10, 3, 3, 3, 2, 2, 2, 2, 2, 21, 21), 51: (10, 3, 3, 3, 2, 2, 2, 2, 2, 11, 11)}
"""Sizes of the groups of tokens in the order of their ids; for 75 the second is the pair of marks."""


def grammar(vocabulary: int) -> np.ndarray:
    """Which token may follow which, bool [vocabulary + 1, vocabulary]; the last row is for the first token.

    As the encoder writes them: of each group of buttons at most one that is pressed, in the order of the groups, or
    inventory alone, then both camera tokens; for 75 between the marks.
    """
    if vocabulary not in _SIZES:
        raise ValueError(f"argument 'vocabulary' must be 51 or 75, got {vocabulary}")
    sizes = _SIZES[vocabulary]
    group = np.repeat(np.arange(len(sizes)), sizes)
    pressed = np.concatenate([np.arange(n) > 0 for n in sizes])
    x, y = len(sizes) - 2, len(sizes) - 1
    inventory, buttons = (0, range(2, x - 1)) if vocabulary == 75 else (x - 1, range(x - 1))
    allowed = np.zeros((vocabulary + 1, vocabulary), bool)
    for token, g in enumerate(group):
        if g in buttons:
            allowed[token] = np.isin(group, [h for h in buttons if h > g]) & pressed | (group == x)
        elif g == inventory:
            allowed[token] = group == x
        elif g == x:
            allowed[token] = group == y
    first = np.isin(group, [inventory, *buttons]) & pressed | (group == x)
    if vocabulary == 75:
        begin, end = 2, 3
        allowed[begin], allowed[-1] = first, np.arange(vocabulary) == begin
        allowed[:-1][group == y, end] = True
    else:
        allowed[-1] = first
    return allowed


class ActionPolicy:
    """Asks a model for one action for each row of a batch; only tokens that go on an action can be written.

    model: as :class:`core_agents.post_training.PostTraining` takes it. Each token costs a forward pass over the whole
    batch; nothing is kept in between, so that any module will do.
    """

    def __init__(self, model: nn.Module, tokenizer: ActionTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._grammar = torch.as_tensor(grammar(tokenizer.vocabulary))
        self._longest = 12 if tokenizer.vocabulary == 75 else 10

    def act(
        self, input_ids: Tensor, generator: torch.Generator | None = None, **inputs: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Joint ids int32 [B] and [B] of prompts int64 [B, T] (all of one length, nothing filled up); ``inputs`` as for
        the model. The likeliest token each time, with a ``generator`` one drawn."""
        self.model.eval()
        device, first, size = input_ids.device, self.tokenizer.first_id, self.tokenizer.vocabulary
        rules = self._grammar.to(device)
        last = torch.full((len(input_ids),), size, device=device)
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=device)
        ids, written = input_ids, []
        for _ in range(self._longest):
            with torch.no_grad():
                logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[:, -1]
            scores = logits[:, first : first + size].float().masked_fill(~rules[last], -torch.inf)
            scores[ended] = 0.0
            if generator is None:
                token = scores.argmax(-1)
            else:
                token = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
            written.append(torch.where(ended, self.tokenizer.pad_id, token + first))
            last = torch.where(ended, last, token)
            ended = ended | ~rules[last].any(-1)
            if bool(ended.all()):
                break
            ids = torch.cat([ids, (token + first)[:, None]], 1)
        buttons, cameras, _ = self.tokenizer.decode(torch.stack(written, 1).cpu().numpy())
        return buttons[:, 0], cameras[:, 0]


def add_action_tokens(tokenizer: Any, model: Any, vocabulary: int = 75) -> ActionTokenizer:
    """Adds the action tokens to a tokenizer of transformers as special tokens and makes room for them in the model.

    Tokens that it knows already (Qwen2-VL's reserved ones) stay where they are. The new embeddings are the mean of the
    old ones. Raises ValueError if the tokens do not get ids in a row.
    """
    texts = ActionTokenizer(vocabulary).texts
    known: Mapping[str, int] = tokenizer.get_vocab()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [t for t in texts if t not in known]}, replace_extra_special_tokens=False
    )
    ids = tokenizer.convert_tokens_to_ids(texts)
    if ids != list(range(ids[0], ids[0] + vocabulary)):
        raise ValueError(f"the tokenizer gives the action tokens ids that are not in a row: {ids[:5]} ...")
    rows = model.get_input_embeddings().weight.shape[0]
    if ids[-1] >= rows:
        model.resize_token_embeddings(ids[-1] + 1, mean_resizing=True)
    pad = tokenizer.pad_token_id
    return ActionTokenizer(vocabulary, ids[0], pad if pad is not None else tokenizer.eos_token_id)
