"""Muon for the small matrices of one model: momentum made orthogonal, all matrices of one shape at once.

torch.optim.Muon does the same one matrix after another: on 98 matrices of 192 x 512 at most that doubled the time of a
step (LOG.md). A test holds the two to the same weights.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Decoupled weight decay, Nesterov momentum, and steps of AdamW's usual size, so that one rate serves both
    optimizers.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for weights in group["params"]:
                by_shape.setdefault(weights.shape, []).append(weights)
            for shape, matrices in by_shape.items():
                self._step(matrices, max(shape), group)

    def _step(self, matrices, longer_side, group):
        state = self.state[matrices[0]]
        gradient = torch.stack([weights.grad for weights in matrices])
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(state["momentum"], group["momentum"]))
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(
            matrices, list(update.to(matrices[0].dtype).unbind()), alpha=-group["lr"] * 0.2 * longer_side**0.5
        )


def orthogonal(matrices):
    """The nearest orthogonal matrix of each, roughly, by Newton-Schulz rounds in bfloat16."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
