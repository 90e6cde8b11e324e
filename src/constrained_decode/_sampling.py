"""How a token is drawn, alike on every engine that draws for itself."""

HALVINGS = (
    20  # of the interval in which the least share that stays lies: its end is a millionth of the largest share wide
)
LARGEST = 1e20  # that a logit may be; over the least temperature it is still a number in float32
LEAST_TEMPERATURE = 1e-6  # to draw at; below it only the likeliest token is left, and a logit over it overflows


def finite(logits):
    """The logits in float32, each a number, with what is none last: where a model gives all that may be written no
    chance at all, a draw among them would take what may not.
    """
    return logits.float().nan_to_num(nan=-LARGEST).clamp_(-LARGEST, LARGEST)


def drawn(logits, temperature, top_p, noise=None):
    """A token for each place: the likeliest at temperature 0, else drawn as `generate` draws. It neither sorts nor
    waits for the host.

    noise: numbers of `noise_for`, where they cannot be drawn here.
    """

    if temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    shares = logits.float().div(temperature).softmax(-1)
    if top_p < 1:
        shares = shares.where(shares >= least_kept(shares, top_p), 0.0)
    # The largest of shares over exponential noise is a draw by shares.
    return shares.div(noise_for(shares) if noise is None else noise).argmax(-1)


def noise_for(logits):
    import torch

    return torch.empty_like(logits, dtype=torch.float32).exponential_().clamp_(min=1e-20)


def least_kept(shares, top_p):
    """The largest bound above which the shares still come to top_p: those above it are the fewest that do."""
    import torch

    low = torch.zeros_like(shares[..., :1])
    high = shares.amax(-1, keepdim=True)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        suffices = shares.where(shares >= middle, 0.0).sum(-1, keepdim=True) >= top_p
        low = middle.where(suffices, low)
        high = high.where(suffices, middle)
    return low
