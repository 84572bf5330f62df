"""The cross entropy of chosen pixels, with its gradient: one softmax serves mining, loss and gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# B batch, K classes, H height, W width


class Weighing(NamedTuple):
    """What each class weighs, (K,), or 1 without; and the share of the target that all classes get (smoothing).

    The definition is that of torch.nn.functional.cross_entropy.
    """

    weights_K: Tensor | None = None
    smoothing: float = 0.0

    def of_label(self, label_BHW: Tensor, kept_BHW: Tensor) -> Tensor:
        """The weight of each pixel's true class, 0 where it is not kept, (B, H, W) float32."""
        if self.weights_K is None:
            return kept_BHW.float()
        return self.weights_K[label_BHW.masked_fill(~kept_BHW, 0)] * kept_BHW

    def divisor(self, label_BHW: Tensor, kept_BHW: Tensor) -> Tensor:
        """What the sum over the kept pixels is divided by for their weighted mean, 0-d; 1 where none is kept."""
        if self.weights_K is None:
            return count(kept_BHW)
        total = self.of_label(label_BHW, kept_BHW).sum()
        return torch.where(total > 0, total, torch.ones_like(total))


PLAIN = Weighing()


def widen(scores_BKHW: Tensor) -> Tensor:
    """The scores outside of the graph, in float32 where they have half precision."""
    return scores_BKHW.detach().to(torch.promote_types(scores_BKHW.dtype, torch.float32))


def of_true_class(value_BKHW: Tensor, label_BHW: Tensor, valid_BHW: Tensor) -> Tensor:
    """Each pixel's value for its true class, (B, H, W); for class 0 where the pixel is ignored."""
    return value_BKHW.gather(1, label_BHW.masked_fill(~valid_BHW, 0)[:, None])[:, 0]


def count(mask_BHW: Tensor) -> Tensor:
    """How many pixels a mask has, but at least 1; 0-d."""
    return mask_BHW.sum().clamp(min=1)


def divisor(label_BHW: Tensor, valid_BHW: Tensor, average: str, weighing: Weighing = PLAIN) -> Tensor | int:
    """What `average` divides a sum by: the weights of the "valid" pixels, 1 each without weights, or "all" pixels."""
    return valid_BHW.numel() if average == "all" else weighing.divisor(label_BHW, valid_BHW)


def sum_kept(
    scores_BKHW: Tensor, probability_BKHW: Tensor, label_BHW: Tensor, valid_BHW: Tensor, kept_BHW: Tensor
) -> Tensor:
    """Sum of the kept pixels' cross entropies; overwrites probability with the gradient."""
    needs_gradient = torch.is_grad_enabled() and scores_BKHW.requires_grad
    total = sum_in_place(widen(scores_BKHW), probability_BKHW, label_BHW, valid_BHW, kept_BHW, needs_gradient)
    return with_gradient(scores_BKHW, total, probability_BKHW)


def sum_in_place(
    scores_BKHW: Tensor,
    probability_BKHW: Tensor,
    label_BHW: Tensor,
    valid_BHW: Tensor,
    kept_BHW: Tensor,
    needs_gradient: bool,
    weighing: Weighing = PLAIN,
) -> Tensor:
    """Sum of the kept pixels' cross entropies; turns probability into its gradient by the scores if that is needed."""
    if weighing is not PLAIN:
        return _sum_weighed(scores_BKHW, probability_BKHW, label_BHW, valid_BHW, kept_BHW, needs_gradient, weighing)
    # by the largest score and its probability: the true class's may be too small to have a logarithm
    log_sum_BHW = scores_BKHW.amax(dim=1) - probability_BKHW.amax(dim=1).log()
    loss_BHW = log_sum_BHW - of_true_class(scores_BKHW, label_BHW, valid_BHW)
    # a product, not a fill: a score that is not a number must show, while an ignored pixel counts 0 whatever it holds
    total = (loss_BHW.masked_fill(~valid_BHW, 0.0) * kept_BHW).sum()
    if needs_gradient:
        weight_B1HW = kept_BHW[:, None].to(probability_BKHW.dtype)
        probability_BKHW *= weight_B1HW
        probability_BKHW.scatter_add_(1, label_BHW.masked_fill(~valid_BHW, 0)[:, None], -weight_B1HW)
    return total


def _sum_weighed(
    scores_BKHW: Tensor,
    probability_BKHW: Tensor,
    label_BHW: Tensor,
    valid_BHW: Tensor,
    kept_BHW: Tensor,
    needs_gradient: bool,
    weighing: Weighing,
) -> Tensor:
    """As sum_in_place, where classes have weights or share the target."""
    K = scores_BKHW.shape[1]
    weights_K = scores_BKHW.new_ones(K) if weighing.weights_K is None else weighing.weights_K.to(scores_BKHW.dtype)
    share_K, true_BHW = weights_K * (weighing.smoothing / K), weights_K[label_BHW.masked_fill(~valid_BHW, 0)]
    true_BHW = true_BHW * (1 - weighing.smoothing)
    log_sum_BHW = scores_BKHW.amax(dim=1) - probability_BKHW.amax(dim=1).log()
    loss_BHW = true_BHW * (log_sum_BHW - of_true_class(scores_BKHW, label_BHW, valid_BHW))
    loss_BHW += torch.einsum("bkhw,k->bhw", log_sum_BHW[:, None] - scores_BKHW, share_K)
    total = (loss_BHW.masked_fill(~valid_BHW, 0.0) * kept_BHW).sum()
    if needs_gradient:
        kept_B1HW = kept_BHW[:, None].to(scores_BKHW.dtype)
        probability_BKHW *= (true_BHW[:, None] + share_K.sum()) * kept_B1HW
        probability_BKHW -= share_K[:, None, None] * kept_B1HW
        label_B1HW = label_BHW.masked_fill(~valid_BHW, 0)[:, None]
        probability_BKHW.scatter_add_(1, label_B1HW, -true_BHW[:, None] * kept_B1HW)
    return total


def with_gradient(scores: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
    """The value as a function of the scores, its gradient known already; good for one backward pass."""
    result: Tensor = _KnownGradient.apply(scores, value, gradient)  # type: ignore[no-untyped-call]
    return result


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient was computed along with it; the backward pass reuses the gradient's memory."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of this loss was used already: compute the loss again")
        return gradient.mul_(factor), None, None
