"""The singular value decomposition of a product of thin factors, without forming the product.

Owns the linear algebra of aggregation and nothing else: no agents, no files.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

WELL_CONDITIONED = 1e-8
"""Below this ratio of a Gram matrix's eigenvalues its square root has lost too many digits."""


@dataclass(frozen=True, slots=True)
class LowRankSvd:
    """`left * values @ right`, the best approximation of the product at its rank.

    left: (d_out, k), orthonormal columns. values: (k,), falling, all above the rounding floor.
    right: (k, d_in), unit rows. tail: Frobenius norm of what was cut off. norm: of the whole.
    """

    left: Matrix
    values: NDArray[np.float64]
    right: Matrix
    tail: float
    norm: float


@dataclass(frozen=True, slots=True)
class Basis:
    """`x = (x @ back) @ coordinates`, with `x @ back` orthonormal.

    back: (n, k). coordinates: (k, n).
    """

    back: Matrix
    coordinates: Matrix


def svd_of_product(b: Matrix, middle: NDArray[np.float64], a: Matrix, rank: int) -> LowRankSvd:
    """Decompose `b @ diag(middle) @ a` and keep `rank` of it, in float64.

    Both factors are taken apart by the eigenvectors of their Gram matrices, columns scaled to unit
    length first (van der Sluis 1969: within sqrt(n) of the best scaling), and the small core
    between them by a dense SVD. O((d_out + d_in) n^2 + n^3), nothing of size d_out x d_in.

    Args:
        b: (d_out, n).
        middle: (n,).
        a: (n, d_in).
        rank: How many singular values to keep, at most.

    Returns:
        The decomposition, with at most `rank` values; values of zero are left out.
    """
    gram_b, gram_a = b.T @ b, a @ a.T
    norms_b, norms_a = np.sqrt(np.diagonal(gram_b)), np.sqrt(np.diagonal(gram_a))
    sizes = np.abs(middle) * norms_b * norms_a
    active = np.flatnonzero(sizes)
    if len(active) == 0:
        return LowRankSvd(np.empty((len(b), 0)), np.empty(0), np.empty((0, a.shape[1])), 0.0, 0.0)
    if len(active) < len(middle):
        block = np.ix_(active, active)
        b, a, middle = b[:, active], a[active], middle[active]
        gram_b, gram_a = gram_b[block], gram_a[block]
        norms_b, norms_a = norms_b[active], norms_a[active]
    left, right = _basis(b, gram_b, norms_b), _basis(a.T, gram_a, norms_a)
    core = (left.coordinates * middle) @ right.coordinates.T
    u, values, vt = np.linalg.svd(core, full_matrices=False)
    floor = np.finfo(np.float64).eps * float(sizes.sum())
    kept = min(rank, int(np.count_nonzero(values > floor)))
    return _assemble(b @ (left.back @ u[:, :kept]), values, (vt[:kept] @ right.back.T) @ a, int(kept))


def column_basis(x: Matrix) -> Basis:
    """An orthonormal basis of the column space of x, (d, n), and the columns' coordinates in it; zero columns are 0."""
    gram = x.T @ x
    norms = np.sqrt(np.diagonal(gram))
    active = np.flatnonzero(norms)
    if len(active) == len(norms) > 0:
        return _basis(x, gram, norms)
    if len(active) == 0:
        return Basis(np.zeros((len(norms), 0)), np.zeros((0, len(norms))))
    inner = _basis(x[:, active], gram[np.ix_(active, active)], norms[active])
    back, coordinates = np.zeros((len(norms), inner.back.shape[1])), np.zeros((len(inner.coordinates), len(norms)))
    back[active], coordinates[:, active] = inner.back, inner.coordinates
    return Basis(back, coordinates)


def svd_of_core(b: Matrix, left: Basis, core: Matrix, right: Basis, a: Matrix, rank: int) -> LowRankSvd:
    """Decompose `(b @ left.back) @ core @ (a.T @ right.back).T`, a product in the coordinates of two bases.

    Args:
        b: (d_out, n).
        left: Of the columns of `b`, k of them.
        core: (k, l).
        right: Of the rows of `a`, l of them.
        a: (n, d_in).
        rank: How many singular values to keep, at most; values of zero are left out.
    """
    if 0 in core.shape:
        return LowRankSvd(np.empty((len(b), 0)), np.empty(0), np.empty((0, a.shape[1])), 0.0, 0.0)
    u, values, vt = np.linalg.svd(core, full_matrices=False)
    floor = np.finfo(np.float64).eps * max(core.shape) * float(values[0])
    kept = min(rank, int(np.count_nonzero(values > floor)))
    return _assemble(b @ (left.back @ u[:, :kept]), values, (vt[:kept] @ right.back.T) @ a, kept)


def _assemble(left: Matrix, values: NDArray[np.float64], right: Matrix, kept: int) -> LowRankSvd:
    """Unit rows on the right with one sign for all machines; the product stays what it is."""
    lengths = np.linalg.norm(right, axis=1)
    largest = np.argmax(np.abs(right), axis=1)
    signed = np.copysign(lengths, right[np.arange(kept), largest])
    tail = float(np.linalg.norm(values[kept:]))
    return LowRankSvd(left * signed, values[:kept], right / signed[:, None], tail, float(np.linalg.norm(values)))


def _basis(x: Matrix, gram: Matrix, norms: NDArray[np.float64]) -> Basis:
    """Orthonormalize the columns of x, (d, n), none of which is zero.

    Where the Gram matrix is too ill-conditioned (or singular: agents with equal factors, more
    components than dimensions), the triangle of a QR decomposition takes its place: slower, and
    its small singular values keep all their digits.
    """
    scale = 1.0 / norms
    values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    if values[0] > WELL_CONDITIONED * values[-1]:
        singular = np.sqrt(values)
    else:
        triangle = np.linalg.qr(x * scale, mode="r")
        _, singular, vt = np.linalg.svd(triangle, full_matrices=False)
        keep = singular > np.finfo(np.float64).eps * max(x.shape) * singular[0]
        singular, vectors = singular[keep], vt[keep].T
    return Basis(
        back=scale[:, None] * vectors / singular,
        coordinates=singular[:, None] * vectors.T * norms,
    )
