"""What stands between a model's large matrix products, made few and large: by itself it costs a step more than reading
the weights.

Norms and gates are compiled, the three projections of attention become one product, and rotary embeddings turn what
lies together in memory. Compiled code keeps the widths as numbers, only batch and length open: with all of it open the
rotary embeddings of 64 prompts took ten times as long. On a Qwen3-4B's shape (one H200, one row) a step took 8.7 ms
before and is bound by 2 ms of reading weights.
"""

import sys
from functools import lru_cache

PARTS = ("RMSNorm", "MLP")  # ends of class names; every family of ours has both
ROTARY = "apply_rotary_pos_emb"


def fuse(model):
    """Change a model in place; it computes the same as before, up to rounding."""
    import torch

    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for module in list(model.modules()):
        if type(module).__name__.endswith(PARTS):
            module.compile()
        if all(plain_linear(getattr(module, name, None)) for name in ("q_proj", "k_proj", "v_proj")):
            join(module)
        quicken_rotary(sys.modules[type(module).__module__])


def plain_linear(module):
    import torch

    return type(module) is torch.nn.Linear and module.bias is None


def join(attention):
    """One product for queries, keys and values; the model still asks for each, queries first."""
    Joined, Other = projections()
    joined = Joined([attention.q_proj, attention.k_proj, attention.v_proj])
    attention.q_proj = joined
    attention.k_proj = Other(joined, "second")
    attention.v_proj = Other(joined, "third")


@lru_cache
def projections():
    """The classes of a joined projection and of what stands in for the others; made here, for importing this file must
    not import torch.
    """
    from torch import cat, nn

    class Joined(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.weight = nn.Parameter(cat([part.weight for part in parts]), requires_grad=False)
            self.widths = [part.out_features for part in parts]

        def forward(self, hidden):
            first, self.second, self.third = nn.functional.linear(hidden, self.weight).split(self.widths, -1)
            return first

    class Other(nn.Module):
        def __init__(self, joined, name):
            super().__init__()
            self.of = [joined]  # in a list, or its weights would count twice
            self.name = name

        def forward(self, hidden):
            # Let go of it: of a long batch every layer's would fill the memory.
            found = getattr(self.of[0], self.name)
            setattr(self.of[0], self.name, None)
            return found

    return Joined, Other


def quicken_rotary(home):
    """Replace a model file's rotary function where the quicker one says the same."""
    import torch

    plain = getattr(home, ROTARY, None)
    if plain is None or hasattr(plain, "plain"):
        return
    drawn = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 3, 16, generator=drawn) for heads in (4, 2))
    cos, sin = (torch.randn(2, 3, 16, generator=drawn) for _ in range(2))
    if all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(plain(query, key, cos, sin), both_turned(query, key, cos, sin), strict=True)
    ):
        quick = torch.compile(both_turned)

        def rotary(query, key, cos, sin):
            return quick(query, key, cos, sin)

        rotary.plain = plain
        setattr(home, ROTARY, rotary)


def both_turned(query, key, cos, sin):
    return turned(query, cos, sin), turned(key, cos, sin)


def turned(states, cos, sin):
    """Rotary embedding of (row, head, place, number), worked on as it lies in memory: place before head."""
    import torch

    lying = states.transpose(1, 2)
    cos = cos.unsqueeze(2)
    sin = sin.unsqueeze(2)
    width = cos.shape[-1]
    part = lying[..., :width]
    rest = lying[..., width:]
    half = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], -1)
    done = part * cos + half * sin
    return (torch.cat([done, rest], -1) if rest.shape[-1] else done).transpose(1, 2)


class Rope:
    """Rotary embeddings whose frequencies follow the longest prompt ask the device for it at every pass, which no graph
    can record.

    While everything is shorter than the length they were made for, their frequencies are fixed, and declared so.
    """

    def __init__(self, model):
        text = model.config.get_text_config()
        self.following = {
            module: module.rope_type
            for module in model.modules()
            if getattr(module, "rope_type", "").startswith(("longrope", "dynamic"))
        }
        parameters = getattr(text, "rope_parameters", None) or {}
        made_for = parameters.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        self.longest = (made_for or text.max_position_embeddings) if self.following else float("inf")
        # A graph's mask shows a token everything before it.
        self.longest = min(self.longest, getattr(text, "sliding_window", None) or float("inf"))

    def fits(self, n_tokens):
        """Whether texts of so many tokens leave the frequencies alone; from now on they are fixed if so."""
        fixed = n_tokens <= self.longest
        for module, kind in self.following.items():
            module.rope_type = "default" if fixed else kind
            if fixed:
                module.inv_freq = module.original_inv_freq
        return fixed
