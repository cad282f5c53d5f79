"""Functions of known complexity. The first line of each docstring: worst time; space beside the arguments."""

import bisect
import heapq
from collections import Counter, deque


def first_and_last(a: list[int]) -> int:
    """1; 1"""
    return a[0] + a[-1]


def parity(n: int) -> bool:
    """1; 1"""
    return n % 2 == 0


def triangle(n: int) -> int:
    """1; 1"""
    return n * (n + 1) // 2


def lookup(d: dict[str, int]) -> int:
    """1; 1"""
    return d.get("k1", 0)


def halving(n: int) -> int:
    """log n; 1"""
    steps = 0
    while n > 1:
        n //= 2
        steps += 1
    return steps


def binary_search(a: list[int], x: int) -> int:
    """log n; 1"""
    low, high = 0, len(a)
    while low < high:
        middle = (low + high) // 2
        if a[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


def power(n: int) -> int:
    """log n; log n"""
    if n == 0:
        return 1
    half = power(n // 2) % 1_000_007
    return half * half * (3 if n % 2 else 1) % 1_000_007


def library_search(a: list[int], x: int) -> int:
    """log n; 1"""
    return bisect.bisect_left(a, x)


def digits(n: int) -> int:
    """log n; 1"""
    total = 0
    while n:
        n, digit = divmod(n, 10)
        total += digit
    return total


def is_prime(n: int) -> bool:
    """sqrt n; 1"""
    d = 2
    while d * d <= n:
        if n % d == 0:
            return False
        d += 1
    return n > 1


def divisors(n: int) -> int:
    """sqrt n; 1"""
    count, d = 0, 1
    while d * d <= n:
        if n % d == 0:
            count += 1 if d * d == n else 2
        d += 1
    return count


def total(a: list[int]) -> int:
    """n; 1"""
    result = 0
    for x in a:
        result += x
    return result


def library_maximum(a: list[int]) -> int:
    """n; 1"""
    return max(a)


def prefix_sums(a: list[int]) -> list[int]:
    """n; n"""
    result = [0]
    for x in a:
        result.append(result[-1] + x)
    return result


def two_pointers(a: list[int]) -> bool:
    """n; 1"""
    i, j = 0, len(a) - 1
    while i < j:
        if a[i] + a[j] == -1:
            return True
        i, j = i + 1, j - 1
    return False


def most_common_letter(s: str) -> str:
    """n; 1"""
    counts = Counter(s)
    return max(counts, key=counts.__getitem__)


def is_palindrome(s: str) -> bool:
    """n; n"""
    return s == s[::-1]


def count_down(n: int) -> int:
    """n; 1"""
    total = 0
    while n > 0:
        n -= 1
        total += n
    return total


def fibonacci_table(n: int) -> int:
    """n; n"""
    table = [0, 1] + [0] * n
    for i in range(2, n + 1):
        table[i] = (table[i - 1] + table[i - 2]) % 1_000_007
    return table[n]


def matched(s: str) -> bool:
    """n; n"""
    stack = []
    for c in s:
        if c < "n":
            stack.append(c)
        elif stack and stack[-1] == c:
            stack.pop()
    return not stack


def largest_run(a: list[int]) -> int:
    """n; n"""
    seen, best = set(a), 0
    for x in seen:
        if x - 1 not in seen:
            y = x
            while y in seen:
                y += 1
            best = max(best, y - x)
    return best


def breadth_first(graph: dict[int, list[int]]) -> int:
    """n; n"""
    seen, queue = {0}, deque([0])
    while queue:
        for other in graph.get(queue.popleft(), ()):
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return len(seen)


def library_sort(a: list[int]) -> list[int]:
    """n log n; n"""
    return sorted(a)


def merge_sort(a: list[int]) -> list[int]:
    """n log n; n"""
    if len(a) < 2:
        return a
    middle = len(a) // 2
    left, right = merge_sort(a[:middle]), merge_sort(a[middle:])
    result, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]


def heap_sort(a: list[int]) -> list[int]:
    """n log n; n"""
    heap = list(a)
    heapq.heapify(heap)
    return [heapq.heappop(heap) for _ in range(len(heap))]


def many_searches(a: list[int]) -> int:
    """n log n; n"""
    ordered = sorted(a)
    return sum(bisect.bisect_left(ordered, x) for x in a)


def harmonic(n: int) -> int:
    """n log n; 1"""
    total = 0
    for i in range(1, n + 1):
        for _ in range(0, n, i):
            total += 1
    return total


def sort_words(words: list[str]) -> str:
    """n log n; n"""
    words = list(words)
    words.sort(key=lambda w: w[::-1])
    return " ".join(words)


def pairs(a: list[int]) -> int:
    """n^2; 1"""
    count = 0
    for i in range(len(a)):
        for j in range(i):
            count += a[i] > a[j]
    return count


def bubble_sort(a: list[int]) -> list[int]:
    """n^2; n"""
    a = list(a)
    for end in range(len(a), 1, -1):
        moved = False
        for i in range(end - 1):
            if a[i] > a[i + 1]:
                a[i], a[i + 1] = a[i + 1], a[i]
                moved = True
        if not moved:
            break
    return a


def insertion_sort(a: list[int]) -> list[int]:
    """n^2; n"""
    a = list(a)
    for i in range(1, len(a)):
        x, j = a[i], i
        while j and a[j - 1] > x:
            a[j] = a[j - 1]
            j -= 1
        a[j] = x
    return a


def quicksort(a: list[int]) -> list[int]:
    """n^2; n^2"""
    if len(a) < 2:
        return a
    pivot = a[0]
    smaller, larger = [x for x in a[1:] if x < pivot], [x for x in a[1:] if x >= pivot]
    return [*quicksort(smaller), pivot, *quicksort(larger)]


def duplicates_in_list(a: list[int]) -> list[int]:
    """n^2; n"""
    seen = []
    for x in a:
        if x not in seen:
            seen.append(x)
    return seen


def take_from_front(a: list[int]) -> int:
    """n^2; n"""
    a, total = a[:], 0
    while a:
        total += a.pop(0)
    return total


def table_of_products(n: int) -> list[list[int]]:
    """n^2; n^2"""
    return [[i * j for j in range(n)] for i in range(n)]


def longest_increasing(a: list[int]) -> int:
    """n^2; n"""
    best = [1] * len(a)
    for i in range(len(a)):
        for j in range(i):
            if a[j] < a[i]:
                best[i] = max(best[i], best[j] + 1)
    return max(best, default=0)


def triples(a: list[int]) -> int:
    """n^3; 1"""
    count, n = 0, len(a)
    for i in range(n):
        for j in range(i):
            for k in range(j):
                count += a[i] + a[j] == a[k]
    return count


def matrix_product(a: list[list[int]]) -> list[list[int]]:
    """n^3; n^2"""
    n = len(a)
    return [[sum(a[i][k] * a[k][j] for k in range(n)) for j in range(n)] for i in range(n)]


def shortest_paths(n: int) -> int:
    """n^3; n^2"""
    d = [[abs(i - j) * 7 % 11 for j in range(n)] for i in range(n)]
    for k in range(n):
        for i in range(n):
            for j in range(n):
                d[i][j] = min(d[i][j], d[i][k] + d[k][j])
    return d[0][-1]


def fibonacci(n: int) -> int:
    """2^n; n"""
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def subset_sum(a: list[int]) -> int:
    """2^n; n"""

    def walk(i: int, rest: int) -> int:
        if i == len(a):
            return rest == 0
        return walk(i + 1, rest) + walk(i + 1, rest - a[i])

    return walk(0, -1)


def orders(a: list[int]) -> int:
    """n!; n"""

    def walk(left: tuple[int, ...]) -> int:
        if not left:
            return 1
        return sum(walk(left[:i] + left[i + 1 :]) for i in range(len(left)))

    return walk(tuple(a))


# ---- two arguments: whether the sizes multiply or add


def product_of_loops(a: list[int], b: list[int]) -> int:
    """n * m"""
    return sum(1 for x in a for y in b if x == y)


def one_after_the_other(a: list[int], b: list[int]) -> int:
    """n + m"""
    return sum(x for x in a) + sum(y for y in b)


def edit_distance(s: str, t: str) -> int:
    """n * m"""
    row = list(range(len(t) + 1))
    for i, c in enumerate(s, 1):
        last, row[0] = row[0], i
        for j, d in enumerate(t, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (c != d))
    return row[-1]


def common(a: list[int], b: list[int]) -> int:
    """n + m"""
    return len(set(a) & set(b))


def search_list_in_list(a: list[int], b: list[int]) -> int:
    """n * m"""
    return sum(x in b for x in a)


def merge(a: list[int], b: list[int]) -> list[int]:
    """n + m"""
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]


def grid_paths(n: int, m: int) -> int:
    """n * m"""
    row = [1] * (m + 1)
    for _ in range(n):
        for j in range(1, m + 1):
            row[j] = (row[j] + row[j - 1]) % 1_000_007
    return row[m]


def sort_both(a: list[int], b: list[int]) -> int:
    """n log n + m log m"""
    return sorted(a)[0] + sorted(b)[0]
