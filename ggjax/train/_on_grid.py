"""Training on the grid of calibrated rounding: what rounding cost is learned back."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ggjax._internal import trees
from ggjax._internal.gradients import straight_through
from ggjax.sensitivity import Levels, Rounded
from ggjax.sensitivity._rounding import rounded_tree


class OnGrid(NamedTuple):
    """Two functions of latent weights, a tree like the parameters, which any optax transform trains."""

    apply: Callable[[Any], Any]  # latents -> weights on the grid, for the loss; differentiable, under jit
    freeze: Callable[[Any], Rounded]  # latents -> what ``compress`` and ``save_file`` take; outside jit


def on_grid(rounded: Rounded) -> OnGrid:
    """Go on training the weights that ``sensitivity.round_to`` has rounded, with every step of theirs kept.

    The loss sees latent weights rounded to the nearest levels, with the steps of rows and columns that
    calibrated rounding chose; gradients pass straight through the rounding (arXiv 1308.3432). A weight moves
    to the next level when its latent has gone half a step. Leaves that were not rounded are trained as they
    are. The bits rise a little; ``backslash`` after the optimizer holds them down as in any training.

    It need not take further steps. Round when five sixths of a training are done, its learning rate not yet at
    zero, and spend the last sixth on the grid, with the learning rate raised to half its peak and falling to
    zero in a straight line. Latents need that much to get from level to level; with the small learning rates of
    fine-tuning little is won back. This pays for few bits: the further the rounding alone has raised the loss,
    the more is won back.

    Args:
      rounded: what ``sensitivity.round_to`` or ``sensitivity.compensate`` gives. Its ``params`` are the
        latents to begin with.

    Returns:
      ``OnGrid``, a pair of functions. ``freeze`` gives a ``Rounded`` with its bits counted anew and nothing
      predicted.

    Raises:
      ValueError: (both functions) latents without one of the rounded leaves, or with one of another shape;
        (``freeze``) with a NaN or infinite weight. The message names the leaf.

    >>> import jax, jax.numpy as jnp, optax
    >>> from ggjax import sensitivity
    >>> x = jax.random.normal(jax.random.key(0), (256, 16))
    >>> params = {"kernel": jax.random.normal(jax.random.key(1), (16, 8))}
    >>> forward = lambda params, x: x @ params["kernel"]
    >>> known = sensitivity.estimate(forward, params, [x], key=jax.random.key(2), output="values")
    >>> rounded = sensitivity.round_to(params, known, bits=4.5)
    >>> grid, tx = on_grid(rounded), optax.sgd(0.02, momentum=0.9)
    >>> loss = lambda latent: jnp.mean((forward(grid.apply(latent), x) - forward(params, x)) ** 2)
    >>> @jax.jit
    ... def train_step(latent, state):
    ...     updates, state = tx.update(jax.grad(loss)(latent), state, latent)
    ...     return optax.apply_updates(latent, updates), state
    >>> latent = rounded.params
    >>> state = tx.init(latent)
    >>> for _ in range(50):
    ...     latent, state = train_step(latent, state)
    >>> small = grid.freeze(latent)
    >>> bool((small.params["kernel"] == grid.apply(latent)["kernel"]).all())
    True
    """
    # The levels that were chosen are only where training begins: they are not to be held by compiled programs.
    # On the host, steps go with latents on whatever devices.
    blank = {n: dataclasses.replace(q, levels=jnp.zeros((), jnp.int32)) for n, q in rounded.levels.items()}
    grids: dict[str, Levels] = jax.tree.map(np.asarray, blank)

    def apply(latent: Any) -> Any:
        flat = _checked(latent, grids)
        pairs = zip(flat.weight_names(), flat.weights(), strict=True)
        return flat.replace(straight_through(_levels(x, grids[n]).values, x) for n, x in pairs)

    def freeze(latent: Any) -> Rounded:
        flat = _checked(latent, grids)
        trees.check_finite(flat.weight_names(), flat.weights())
        pairs = zip(flat.weight_names(), flat.weights(), strict=True)
        levels: dict[str, Levels] = {n: _levels(x, grids[n]) for n, x in pairs}
        return rounded_tree(flat, levels, dict.fromkeys(levels, 0.0))

    return OnGrid(apply, freeze)


def _checked(latent: Any, grids: dict[str, Levels]) -> trees.Flat:
    """The latents, with the leaves selected that have a grid."""
    flat = trees.flatten(latent, None, needs_weights=False)
    shapes = {n: np.shape(x) for n, x in zip(flat.weight_names(), flat.weights(), strict=True)}
    for name, q in grids.items():
        if shapes.get(name) != q.view.shape:
            raise ValueError(
                f"leaf {name!r}: was rounded with shape {q.view.shape}, the latents have {shapes.get(name)}"
            )
    return flat._replace(selected=[s and n in grids for n, s in zip(flat.names, flat.selected, strict=True)])


@jax.jit
def _levels(x: jax.Array, grid: Levels) -> Levels:
    """The nearest levels of a leaf."""
    levels = jnp.round(grid.view.matrices(x.astype(jnp.float32)) / grid.steps)
    return dataclasses.replace(grid, levels=levels.astype(jnp.int32), dtype=jnp.dtype(x.dtype))
