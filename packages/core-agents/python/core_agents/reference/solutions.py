"""Solutions of one task, the largest number of a list, in linear time and with different constants."""

from functools import reduce

LARGEST = (
    "built_in", "loop", "by_index", "copied_first", "folded", "three_passes", "tournament", "popped",
    "counted_above",
)  # fmt: skip


def built_in(a: list[int]) -> int:
    """The library's."""
    return max(a)


def loop(a: list[int]) -> int:
    """One comparison for each."""
    best = a[0]
    for x in a:
        if x > best:
            best = x
    return best


def by_index(a: list[int]) -> int:
    """A position that is advanced by hand."""
    best, i = a[0], 0
    while i < len(a):
        if a[i] > best:
            best = a[i]
        i += 1
    return best


def copied_first(a: list[int]) -> int:
    """Two new lists, then the library."""
    b = [x + 1 for x in a]
    return max([x - 1 for x in b])


def folded(a: list[int]) -> int:
    """A function called for each."""
    return reduce(lambda x, y: x if x > y else y, a)


def three_passes(a: list[int]) -> int:
    """A loop three times."""
    best = a[0]
    for _ in range(3):
        for x in a:
            if x > best:
                best = x
    return best


def tournament(a: list[int]) -> int:
    """Winners of pairs, round by round."""
    while len(a) > 1:
        a = [max(a[i], a[min(i + 1, len(a) - 1)]) for i in range(0, len(a), 2)]
    return a[0]


def popped(a: list[int]) -> int:
    """A stack that is emptied."""
    stack = list(a)
    best = stack[0]
    while stack:
        x = stack.pop()
        if x > best:
            best = x
    return best


def counted_above(a: list[int]) -> int:
    """Five times: how many are above the best so far."""
    best = a[0]
    for _ in range(5):
        above = 0
        for x in a:
            if x > best:
                best = x
                above += 1
    return best
