"""Integer matrix products of one block of outputs."""

import triton
import triton.language as tl


@triton.jit
def load_features(at, features, k, rows, m, EVEN: tl.constexpr, FULL: tl.constexpr):
    """Integers of a row-major matrix; 0 outside of k features and m rows. EVEN, FULL: none are outside."""
    if EVEN and FULL:
        values = tl.load(at)
    elif EVEN:
        values = tl.load(at, mask=rows < m, other=0)
    elif FULL:
        values = tl.load(at, mask=features < k, other=0)
    else:
        values = tl.load(at, mask=(features < k) & (rows < m), other=0)
    return values


@triton.jit
def product(codes, digits, sums, SWAP: tl.constexpr):
    """sums plus codes times digits. SWAP: see `block_sums`. Triton before 3.9 asks for the type of sums."""
    left, right = (codes, digits) if SWAP else (digits, codes)
    return tl.dot(left, right, sums, out_dtype=tl.int32)


@triton.jit
def block_sums(
    first_digits, second_digits, codes, begin, end, k, digits_k, rows, columns, m,
    TWO: tl.constexpr, SWAP: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums, int32, of features from begin to end: codes [n, k] times one or TWO matrices of digits.

    These are [m, digits_k]. All are given by the address of the block's first row and feature.

    SWAP: codes on the left, and sums [BLOCK_N, BLOCK_M]; tensor cores then want fewer rows of digits.
    EVEN: blocks of features end where k ends. FULL: rows from m on may be read, into sums that nobody needs.
    """
    features = tl.arange(0, BLOCK_K)
    shape: tl.constexpr = (BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N)
    if SWAP:
        of_codes, of_digits, columns, rows = (
            features[None, :],
            features[:, None],
            columns[:, None],
            rows[None, :],
        )
    else:
        of_codes, of_digits, columns, rows = (
            features[:, None],
            features[None, :],
            columns[None, :],
            rows[:, None],
        )
    codes_at, digits_at = columns * k + of_codes, rows * digits_k + of_digits
    first = tl.zeros(shape, tl.int32)
    second = tl.zeros(shape, tl.int32)
    for start in range(begin, end, BLOCK_K):
        left = k - start
        w = load_features(codes + codes_at, of_codes, left, columns, m, EVEN, True)
        a = load_features(first_digits + digits_at, of_digits, left, rows, m, EVEN, FULL)
        first = product(w, a, first, SWAP)
        if TWO:
            b = load_features(second_digits + digits_at, of_digits, left, rows, m, EVEN, FULL)
            second = product(w, b, second, SWAP)
        codes += BLOCK_K
        first_digits += BLOCK_K
        second_digits += BLOCK_K
    return first, second
