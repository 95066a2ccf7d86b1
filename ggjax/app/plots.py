"""Pictures of weights and of their rates. Functions draw on the ``ax`` they are given and return it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ggjax import gennorm

BLUE, ORANGE, GREEN, GREY, INK = "#3b6fb6", "#d9622b", "#2a8f6d", "#a5a9b0", "#24272c"
COLORS = {"adam": BLUE, "backslash": ORANGE, "deepshape": GREEN, "post_trained": GREEN}
CALIBRATED = "_calibrated"
NAMES = {
    "adam": "Adam",
    "backslash": "Adam + BackSlash, from the same init",
    "adam_calibrated": "Adam, calibrated rounding",
    "backslash_calibrated": "BackSlash, calibrated rounding",
}


def histogram(
    params: Any,
    ax: Axes | None = None,
    *,
    color: str = BLUE,
    label: str = "weights",
    limit: float | None = None,
    bins: int = 161,
    law: bool = True,
    filled: bool = True,
) -> Axes:
    """The density of all weights on a log scale, with the fitted generalized Gaussian as a line.

    Args:
      params: a tree of arrays.
      ax: where to draw; None for a new figure.
      color: of bars and line.
      label: what to call the weights in the legend; the law's nu is added.
      limit: weights from -limit to limit are shown; None to show all.
      bins: how many bars.
      law: draw the fitted law.
      filled: bars; otherwise their outline.

    Returns:
      The axes, with a legend.
    """
    ax = _axes(ax)
    x = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])
    limit = float(np.abs(x).max()) if limit is None else limit
    edges = np.linspace(-limit, limit, bins + 1)
    width = edges[1] - edges[0]
    density = np.histogram(x, edges)[0] / (x.size * width)
    if filled:
        ax.stairs(density, edges, fill=True, color=color, alpha=0.35, lw=0, label=label)
    else:
        ax.stairs(density, edges, color=color, alpha=0.8, lw=1, label=label)
    ax.set_yscale("log")
    if law:
        fit = gennorm.fit(params)
        grid = np.linspace(-limit, limit, 801, dtype=np.float32)
        line = np.exp(np.asarray(gennorm.logpdf(grid, fit.nu, fit.scale)))
        ax.plot(grid, line, color=color, lw=1.8, label=rf"fitted law, $\nu$ = {float(fit.nu):.2f}")
    ax.set_ylim(bottom=0.5 / (x.size * width))
    ax.set_xlim(-limit, limit)
    ax.set_xlabel("weight")
    ax.set_ylabel("density")
    _tidy(ax)
    return ax


def frontier(points: Sequence[Mapping[str, Any]], ax: Axes | None = None, *, loss: float | None = None) -> Axes:
    """Loss after quantization against entropy bits per parameter, one curve per model: lower left is better.

    Args:
      points: {"model", "step", "bits", "loss"}, as in results.json; calibrated ones have no step.
      ax: where to draw; None for a new figure.
      loss: a loss to mark, that of the unquantized model.

    Returns:
      The axes, with a legend.
    """
    ax = _axes(ax)
    for model in dict.fromkeys(p["model"] for p in points):
        curve = sorted((p["bits"], p["loss"], p.get("step")) for p in points if p["model"] == model)
        bits, losses, _ = zip(*curve, strict=True)
        color = COLORS.get(model.removesuffix(CALIBRATED), GREY)
        style = "s--" if model.endswith(CALIBRATED) else "o-"
        ax.plot(bits, losses, style, color=color, ms=4, lw=1.8, label=NAMES.get(model, model))
        for b, y, s in curve:
            whole = s is not None and np.log2(s) == round(np.log2(s))
            if whole and (loss is None or y < 1.25 * loss):
                side = (4, 5) if model == "adam" else (-3, -13)
                ax.annotate(
                    f"$2^{{{np.log2(s):g}}}$",
                    (b, y),
                    side,
                    textcoords="offset points",
                    color=color,
                    fontsize=8,
                    ha="left" if model == "adam" else "right",
                )
    if loss is not None:
        ax.axhline(loss, color=GREY, lw=1, ls="--", label="Adam, not quantized")
        best = min(loss, *(p["loss"] for p in points))
        ax.set_ylim(best - 0.03 * loss, 1.25 * loss)
    ax.set_xlabel("bits per parameter (entropy)")
    ax.set_ylabel("loss after quantization (bits per byte)")
    ax.grid(color=GREY, alpha=0.25, lw=0.6)
    _tidy(ax)
    return ax


def life(models: Mapping[str, Any], results: Mapping[str, Any]) -> Figure:
    """The demo's picture: the weights after each of the two trainings, those around DeepShape, the frontier.

    Args:
      models: parameters by name: "adam", "backslash", "deepshape", "post_trained".
      results: as in results.json.
    """
    figure = Figure(figsize=(11.5, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    wide = max(_reach(models["adam"]), _reach(models["backslash"]))
    for ax, name, title in (
        (axes[0, 0], "adam", "Trained with Adam"),
        (axes[0, 1], "backslash", "Trained with Adam + BackSlash"),
    ):
        histogram(models[name], ax, color=COLORS[name], limit=wide)
        ax.set_title(title)
    top = max(ax.get_ylim()[1] for ax in axes[0])
    for ax in axes[0]:
        ax.set_ylim(top=top)
    ax = axes[1, 0]
    # DeepShape's weights lie on a grid: bars an odd number of its steps wide hold as many values each.
    width = (2 * round(0.16 * wide / 121 / 2**-13) + 1) * 2**-13
    near = 121 / 2 * width
    histogram(models["backslash"], ax, color=ORANGE, label="before", limit=near, bins=121)
    histogram(models["deepshape"], ax, color=GREEN, label="after", limit=near, bins=121, filled=False)
    ax.set_ylim(bottom=0.1)
    ax.set_title("DeepShape: the same weights reshaped")
    frontier(results["frontier"], axes[1, 1], loss=results["table"][0]["loss"])
    axes[1, 1].set_title("Size against loss at quantization steps $2^{-10}$ to $2^{-3}$")
    return figure


def _reach(params: Any) -> float:
    """The magnitude that one weight in 10,000 exceeds."""
    return max(
        float(np.quantile(np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])), 0.9999)), 1e-6
    )


def _axes(ax: Axes | None) -> Axes:
    return Figure(figsize=(6, 4), layout="constrained").subplots() if ax is None else ax


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(colors=INK, labelsize=9)
    ax.legend(frameon=False, fontsize=9, loc="upper right")
