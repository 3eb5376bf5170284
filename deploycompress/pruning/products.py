"""What matrix products and convolutions outside of a layer's module do to labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from deploycompress.pruning.labels import FREE, Layer, resized, varying

if TYPE_CHECKING:
    from deploycompress.pruning.operator_rules import Operators

PRODUCT = "they enter a product outside any layer, as in attention"
COMPUTED = "a product with a weight that is computed from others"


def product(operators: Operators, name: str, args: Any, tensors: list[Tensor], outputs: list[Tensor]) -> None:
    """A module may multiply with a layer's parameters itself: these are as good as a call of the layer."""
    if name == "convolution":
        _convolution(operators, args[0], args[1], args[8], outputs[0])
        return
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        first, second = args[-2:]
        weights = [t in operators.own for t in (first, second)]
        pure = [operators.own.get(t, False) for t in (first, second)]
        if pure != weights:
            for tensor in tensors:
                operators.freeze(tensor, COMPUTED)
            return
        if weights in ([True, False], [False, True]):
            found = (
                _contracted(operators, second, -2, first, -1, outputs[0])
                if weights[0]
                else _contracted(operators, first, -1, second, -2, outputs[0])
            )
            operators.set(outputs[0], found)
            if "add" in name:
                operators.set(outputs[0], operators.together([outputs[0], args[0]], outputs[0].shape))
            return
    for tensor in tensors:
        operators.freeze(tensor, PRODUCT)


def _contracted(
    operators: Operators, given: Tensor, reads: int, weight: Tensor, has: int, output: Tensor
) -> list[Layer]:
    """The product of activations and a weight over ``reads`` of the one and ``has`` of the other.

    All their other dimensions are where the product has them.
    """
    ties, passed = operators.ties, []
    reads, has = reads % given.ndim, has % weight.ndim
    inputs = []
    for layer in operators.layers(weight):
        if has in varying(layer):
            inputs.append(ties.gather(layer, has))
        else:
            passed.append(resized(layer, output.shape))
    met = False
    for layer in operators.layers(given):
        if reads not in varying(layer):
            passed.append(resized(layer, output.shape))
            continue
        labels = ties.gather(layer, reads)
        met = True
        for known in inputs:
            ties.tie(labels, known)
            for one, other in ((known, labels), (labels, known)):
                ties.freeze(other[one == FREE], "a product reads something else at the same positions")
        if not inputs:
            ties.freeze(labels, PRODUCT)
    if not met:
        for known in inputs:
            ties.freeze(known, "a product reads something else there")
    return passed


def _convolution(operators: Operators, given: Tensor, weight: Tensor, groups: int, output: Tensor) -> None:
    """Only a depthwise one is followed: a blur."""
    if groups != given.shape[1] or groups != weight.shape[0]:
        for tensor in (given, weight):
            operators.freeze(tensor, "a convolution whose weight is computed")
        return
    ties, layers = operators.ties, []
    for layer in operators.layers(given):
        if varying(layer) != {1}:
            ties.freeze(layer, "a convolution mixes neighbours among them")
            continue
        channels = ties.gather(layer, 1)
        for own in operators.layers(weight):
            if varying(own) == {0}:
                ties.tie(channels, ties.gather(own, 0))
        layers.append(resized(layer, output.shape))
    operators.set(output, layers)
