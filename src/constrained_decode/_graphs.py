"""Answers on a GPU without a word to the host from token to token: the cache, the guarantee's rows and what is written
stay on the device, and one step of all of it is a CUDA graph.

The host replays steps and asks every few of them whether all rows have ended. Prompts are padded on their right, so
that reading them needs no mask; what is written stands behind the longest prompt, and a mask hides the places that a
row did not write.
"""

from dataclasses import dataclass

from constrained_decode._guarantee import Rows
from constrained_decode._reading import padded, read
from constrained_decode._sampling import drawn, noise_for

NAME = "grouped"
ASKED_EVERY = 4  # steps; a question waits for the device, and steps behind the last answer's end are wasted
WIDTHS = 128  # prompts are as wide as a multiple of this, so that few shapes serve them all
PLACES = 8  # a cache's length is a multiple of this, as attention's kernels want it
KEPT_SHARE = 0.2  # of the device's memory may hold caches of other shapes; those used longest ago go first
READ_AT_ONCE = 4  # rows whose prompts are read by a graph; of more the arithmetic takes longer than its launches


def grouped_attention():
    """Make `attn_implementation="grouped"` known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask_where_needed)
    return NAME


def mask_where_needed(*, q_length, kv_length, attention_mask=None, local_size=None, allow_is_causal_skip=True, **more):
    """None where a prompt looks at itself alone: also while a graph is recorded, where transformers before 5.19 makes a
    mask.
    """
    from transformers.masking_utils import sdpa_mask

    if (
        allow_is_causal_skip
        and attention_mask is None
        and q_length == kv_length
        and (local_size is None or kv_length < local_size)
    ):
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        **more,
    )


def attend(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention that copies no keys or values for the queries that share them; a mask may hold a row for each of these
    already.
    """
    from torch.nn.functional import scaled_dot_product_attention

    n_rows, n_heads, n_queries, width = query.shape
    if attention_mask is None:
        order = {"is_causal": True} if n_queries > 1 else {}
        seen = scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **order)
        return seen.transpose(1, 2), None
    n_shared = n_heads // key.shape[1]
    if attention_mask.shape[2] == n_queries:
        attention_mask = attention_mask.expand(n_rows, 1, n_queries, key.shape[2]).repeat(1, 1, n_shared, 1)
    together = query.reshape(n_rows, key.shape[1], n_shared * n_queries, width)
    seen = scaled_dot_product_attention(together, key, value, attn_mask=attention_mask, scale=scaling)
    return seen.reshape(n_rows, n_heads, n_queries, width).transpose(1, 2), None


class Kept:
    """All layers' keys and values in fixed places; to transformers a cache."""

    is_compileable = False

    def __init__(self, config, n_rows, n_places, like):
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = config.num_hidden_layers, n_rows, config.num_key_value_heads, n_places, width
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.places = None

    @property
    def bytes(self):
        return self.keys.nbytes + self.values.nbytes

    def update(self, keys, values, layer, *_, **__):
        """While `places` is None a prompt is read, which attends to itself alone."""
        kept_keys = self.keys[layer]
        kept_values = self.values[layer]
        if self.places is None:
            kept_keys[:, :, : keys.shape[2]] = keys
            kept_values[:, :, : keys.shape[2]] = values
            return keys, values
        return kept_keys.index_copy_(2, self.places, keys), kept_values.index_copy_(2, self.places, values)

    def get_seq_length(self, layer=0):
        return 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, n_queries, layer=0):
        return n_queries, 0


@dataclass
class Settled:
    """What each verdict settles, as tensors: its row of `ids` up to its `n`, and the automaton's `state` behind it."""

    ids: object
    n: object
    state: object


class Shape:
    """The buffers of n_rows answers behind prompts in n_places places, and the graphs that work on them."""

    def __init__(self, model, guarantee, gen, opening, settled, end_id, pick, n_rows, width, n_places):
        import torch

        self.model = model
        self.guarantee = guarantee
        self.gen = gen
        self.settled = settled
        self.end_id = end_id
        self.pick = pick
        self.n_rows = n_rows
        self.n_places = n_places
        self.device = model.device
        self.graphs = {}
        self.n_opening = len(opening)
        self.cache = Kept(model.config.get_text_config(), n_rows, n_places, model.get_output_embeddings().weight)
        zeros = self._zeros
        self.opening = torch.tensor(opening, device=self.device)
        self.ids = zeros(n_rows, width)
        self.prompt_length = zeros(n_rows) + len(opening) + 1
        self.n_read = width
        self.logits = None
        self.seen = zeros(n_rows, n_places).bool()  # places that a row may look at
        self.rows = Rows(zeros(n_rows), zeros(n_rows), zeros(n_rows))
        self.label, self.length, self.at, self.token, self.n_overruled, self.n_late = (zeros(n_rows) for _ in range(6))
        self.written = zeros(n_rows, guarantee.max_new_tokens)
        self.place = zeros(1)  # of the cache, where the next token goes
        if self.device.type == "cuda":
            # A capture draws numbers; what is drawn later must not depend on it.
            with torch.random.fork_rng(devices=[self.device]):
                self._capture(torch)

    def _zeros(self, *shape):
        import torch

        return torch.zeros(*shape, dtype=torch.long, device=self.device)

    def _capture(self, torch):
        """Record the steps on whatever the buffers hold; `begin` fills them anew."""
        self.seen[:, 0] = True
        for step in ([self._read] if self.n_rows <= READ_AT_ONCE else []) + [self._settle, self._write_one]:
            # Warmed up and recorded on one stream.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    step()
                    self.place.zero_()
                    self.at.zero_()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=next(iter(self.graphs.values())).pool() if self.graphs else None, stream=aside
            ):
                step()
            self.graphs[step.__name__] = graph

    def run(self, step):
        if step.__name__ in self.graphs:
            self.graphs[step.__name__].replay()
        else:
            step()

    def begin(self, prompts):
        """Read prompts that end with the answer's opening, and choose the verdicts; returns the logits where these are
        decided.
        """
        import torch

        ids, lengths = padded(
            prompts, self.device, self.n_rows, self.ids.shape[1] if self._read.__name__ in self.graphs else 0
        )
        self.ids[:, : ids.shape[1]] = ids
        self.prompt_length.copy_(lengths)
        self.n_read = ids.shape[1]
        self.run(self._read)
        self.length.copy_(lengths)
        self.place.fill_(self.n_read)
        self.seen.copy_(torch.arange(self.n_places, device=self.device) < lengths[:, None])
        self.n_overruled.copy_((self.logits[:, :-1].argmax(-1) != self.opening).sum(-1))
        self.n_late.zero_()
        self.label.copy_(drawn(self.logits[:, -1, self.settled.ids[:, 0]], self.gen.temperature, self.gen.top_p))
        self.written[:, : self.n_opening] = self.opening
        self.written[:, self.n_opening : self.n_opening + self.settled.ids.shape[1]] = self.settled.ids[self.label]
        self.at.copy_(self.n_opening + self.settled.n[self.label])
        self.rows.state.copy_(self.settled.state[self.label])
        self.rows.state[len(prompts) :] = self.guarantee.done
        self.rows.counter.zero_()
        self.rows.left.copy_(self.guarantee.max_new_tokens - self.at)
        return self.logits[: len(prompts), -1]

    def _read(self):
        self.cache.places = None
        self.logits = read(self.model, self.ids[:, : self.n_read], self.prompt_length, self.n_opening + 1, self.cache)

    def _settle(self):
        """Read what each row's verdict settled, and write its first free token."""
        import torch

        ids = self.settled.ids[self.label]
        n = self.settled.n[self.label]
        width = ids.shape[1]
        ahead = torch.arange(width, device=self.device)
        places = self.place + ahead
        # A token looks at the prompt and at what stands before it.
        own = torch.zeros(width, self.n_places, dtype=torch.bool, device=self.device).index_copy_(
            1, places, (ahead <= ahead[:, None])
        )
        logits = self._forward(ids, self.seen[:, None, None] | own[None, None], self.length[:, None] + ahead, places)
        self.seen.index_copy_(1, places, ahead < n[:, None])
        self.length += n
        self._choose(logits.gather(1, (n - 1)[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0])
        self.place += width

    def _write_one(self):
        """Read the last token and write the next."""
        self.seen.index_fill_(1, self.place, True)
        logits = self._forward(self.token[:, None], self.seen[:, None, None], self.length[:, None], self.place)
        self.length += 1
        self._choose(logits[:, 0])
        self.place += 1

    def _forward(self, ids, seen, positions, places):
        """seen: (row, 1, token, place). The mask is made as attention adds it, once for all layers."""
        import torch

        self.cache.places = places
        like = self.cache.keys
        n_shared = self.model.config.get_text_config().num_attention_heads // like.shape[2]
        mask = (
            torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            .masked_fill_(~seen, float("-inf"))
            .repeat(1, 1, n_shared, 1)
        )
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).logits

    def _choose(self, logits):
        """The next token of each row, under the guarantee; rows that have ended write their end token over and over at
        one place.
        """
        going = ~self.guarantee.is_done(self.rows)
        noise = noise_for(logits) if self.gen.temperature else None
        token, broke, late = self.pick(logits, self.rows.state, self.rows.counter, self.rows.left, noise)
        self.token.copy_(token.where(going, self.end_id))
        at = self.at.clamp(max=self.written.shape[1] - 1)
        self.written.scatter_(
            1, at[:, None], self.token.where(going, self.written.gather(1, at[:, None])[:, 0])[:, None]
        )
        self.n_overruled += broke & going
        self.n_late += late & going
        self.at += going
        behind = self.guarantee.advanced(self.rows, self.token)
        for name in ("state", "counter", "left"):
            getattr(self.rows, name).copy_(getattr(behind, name))

    def finish(self):
        """Write until every row has ended."""
        self.run(self._settle)
        for n_steps in range(self.guarantee.max_new_tokens):
            if n_steps % ASKED_EVERY == 0 and bool(self.guarantee.is_done(self.rows).all()):
                break
            self.run(self._write_one)


class Shapes:
    """Shapes of buffers by need, the latest kept."""

    def __init__(self, model, guarantee, gen, opening, settled, end_id):
        import torch

        def pick(logits, state, counter, left, noise):
            allowed, broke, late = guarantee.masked(logits.float(), Rows(state, counter, left))
            return drawn(allowed, gen.temperature, gen.top_p, noise), broke, late

        ids, states = zip(*settled, strict=True)
        self.n_behind = max(map(len, ids)) + guarantee.max_new_tokens
        self.least_width = 0
        tensors = [[one + one[-1:] * (max(map(len, ids)) - len(one)) for one in ids], [len(one) for one in ids], states]
        settled = Settled(*(torch.tensor(values, device=model.device) for values in tensors))
        cuda = model.device.type == "cuda"
        self.most_bytes = (
            KEPT_SHARE * torch.cuda.get_device_properties(model.device).total_memory if cuda else float("inf")
        )
        quick = torch.compile(pick) if cuda else pick
        self.made_of = (model, guarantee, gen, opening, settled, end_id, quick)
        self.kept = {}

    def of(self, prompts):
        """Buffers that hold these prompts and their answers."""
        n_rows = 1 << (len(prompts) - 1).bit_length()
        width = self.width_of(prompts)
        if (n_rows, width) not in self.kept:
            # Room is made first: the new shape may need it.
            while self.kept and sum(shape.cache.bytes for shape in self.kept.values()) > self.most_bytes:
                self.kept.pop(next(iter(self.kept)))
            self.kept[n_rows, width] = Shape(
                *self.made_of, n_rows, width, -(-(width + self.n_behind) // PLACES) * PLACES
            )
        # The one used last is the last to go.
        self.kept[n_rows, width] = self.kept.pop((n_rows, width))
        return self.kept[n_rows, width]

    def width_of(self, prompts):
        return max(self.least_width, -(-max(map(len, prompts)) // WIDTHS) * WIDTHS)

    def prepare(self, prompts, most_rows):
        """Make the shapes that batches of these prompts will need, so that none is made while answers are timed."""
        self.least_width = self.width_of(prompts)
        n_rows = 1
        while n_rows < 2 * most_rows:
            self.of(prompts[:1] * min(n_rows, most_rows))
            n_rows *= 2
