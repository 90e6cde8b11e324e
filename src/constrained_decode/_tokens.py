"""A tokenizer's vocabulary laid over an automaton: where each token leads from each state, and how few tokens still
finish the answer.

Tokens that lead alike from everywhere share a class, so the tables hold some thousand columns instead of a vocabulary.
"""

import json
from dataclasses import dataclass

from common import UserError
from constrained_decode._automaton import LONGEST_TOKEN

FAR = 30_000  # tokens: the end cannot be reached
WRAPPERS = ("<tool_call>", "</tool_call>")  # of the project's own answers, which some tokenizers have as one token
BYTE_TOKEN = "<0x"  # how vocabularies with byte fallback name their single bytes


@dataclass
class Tables:
    """Arrays of numpy: one row a state, one column a class of tokens. State 0 is nowhere, the last one is the end;
    class 0 is never written.
    """

    class_of: object  # of each token id
    next: object  # (state, class) -> the state behind such a token, 0 where it may not be written
    added: object  # (state, class) -> characters that it adds to the string it stands in, or closes
    leaves: object  # (state, class) -> whether it closes the string that the state stands in
    # of each state: tokens that finish the answer, the end token among them, whichever value an open enum takes
    need: object
    fewest: object  # of each state: characters that its string must have
    most: object  # of each state: characters that its string may have
    inside: object  # of each state: the number of the string that it stands in, 0 outside

    @property
    def done(self):
        return len(self.need) - 1

    def shortest(self, state):
        """The most tokens that a shortest answer from here may take."""
        return int(self.need[state] + self.fewest[state])


def token_bytes(tokenizer, n_tokens):
    """What each token id writes, as bytes; None for tokens that must never be written."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {part["type"] for part in [decoder, *decoder.get("decoders", ())] if "type" in part}
    if "ByteLevel" in kinds:
        read = byte_level
    elif "ByteFallback" in kinds or "Metaspace" in kinds:
        read = sentence_piece
    else:
        raise UserError(
            f"{tokenizer.name_or_path}: how this tokenizer writes bytes is unknown (decoder "
            f"{sorted(kinds) or 'none'}); "
            "byte-level and sentencepiece-like tokenizers can be constrained"
        )
    found = [None] * n_tokens
    for token, id in tokenizer.get_vocab().items():
        if id < n_tokens:
            found[id] = read(token)
    for id, token in tokenizer.added_tokens_decoder.items():
        # What steers the model is never text; a fixed text of the project's own tokenizer is.
        steers = token.special or token.content[:1] in "<[" and token.content not in WRAPPERS
        found[id] = None if steers else token.content.encode()
    for id in tokenizer.all_special_ids:
        found[id] = None
    return found


def byte_level(token):
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return None


def letters_of_bytes():
    """GPT-2's printable letter for every byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTE_OF = letters_of_bytes()


def sentence_piece(token):
    if token.startswith(BYTE_TOKEN) and token.endswith(">") and len(token) == 6:
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def lay_over(automaton, texts, end_id):
    """The tables of an automaton for a vocabulary of byte strings (None: never written) and the token that ends an
    answer.
    """
    import numpy as np

    n_states = len(automaton.edges) + 1
    walk = Walk(automaton, texts)
    reached = walk.all_from(automaton.start)
    class_of = classes(reached, walk.ids, len(texts))
    n_classes = int(class_of.max()) + 2
    class_of[end_id] = end = n_classes - 1
    tables = Tables(
        class_of,
        *(np.zeros((n_states, n_classes), kind) for kind in (np.int16, np.uint8, bool)),
        np.full(n_states, FAR),
        *(np.array([bound[at] for bound in walk.bounds] + [(0, FAR)[at]]) for at in (0, 1)),
        np.array([*automaton.string, 0]),
    )
    for state, found in reached.items():
        columns = class_of[walk.ids[found.rows]]
        tables.next[state, columns] = found.target
        tables.added[state, columns] = found.added
        tables.leaves[state, columns] = found.leaves
    for state in [tables.done, *np.flatnonzero(automaton.final)]:
        tables.next[state, end] = tables.done
    tables.need[tables.done] = 0
    count_needs(tables, automaton, reached, walk)
    # What cannot be finished must not be begun.
    tables.next[tables.need[tables.next] >= FAR] = 0
    return tables


@dataclass
class Reach:
    """What the tokens that may follow one state do; parallel arrays."""

    rows: object  # places among the usable tokens
    target: object
    added: object
    leaves: object


class Walk:
    """All tokens sent through the automaton at once."""

    def __init__(self, automaton, texts):
        import numpy as np

        self.automaton = automaton
        self.texts = texts
        lengths = np.array([len(text) if text else 0 for text in texts])
        self.ids = np.flatnonzero((lengths > 0) & (lengths <= LONGEST_TOKEN))
        self.lengths = lengths[self.ids]
        self.letters = np.zeros((len(self.ids), LONGEST_TOKEN), np.uint8)
        for row, id in enumerate(self.ids):
            self.letters[row, : lengths[id]] = list(texts[id])
        n = len(automaton.edges)
        self.step = np.zeros((n, 256), np.int16)
        self.begins = np.zeros((n, 256), bool)
        for state, edges in enumerate(automaton.edges):
            for byte, target in edges.items():
                self.step[state, byte] = target
                self.begins[state, byte] = automaton.begins_character(state, byte)
        self.inside = np.array(automaton.string)
        self.bounds = [automaton.bounds[inside] if inside else (0, FAR) for inside in automaton.string]
        self.fewest = np.array([fewest for fewest, _ in self.bounds])
        self.of_first = {byte: np.flatnonzero(self.letters[:, 0] == byte) for byte in range(256)}

    def all_from(self, start):
        """{state: Reach} of every state that tokens lead to."""
        import numpy as np

        reached = {}
        waiting = [start]
        while waiting:
            state = waiting.pop()
            if state not in reached:
                reached[state] = self.through(state)
                waiting += [int(target) for target in np.unique(reached[state].target)]
        return reached

    def through(self, start):
        """Which tokens lead on from a state, where to, and what they do to its string.

        A token may end inside a string, or close one; one that writes into two strings is left out, so that one counter
        suffices.
        """
        import numpy as np

        rows = np.concatenate([self.of_first[byte] for byte in self.automaton.edges[start]] or [np.zeros(0, int)])
        state = np.full(len(rows), start)
        added = np.zeros(len(rows), int)
        left = np.zeros(len(rows), bool)
        wrong = np.zeros(len(rows), bool)
        is_inside = self.inside[start] > 0
        for at in range(int(self.lengths[rows].max(initial=0))):
            active = (at < self.lengths[rows]) & (state > 0)
            byte = self.letters[rows, at]
            begins = self.begins[state, byte] & active
            target = self.step[state, byte]
            closes = active & (self.inside[state] > 0) & (self.inside[target] != self.inside[state])
            wrong |= begins & left
            added += begins & ~left
            if not is_inside:
                wrong |= closes & ((added > 0) | (self.fewest[state] > 0))
            left |= closes
            state = np.where(active, target, state)
        good = (state > 0) & ~wrong
        return Reach(rows[good], state[good], added[good], left[good] & is_inside)


def classes(reached, ids, n_tokens):
    """A class for each token id: tokens of one class do the same in every state."""
    import numpy as np

    class_of = np.zeros(len(ids), np.int64)
    n_classes = 1
    for found in reached.values():
        # What a token does here, beside the class that it had so far, is its new class.
        does = (class_of[found.rows] << 32) + (found.target.astype(np.int64) << 16) + (found.added << 1) + found.leaves
        marks, numbers = np.unique(does, return_inverse=True)
        class_of[found.rows] = n_classes + numbers
        n_classes += len(marks)
    _, class_of = np.unique(np.append(class_of, 0), return_inverse=True)
    whole = np.zeros(n_tokens, np.int32)
    whole[ids] = class_of[:-1]
    return whole


def count_needs(tables, automaton, reached, walk):
    """The tokens from each state to the end. States were made from the end, so those behind a token are counted before
    it.
    """
    for state in sorted(reached):
        found = reached[state]
        inside = automaton.string[state]
        if inside and state == automaton.content[inside] and not ((found.added == 1) & (found.target == state)).any():
            raise UserError(
                "no token of this vocabulary writes a single character, so a string cannot be kept within its bounds"
            )
        # What a string still needs is counted beside the state: here it is closed at once, and from amid a character
        # the character is ended first.
        plain = (found.added == 0) & ~(found.leaves & (inside > 0 and state != automaton.content[inside]))
        costs = dict(
            zip(
                found.rows[plain].tolist(),
                (
                    1
                    + tables.need[found.target[plain]]
                    + tables.fewest[found.target[plain]]
                    * ((tables.inside[found.target[plain]] != tables.inside[state]) | found.leaves[plain])
                ).tolist(),
                strict=True,
            )
        )
        if automaton.final[state]:
            tables.need[state] = 1
        elif automaton.choices[state]:
            # Whichever value the model takes, the rest must fit behind it.
            tables.need[state] = max(
                min((cost for row, cost in costs.items() if fits(walk.texts[walk.ids[row]], word)), default=FAR)
                for word in automaton.choices[state]
            )
        else:
            tables.need[state] = min(costs.values(), default=FAR)
        tables.need[state] = min(tables.need[state], FAR)


def fits(text, word):
    """Whether a token writes this word's beginning, or the word and more."""
    return word.startswith(text) or text.startswith(word)
