"""Whole evaluations that are forecast from earlier ones: Spectrum, and forecasts like TaylorSeer's.

Spectrum (arXiv 2603.01623; its published code for SDXL): what goes into the UNet's last layer is forecast. Its
defaults are for 50 steps: 5 full ones first, then one in every 2, 2.75, 3.5 ...; the coordinate is the step.

TaylorSeer (arXiv 2503.06923) forecasts each layer of a transformer. Left out: that. What the UNet says is forecast
instead, with texts and without, which is the same as forecasting the guided noise. Its defaults for FLUX: one in every
5, order 2; the first 3 full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import factorial

import torch

from . import spent
from .net import Net, Rival

Known = Sequence[tuple[int, torch.Tensor]]
"""Evaluations that ran in full, and what came out, oldest first."""


def spectrum_steps(steps: int, warm_up: int, window: float, flex: float) -> tuple[int, ...]:
    """Spectrum's full evaluations: the first `warm_up`, then one in every floor(`window`), which grows by `flex`."""
    full, since = list(range(min(warm_up, steps))), 0
    for k in range(warm_up, steps):
        since += 1
        if since >= int(window):
            full.append(k)
            window, since = window + flex, 0
    return tuple(full)


def taylor_steps(steps: int, first: int, count: int) -> tuple[int, ...]:
    """TaylorSeer's full evaluations: the first ones, and others in even distances, `count` of them together; the last
    of these distances ends where the run does.
    """
    first = min(first, count)
    ahead, gaps = steps - first + 1, count - first + 1
    return tuple(range(first)) + tuple(first - 1 + j * ahead // gaps for j in range(1, gaps))


def polynomials(at: torch.Tensor, order: int) -> torch.Tensor:
    """Chebyshev polynomials of the first kind, T0 to T`order`, at places [n] in -1..1: [n, order + 1]."""
    found = [torch.ones_like(at), at]
    while len(found) <= order:
        found.append(2 * at * found[-1] - found[-2])
    return torch.stack(found[: order + 1], dim=1)


def chebyshev_weights(known: Sequence[int], at: int, steps: int, order: int, ridge: float) -> torch.Tensor:
    """How much each known evaluation counts in the value at evaluation `at`: a polynomial of that order over the whole
    run, 0..steps, fitted by ridge regression with `ridge` on its Chebyshev coefficients.
    """
    places = torch.tensor([*known, at], dtype=torch.float64) * 2 / steps - 1
    basis = polynomials(places, order)
    x, wanted = basis[:-1], basis[-1:]
    normal = x.T @ x + ridge * torch.eye(order + 1, dtype=torch.float64)
    return (wanted @ torch.linalg.solve(normal, x.T)).flatten()


def mixed(weights: torch.Tensor, values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.einsum("k,k...->...", weights.to(values[0].dtype), torch.stack(list(values)))


def taylor(known: Known, at: int, order: int) -> torch.Tensor:
    """TaylorSeer's forecast: backward differences over the full evaluations, each divided by its distance, stand for
    the derivatives of a Taylor series at the last one. Exact on lines; of higher order only near to it.
    """
    order = min(order, len(known) - 1)
    places = [k for k, _ in known[-order - 1 :]]
    row, terms = [value for _, value in known[-order - 1 :]], []
    for i in range(order + 1):
        terms.append(row[-1] * ((at - places[-1]) ** i / factorial(i)))
        row = [(now - before) / (places[j + i + 1] - places[j + i]) for j, (before, now) in enumerate(pairwise(row))]
    return torch.stack(terms).sum(0)


def spectrum(known: Known, at: int, steps: int) -> torch.Tensor:
    """Spectrum's forecast (arXiv 2603.01623): half a polynomial over the whole run, fitted to all that is known, half
    a line through the last two. Order 4, ridge 0.1 and the halves as in its script for SDXL.
    """
    places, values = [k for k, _ in known], [value for _, value in known]
    return (mixed(chebyshev_weights(places, at, steps, 4, 0.1), values) + taylor(known, at, 1)) / 2


class Forecasting(Rival):
    """Evaluations that are not in `full` are forecast; these are the same for all pictures.

    `inside`: what goes into the last layer is forecast, and that layer runs each time; else what the UNet says.
    """

    def __init__(
        self,
        net: Net,
        steps: int,
        full: Sequence[int],
        forecast: Callable[[Known, int], torch.Tensor],
        inside: bool = False,
    ) -> None:
        super().__init__(net, steps)
        self.full, self.forecast, self.inside = frozenset(full), forecast, inside
        self.known: list[tuple[int, torch.Tensor]] = []

    def noise(self, x: torch.Tensor, t: torch.Tensor, sigma: float) -> torch.Tensor:
        if self.k in self.full:
            hidden = self.net.hidden(self.net.call(x, t))
            said = self.net.last(hidden)
            self.known.append((self.k, hidden if self.inside else said))
            self.spent += 1
        elif self.inside:
            said = self.net.last(self.forecast(self.known, self.k))
            self.spent += spent.of(self.net.depth).last
        else:
            said = self.forecast(self.known, self.k)
        return self.net.noise(said, x, sigma)
