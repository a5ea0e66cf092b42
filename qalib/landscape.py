"""The loss around a reader's weights, and how much of its gradient reaches each layer.

The loss of many weights cannot be drawn. Li et al. (2018, https://arxiv.org/abs/1712.09913) draw
it on a line or a plane through the trained weights w, along random directions d and e:

    loss(w + a d)    loss(w + a d + b e)

In front of a norm the size of a filter changes nothing, so a step of some length means much for
small weights and little for large ones. Therefore every filter of a direction is made as long as
that filter of the weights: at a = 1 weights and noise are equally strong, in every reader.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from qalib.data.byte_features import ByteBatch
from qalib.readers.byte_reader import ByteReader, TextConvolution
from qalib.spans import ReaderOutput

Loss = Callable[[ReaderOutput, ByteBatch], Tensor]  # one value a question, (Q,)
Direction = Mapping[str, Tensor]  # by name of a parameter, of its shape


def filter_direction(model: nn.Module, seed: int) -> Direction:
    """A random direction whose filters are as long as those of the model's weights.

        d_f = |w_f| g_f / |g_f|,  g_f drawn from N(0, 1)

    A filter leads to one output: a channel of a convolution, a row of a matrix. In the convolution
    of one-hot text each symbol has a filter of its own for every channel: most symbols never occur,
    and would take the greater part of a common length. Vectors (biases, scale and shift of norms)
    do not move.
    """
    draws = torch.Generator().manual_seed(seed)
    tables = {id(m.table) for m in model.modules() if isinstance(m, TextConvolution)}
    direction = {}
    for name, parameter in model.named_parameters():
        weights = parameter.detach()
        drawn = torch.randn(weights.shape, generator=draws).to(weights)
        if weights.ndim == 1:
            direction[name] = torch.zeros_like(weights)
            continue
        taps = (0,)  # of a table (K, symbols, width)
        axes = taps if id(parameter) in tables else tuple(range(1, weights.ndim))
        lengths = [torch.linalg.vector_norm(w, dim=axes, keepdim=True) for w in (weights, drawn)]
        direction[name] = drawn * (lengths[0] / lengths[1])
    return direction


@torch.no_grad()
def losses_around(
    model: ByteReader,
    directions: Sequence[Direction],
    places: Sequence[Sequence[float]],
    batches: Sequence[ByteBatch],
    loss: Loss,
) -> np.ndarray:
    """The mean loss at w + sum_i place_i direction_i for every place, without dropout.

    places (n, directions) -> (n,) float64. The model keeps its weights.
    """
    model.eval()
    found = []
    for place in places:
        moved = {name: weights.detach().clone() for name, weights in model.named_parameters()}
        for amount, direction in zip(place, directions, strict=True):
            for name, weights in moved.items():
                weights.add_(direction[name], alpha=amount)
        found.append(mean_loss(partial(functional_call, model, moved), batches, loss).item())
    return np.array(found)


def mean_loss(
    read: Callable[[ByteBatch], ReaderOutput], batches: Sequence[ByteBatch], loss: Loss
) -> Tensor:
    """The loss of a reader, averaged over all questions of some batches."""
    total = sum(loss(read(batch), batch).sum() for batch in batches)
    return total / sum(map(len, batches))


def smoothness(losses: np.ndarray, steps: np.ndarray) -> dict[str, float]:
    """How smooth the losses of a line (n,) or a plane (n, n) are, measured at the places ``steps``.

    rise       mean loss less that in the middle, at the solution
    roughness  root mean square of the second derivatives along the axes, divided by that of a
               round bowl whose losses are spread as widely: 1 for a bowl, more with kinks and bumps
    concave    percent of all bending that goes downwards: 0 for a bowl

    Neither roughness nor concave depends on the unit of the loss or of the steps.
    """
    bends = _second_derivatives(losses, steps[1] - steps[0])
    squares = sum(np.meshgrid(*[steps**2] * losses.ndim))  # a bowl whose derivatives are 2
    size, spread = float(np.sqrt((bends**2).mean())), float(losses.std() / squares.std())
    downwards, both = np.abs(bends[bends < 0]).sum(), np.abs(bends).sum()
    middle = losses[tuple(n // 2 for n in losses.shape)]
    return {
        "rise": float(losses.mean() - middle),
        "roughness": size / (2 * spread) if spread else 0.0,
        "concave": 100 * float(downwards / both) if both else 0.0,
    }


def _second_derivatives(losses: np.ndarray, step: float) -> np.ndarray:
    """(loss(a + step) - 2 loss(a) + loss(a - step)) / step^2 at the inner points, for each axis."""
    inner = (slice(1, -1),) * losses.ndim
    bends = [
        np.roll(losses, 1, axis) + np.roll(losses, -1, axis) - 2 * losses
        for axis in range(losses.ndim)
    ]
    return np.stack([bend[inner] for bend in bends]) / step**2


def gradient_norms(model: ByteReader, batches: Sequence[ByteBatch], loss: Loss) -> dict[str, float]:
    """Norm of the gradient of a batch's mean loss by layer, averaged over the batches.

    Over all parameters of a layer together, and without dropout. Layers are "encoder 1" and so on.
    """
    model.eval()
    parameters = dict(model.named_parameters())
    totals = dict.fromkeys(map(layer_of, parameters), 0.0)
    for batch in batches:
        gradients = torch.autograd.grad(mean_loss(model, [batch], loss), list(parameters.values()))
        squares = dict.fromkeys(totals, 0.0)
        for name, gradient in zip(parameters, gradients, strict=True):
            squares[layer_of(name)] += gradient.square().sum().item()
        for layer, square in squares.items():
            totals[layer] += square**0.5 / len(batches)
    return totals


def layer_of(name: str) -> str:
    """The layer of a reader's parameter: "encoder 1", "mixer 5", "attention", "span", "embed"."""
    if found := re.match(r"(encoder|mixer)\.layers\.(\d+)\.", name):
        return f"{found[1]} {int(found[2]) + 1}"
    first = name.partition(".")[0]
    return "attention" if first in ("query", "key") else first
