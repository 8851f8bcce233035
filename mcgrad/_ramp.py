"""The ramp max(0, b), its slope and its derivative by mu: exact, and the smooth tanh(mu b) twin.

With p = (1 + sign b)/2 in the exact case and p = (1 + tanh(mu b))/2 in the smooth one:

    ramp          a = p b
    slope         a' = p                          exact: 1 for b >= 0, so 1 at the tie b = 0
                  a' = p + (mu/2) b sech²(mu b)   smooth
    by mu         da/dmu = (1/2) b² sech²(mu b)

`mu=None` is the exact ramp, and so is its limit, mu = inf, ties included. |a_mu(b) - max(0, b)| <=
0.13924/mu for every b. The other limit, mu -> 0, is b/2.
"""

import jax.numpy as jnp

from mcgrad._arrays import Array

__all__ = ["ramp", "ramp_by_mu", "slope"]


def ramp(b: Array, mu: Array | None) -> Array:
    """a(b): max(0, b), or b (1 + tanh(mu b))/2."""
    if mu is None:
        return jnp.where(b < 0, jnp.zeros_like(b), b)
    p, *_ = _gates(b, mu)
    return _times(p, b)


def slope(b: Array, mu: Array | None) -> Array:
    """a'(b): the derivative of the ramp by b."""
    if mu is None:
        return jnp.where(b < 0, jnp.zeros_like(b), jnp.ones_like(b))
    p, pq, u = _gates(b, mu)
    return p + 2 * _times(pq, u)


def ramp_by_mu(b: Array, mu: Array | None) -> Array:
    """da/dmu: zero for the exact ramp."""
    if mu is None:
        return jnp.zeros_like(b)
    _, pq, _ = _gates(b, mu)
    return 2 * _times(_times(pq, b), b)


def _gates(b: Array, mu: Array) -> tuple[Array, Array, Array]:
    """p = (1 + tanh u)/2, p(1 - p) = sech²(u)/4, and u = mu b.

    Written with exp(-2|u|), which neither overflows nor cancels: 1 + tanh u loses every digit for
    u << 0, and 1 - tanh² u for |u| >> 0. A mu that is not positive has no meaning: NaN.
    """
    exact = mu == jnp.inf
    u = jnp.where(exact, 1, jnp.where(mu > 0, mu, jnp.nan)) * b
    u = jnp.where(exact, jnp.where(b < 0, -jnp.inf, jnp.inf), u)
    # At u = 0 the derivative of jnp.abs(u) is 0, which belongs to neither side.
    e = jnp.exp(-2 * jnp.where(u < 0, -u, u))
    larger = 1 / (1 + e)
    smaller = e * larger
    return jnp.where(u < 0, smaller, larger), smaller * larger, u


def _times(gate: Array, b: Array) -> Array:
    """gate * b, where a gate that is shut holds back even an infinite b."""
    return gate * jnp.where(gate == 0, 0, b)
