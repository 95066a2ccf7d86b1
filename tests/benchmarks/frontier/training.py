"""One training, of any method."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ggjax import baselines
from ggjax.baselines import Reparameterization
from tests.benchmarks import bench_to_rate
from tests.benchmarks.frontier import methods
from tests.benchmarks.frontier.methods import METHODS, Hyper, Method, Run, Setting
from tests.benchmarks.frontier.problems import Problem

MOST_BITS = 7
"""Of BitWave's mantissas."""


class Trained(NamedTuple):
    """What a training ends in."""

    latent: Any  # the parameters, or the latents of a reparameterization
    rest: Any
    told: dict[str, float]  # what the method says of itself


def form_of(method: Method, own: float) -> Reparameterization | None:
    """How the method rounds in the forward pass."""
    if method.form is None:
        return None
    return _form(method, method.values[0] if method.fixed_form else own)


@functools.cache
def _form(method: Method, own: float) -> Reparameterization:
    assert method.form is not None
    return method.form(own)


def weights_of(latent: Any, method: Method) -> Any:
    """The weights before any rounding."""
    return latent if method.form is None else latent.weights


def train(problem: Problem, run: Run) -> Trained:
    """Train, up to where the grid begins."""
    method, setting = METHODS[run.method], run.setting
    form = form_of(method, setting.own)
    params, rest = problem.init(run.seed, setting.variance, setting.nu)
    hyper = hyper_of(problem, method, setting, params)
    latent = params if form is None else form.init(params)
    start, step = _compiled(problem, method, form, run.steps)
    carry = start(latent, rest, hyper)
    begin, loss = time.perf_counter(), jnp.zeros(())
    for i in range(last_step(method, run.steps)):
        carry, loss = step(carry, keys_of(run.seed, i), hyper)
    latent, rest, state, control = carry
    told = {"train_loss": float(loss), "seconds": round(time.perf_counter() - begin, 1)}
    if method.target:
        told |= {"bits": float(optax.tree.get(state, "bits")), "step": float(hyper["step"])}
    if method.bitwave:
        told["bits"] = float(control.bits)
    return Trained(latent, rest, told)


@jax.jit  # one dispatch a step
def keys_of(seed: int, i: int) -> jax.Array:
    """Of step i: for the batch, for what is drawn as weights are rounded, and for their rate."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return jax.random.split(jax.random.fold_in(key, i), 3)


def last_step(method: Method, steps: int) -> int:
    """How many steps a training has before the grid."""
    return round((1 - method.grid) * steps)


def hyper_of(problem: Problem, method: Method, setting: Setting, params: Any) -> Hyper:
    """A setting as numbers for the compiled step."""
    named = setting._asdict() | ({method.tunes: setting.own} if method.tunes else {})
    found = {"own": named["own"], "decay": named["decay"]}
    found["learning_rate"] = problem.learning_rate * named["rate"]
    found["weight"] = problem.unit * named["own"]
    found["step"] = bench_to_rate.step_for(params, named["own"]) if method.target else 0.0
    return {k: jnp.float32(v) for k, v in found.items()}


@functools.cache  # settings are traced: a method is compiled once for each length
def _compiled(problem: Problem, method: Method, form: Reparameterization | None, steps: int) -> tuple[Any, Any]:
    @jax.jit
    def start(latent: Any, rest: Any, hyper: Hyper) -> Any:
        state = methods.optimizer(method, hyper, steps).init(latent)
        return latent, rest, state, baselines.bitwave_init(MOST_BITS)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, keys: jax.Array, hyper: Hyper) -> Any:
        latent, rest, state, control = carry
        batch_key, form_key, rate_key = keys
        batch = problem.batch(batch_key)

        def objective(latent: Any) -> tuple[jax.Array, Any]:
            weights = latent
            if method.bitwave:
                weights = baselines.round_floats(latent, control.bits)
            if form is not None:
                weights = form.apply(latent, form_key)
            loss, new = problem.loss(weights, rest, batch)
            if form is None or not method.fixed_form:
                return loss, (new, loss)
            return loss + hyper["weight"] * form.rate(latent, rate_key), (new, loss)

        grads, (rest, loss) = jax.grad(objective, has_aux=True)(latent)
        updates, state = methods.optimizer(method, hyper, steps).update(grads, state, latent)
        if form is not None:  # what is trained beside the weights has a learning rate of its own
            whole: Any = updates
            updates = jax.tree.map(lambda u: method.side * u, whole)._replace(weights=whole.weights)
        if method.bitwave:
            control = baselines.bitwave_update(control, loss, every=10, decay=0.99, margin=hyper["weight"])
        return (optax.apply_updates(latent, updates), rest, state, control), loss

    return start, step
