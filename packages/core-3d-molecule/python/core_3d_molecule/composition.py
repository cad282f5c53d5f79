"""Whether a crystal's composition is chemically plausible: charge neutrality and Pauling's rule, through smact."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from .crystals import Crystals
from .elements import SYMBOLS

MOST_STATES = 10_000_000


def composition_validity(crystals: Crystals) -> Any:
    """(B,) bool: whether oxidation states of the elements exist that are neutral together and, by Pauling's
    electronegativities, plausible, as CDVAE (arXiv 2110.06197) counts valid compositions; single elements and alloys of
    metals are valid.

    Oxidation states, metals and the test of electronegativities are smact's (the extra `metrics`; 2.5.5, whose tables
    published figures rest on). Each composition is tried once. Raises ValueError for more than 10^7 combinations.
    """
    keys = [_key(numbers) for numbers, _, _ in crystals]
    valid = {key: _valid(*key) for key in dict.fromkeys(keys)}
    return np.array([valid[key] for key in keys], bool)


def _key(numbers: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Symbols of a crystal's elements and their numbers in the least formula."""
    elements, counts = np.unique(numbers, return_counts=True)
    divisor = math.gcd(*counts.tolist())
    return tuple(SYMBOLS[z] for z in elements), tuple((counts // max(divisor, 1)).tolist())


def _valid(symbols: tuple[str, ...], counts: tuple[int, ...]) -> bool:
    import smact
    from smact.screening import pauling_test

    if len(symbols) <= 1 or all(symbol in smact.metals for symbol in symbols):
        return bool(symbols)
    elements = smact.element_dictionary(symbols)
    states = [elements[symbol].oxidation_states for symbol in symbols]
    if math.prod(map(len, states)) > MOST_STATES:
        raise ValueError(f"argument 'crystals' must have fewer combinations of oxidation states, got {symbols}")
    negativities = [elements[symbol].pauling_eneg for symbol in symbols]
    for charges in itertools.product(*states):
        if sum(q * n for q, n in zip(charges, counts, strict=True)) == 0:
            try:
                if pauling_test(charges, negativities):
                    return True
            except TypeError:  # an element without electronegativity
                return True
    return False
