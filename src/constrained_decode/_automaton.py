"""An answer's JSON Schema as an automaton over bytes: every path through it is an answer in the project's one
serialisation.

Keys stand in the schema's order, nothing is written between tokens of JSON, and a string holds what `common.to_json`
would write: no control characters, no raw `<` or `[` that a control token could be spelled with. Characters are counted
where they begin, so that a counter beside the state keeps a string within its bounds.
"""

import math
import re
from dataclasses import dataclass, field

import jsonschema

from common import UserError, to_json

ANNOTATIONS = frozenset(
    """$schema $id $anchor $comment $defs definitions title description default examples deprecated
    readOnly writeOnly""".split()
)
# A keyword that speaks about another kind of value says nothing, so all are let through; `number_bounds` refuses what
# only whole numbers keep.
HONOURED = frozenset(
    """type enum const properties required additionalProperties items minItems maxItems minLength maxLength
                     minimum maximum exclusiveMinimum exclusiveMaximum""".split()
)
UNFIT_IN_NAME = re.compile('["<>\ud800-\udfff]')  # of a tool: what its wrapper or UTF-8 cannot hold
MOST_DIGITS = 15  # of a number before its point: what a float holds exactly
MOST_DECIMALS = 6
MOST_STATES = 20_000
UNBOUNDED = 30_000  # characters; the token budget ends such a string earlier
DEEPEST = 32
DEEPEST_JSON = 96  # levels of the schema's own JSON; its checker recurses, and Python ends it at some 140
LONGEST_TOKEN = 48  # bytes of a token that may be written; longer ones only spell what shorter ones can
CONTENT = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\<[')
ESCAPES = (b'"', b"\\", b"u003c", b"u005b")
# Lead bytes and the range of the byte behind them: whole characters only, no overlong forms, no surrogates, no C1
# controls.
LEADS = [
    ((0xC2,), (0xA0, 0xBF), 0),
    (range(0xC3, 0xE0), (0x80, 0xBF), 0),
    ((0xE0,), (0xA0, 0xBF), 1),
    (range(0xE1, 0xED), (0x80, 0xBF), 1),
    ((0xED,), (0x80, 0x9F), 1),
    (range(0xEE, 0xF0), (0x80, 0xBF), 1),
    ((0xF0,), (0x90, 0xBF), 2),
    (range(0xF1, 0xF4), (0x80, 0xBF), 2),
    ((0xF4,), (0x80, 0x8F), 2),
]


@dataclass
class Automaton:
    """State 0 is nowhere: what leads there is no answer."""

    edges: list = field(default_factory=lambda: [{}])  # of each state: byte -> state
    final: list = field(default_factory=lambda: [False])
    string: list = field(default_factory=lambda: [0])  # the number of the string that a state stands in; 0 outside
    # the values that are still open, where an enum is being decided
    choices: list = field(default_factory=lambda: [()])
    bounds: list = field(default_factory=lambda: [(0, UNBOUNDED)])  # (fewest, most) characters of each string
    content: list = field(default_factory=lambda: [0])  # the state of each string in which a character may begin
    start: int = 0

    def add(self, edges=(), final=False, string=0, choices=()):
        if len(self.edges) > MOST_STATES:
            raise UserError(
                f"the schema allows too many forms (over {MOST_STATES:,} states); lower its maxItems or its nesting"
            )
        self.edges.append(dict(edges))
        self.final.append(final)
        self.string.append(string)
        self.choices.append(choices)
        return len(self.edges) - 1

    def begins_character(self, state, byte):
        """Whether this byte, read here, begins a character of the string that the state stands in."""
        inside = self.string[state]
        return bool(inside) and state == self.content[inside] and byte != ord('"')

    def step(self, state, counter, byte):
        """(the state behind one more byte, 0 where it leads nowhere; the characters of its string so far)."""
        inside = self.string[state]
        target = self.edges[state].get(byte, 0)
        return target, counter + self.begins_character(state, byte) if inside and self.string[target] == inside else 0


def compile_schema(schema):
    """The automaton of a schema; a schema that it cannot honour is refused with the path of the keyword."""
    built = Builder(checked(schema))
    built.automaton.start = built.value(schema, built.automaton.add(final=True), "", 0)
    return built.automaton


def compile_calls(schema):
    """The automaton of <tool_call name="NAME">{arguments}</tool_call>, as tasks/answers.py writes a call that fits the
    schema.
    """
    built = Builder(checked(schema))
    built.automaton.start = built.calls()
    return built.automaton


def checked(schema):
    check_json(schema)
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"not a JSON Schema: {error.message} at /{'/'.join(map(str, error.absolute_path))}") from error
    return schema


def check_json(schema):
    """Refuse numbers that JSON does not have, and nesting that no checker survives."""
    waiting = [(schema, ())]
    for value, path in waiting:
        if len(path) > DEEPEST_JSON:
            raise UserError(f"/{'/'.join(path[:6])}/...: the schema is nested deeper than {DEEPEST_JSON}; flatten it")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"/{'/'.join(path)}: {to_json(value)} is not a number in JSON; write a finite one")
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(one, (*path, str(name))) for name, one in inner]


def tools(schema):
    """[(names, schema of the arguments)] of a schema of calls; None where some tool's name or arguments are free."""
    root = Builder(checked(schema))
    found = []
    for one in schema.get("anyOf", [schema]) if isinstance(schema, dict) else [True]:
        one = {} if isinstance(one, bool) else one
        keys = object_in(root.referred(one["$ref"], "") if "$ref" in one else one, "properties")
        name = object_in(keys, "name")
        arguments = object_in(keys, "arguments")
        names = name.get("enum", [name["const"]] if "const" in name else [])
        if not names or not ({"$ref", "anyOf", "properties"} & arguments.keys() or is_empty_object(arguments)):
            return None
        found.append((names, arguments))
    return found


def object_in(schema, name):
    """A part of a schema, which may also be a mere true or false."""
    found = schema.get(name) if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def is_empty_object(schema):
    return schema.get("type") == "object" and schema.get("additionalProperties") is False


class Builder:
    """Built from the end: each part knows the state that follows it."""

    def __init__(self, root):
        self.root = root
        self.automaton = Automaton()
        self.unions = {}
        self.references = {}

    def value(self, schema, after, path, depth):
        """The state in which a value of this schema begins, that leads to `after`."""
        if depth > DEEPEST:
            raise UserError(
                f"{path or '/'}: nested deeper than {DEEPEST}, or a schema that refers to itself; it has no longest "
                "answer"
            )
        if not isinstance(schema, dict):
            raise UserError(
                f"{path or '/'}: {to_json(schema)} allows {'anything' if schema else 'nothing'}; name a type, an enum "
                "or a const"
            )
        if "$ref" in schema:
            self.only(schema, {"$ref"}, path)
            return self.value(self.referred(schema["$ref"], path), after, path, depth + 1)
        if "anyOf" in schema:
            self.only(schema, {"anyOf"}, path)
            return self.union(
                [self.value(one, after, f"{path}/anyOf/{at}", depth + 1) for at, one in enumerate(schema["anyOf"])],
                path,
            )
        if "enum" in schema or "const" in schema:
            return self.one_of(schema, after, path)
        self.only(schema, HONOURED, path)
        if "type" not in schema:
            raise UserError(f"{path or '/'}: no type, enum or const, so anything would fit; name one")
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        return self.union([self.of_kind(kind, schema, after, path, depth) for kind in kinds], path)

    def only(self, schema, allowed, path):
        """Refuse a keyword that says something which this automaton does not keep."""
        for keyword in schema:
            if keyword not in allowed and keyword not in ANNOTATIONS and keyword in KNOWN:
                raise UserError(
                    f"{path}/{keyword}: cannot be kept while decoding; remove it, or check it after decoding"
                )

    def referred(self, reference, path):
        found = self.root
        for part in reference.removeprefix("#").strip("/").split("/") if reference.startswith("#") else ("",):
            part = part.replace("~1", "/").replace("~0", "~")
            if part and (not isinstance(found, dict) or part not in found) or not reference.startswith("#"):
                raise UserError(f"{path}/$ref: {reference} is not in the schema")
            found = found[part] if part else found
        if reference not in self.references:
            # What only a reference leads to stands where no schema needs to, so nothing has checked it yet.
            self.references[reference] = checked(found)
        return self.references[reference]

    def of_kind(self, kind, schema, after, path, depth):
        if kind == "object":
            return self.object(schema, after, path, depth)
        if kind == "array":
            return self.array(schema, after, path, depth)
        if kind == "string":
            return self.text_value(schema, after, path)
        if kind == "integer":
            return self.union(self.integers(*integer_bounds(schema, path), lambda last: after), path)
        if kind == "number":
            return self.union(self.numbers(*number_bounds(schema, path), after), path)
        return self.union(
            [self.text(word, after) for word in ("true", "false")] if kind == "boolean" else [self.text("null", after)],
            path,
        )

    def one_of(self, schema, after, path):
        """A choice of whole values; those that the rest of the schema forbids are not among them."""
        keyword = "enum" if "enum" in schema else "const"
        check = jsonschema.Draft202012Validator(self.root).evolve(schema=schema)
        try:
            values = [value for value in schema.get("enum", [schema.get("const")]) if check.is_valid(value)]
        except Exception as error:
            # A reference to nothing or to itself, a pattern that is none: jsonschema lets each library's error through.
            raise UserError(
                f"{path}/{keyword}: whether the rest of the schema allows it cannot be checked "
                f"({type(error).__name__}); remove the other keywords"
            ) from error
        if not values:
            raise UserError(f"{path}/{keyword}: the rest of the schema allows none of these values")
        return self.trie(dict.fromkeys((to_json(value).encode() for value in values), after))

    def calls(self):
        """The state in which a call begins; whichever tool is taken, its arguments must still fit behind its name."""
        after = self.text("</tool_call>", self.automaton.add(final=True))
        behind = {}
        found = tools(self.root)
        if found is None:
            raise UserError("/: a call's schema must give each tool its names and its arguments")
        for at, (names, arguments) in enumerate(found):
            path = f"/anyOf/{at}" if "anyOf" in self.root else ""
            begun = self.value(arguments, after, f"{path}/properties/arguments", 1)
            for name in names:
                if not isinstance(name, str) or not name or UNFIT_IN_NAME.search(name):
                    raise UserError(f"{path}/properties/name: {to_json(name)} cannot be the name of a tool")
                word = f'{name}">'.encode()
                behind[word] = self.union([begun, behind.get(word, begun)], path)
        return self.text('<tool_call name="', self.trie(behind))

    def trie(self, after_of):
        """Words that share their beginnings, each with the state behind it; while more than one is open the state says
        which.
        """
        places = [(list(after_of), 0)]  # (the words that pass here, how many of their bytes stand before it)
        onward = []  # of each place: byte -> place
        for words, depth in places:
            passing = {}
            for word in words:
                if len(word) > depth:
                    passing.setdefault(word[depth], []).append(word)
            onward.append({byte: len(places) + at for at, byte in enumerate(passing)})
            places += [(some, depth + 1) for some in passing.values()]
        states = [0] * len(places)
        # From the ends to the beginning, as everything here is built.
        for at in reversed(range(len(places))):
            words, depth = places[at]
            found = [after_of[word] for word in words if len(word) == depth]
            if onward[at]:
                edges = {byte: states[place] for byte, place in onward[at].items()}
                found.append(self.automaton.add(edges, choices=open_choices(words, depth)))
            states[at] = self.union(found, "")
        return states[0]

    def text(self, text, after):
        """Exactly this text."""
        for byte in reversed(text.encode()):
            after = self.automaton.add({byte: after})
        return after

    def union(self, states, path):
        """One state from which all of these can begin."""
        wanted = tuple(sorted(set(states)))
        # What these lead to is united before them; recursion would end at common beginnings of some hundred bytes.
        waiting = [wanted]
        while waiting:
            some = waiting[-1]
            if len(some) == 1 or some in self.unions:
                waiting.pop()
                continue
            targets = self.targets(some, path)
            later = [one for one in targets.values() if len(one) > 1 and one not in self.unions]
            if later:
                waiting += later
            else:
                self.unions[some] = self.united(some, targets)
        return self.unions.get(wanted, wanted[0])

    def targets(self, states, path):
        """{byte: the states behind it} of states that are to become one."""
        if any(self.automaton.string[state] for state in states):
            raise UserError(
                f"{path or '/'}: a free string and another value begin alike here; the automaton cannot tell which one "
                "is being written"
            )
        found = {}
        for state in states:
            for byte, target in self.automaton.edges[state].items():
                found.setdefault(byte, set()).add(target)
        return {byte: tuple(sorted(behind)) for byte, behind in found.items()}

    def united(self, states, targets):
        a = self.automaton
        return a.add(
            {byte: self.unions.get(some, some[0]) for byte, some in targets.items()},
            any(a.final[state] for state in states),
            choices=tuple(dict.fromkeys(word for state in states for word in a.choices[state])),
        )

    def object(self, schema, after, path, depth):
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        for name in required:
            if name not in properties:
                raise UserError(
                    f"{path}/required: {name!r} is not among the properties, so its value could be anything"
                )
        end = self.text("}", after)
        # What may follow when something has been written already, and when nothing has: built from the last key to the
        # first.
        later = end
        first = end
        for name, inner in reversed(properties.items()):
            named = self.text(f"{to_json(name)}:", self.value(inner, later, f"{path}/properties/{name}", depth + 1))
            begin_later = self.text(",", named)
            begin_first = 0 if self.is_preceded(name, properties, required) else named
            if name in required:
                later = begin_later
                first = begin_first or first
            else:
                later = self.union([later, begin_later], path)
                first = self.union([first, begin_first], path) if begin_first else first
        return self.text("{", first)

    def is_preceded(self, name, properties, required):
        """Whether a required key always stands before this one."""
        return any(other in required for other in list(properties)[: list(properties).index(name)])

    def array(self, schema, after, path, depth):
        if "maxItems" not in schema:
            raise UserError(f"{path}: an array without maxItems has no longest answer; add maxItems")
        fewest = whole(schema, "minItems", 0)
        most = whole(schema, "maxItems", 0)
        if "items" not in schema and most:
            raise UserError(f"{path}: an array without items could hold anything; add items")
        if fewest > most:
            raise UserError(f"{path}/minItems: {schema['minItems']} is more than maxItems, {schema['maxItems']}")
        end = self.text("]", after)
        follow = first = end
        for count in range(most, 0, -1):
            first = self.value(schema["items"], follow, f"{path}/items", depth + 1)
            more = self.text(",", first)
            follow = more if count <= fewest else self.union([end, more], path)
        return self.text("[", first if fewest else self.union([end, first], path))

    def text_value(self, schema, after, path):
        """A free string between its bounds."""
        a = self.automaton
        fewest = whole(schema, "minLength", 0)
        most = min(whole(schema, "maxLength", UNBOUNDED), UNBOUNDED)
        if fewest > most:
            raise UserError(f"{path}/minLength: {schema['minLength']} is more than the {most} characters that fit")
        number = len(a.bounds)
        a.bounds.append((fewest, most))
        content = a.add(string=number)
        a.content.append(content)
        edges = dict.fromkeys(CONTENT, content) | {ord('"'): after, ord("\\"): self.escape(content, number)}
        for leads, (low, high), n_more in LEADS:
            then = content
            for _ in range(n_more):
                then = a.add(dict.fromkeys(range(0x80, 0xC0), then), string=number)
            second = a.add(dict.fromkeys(range(low, high + 1), then), string=number)
            edges |= dict.fromkeys(leads, second)
        a.edges[content] = edges
        return a.add({ord('"'): content})

    def escape(self, content, number):
        """The state behind a backslash."""
        first = self.trie(dict.fromkeys(ESCAPES, content))
        waiting = [first]
        for state in waiting:
            self.automaton.string[state] = number
            self.automaton.choices[state] = ()
            waiting += [
                target for target in self.automaton.edges[state].values() if target != content and target not in waiting
            ]
        return first

    def integers(self, low, high, then):
        """States in which the whole numbers from low to high begin; `then(whether it is high itself)` follows."""
        found = []
        if high >= 0:
            found += self.natural(max(low, 0), high, then)
        if low < 0:
            found.append(self.automaton.add({ord("-"): self.union(self.natural(max(1, -high), -low, then), "")}))
        return found

    def natural(self, low, high, then):
        """One state a number of digits."""
        found = []
        for n in range(len(str(low)), len(str(high)) + 1):
            first = max(low, 10 ** (n - 1) if n > 1 else 0)
            last = min(high, 10**n - 1)
            found.append(self.digits(str(first), str(last), last == high, then, {}))
        return found

    def digits(self, low, high, is_top, then, known):
        """All digit strings between two of the same length; is_top: `high` is the largest number of all."""
        if not low:
            return then(is_top)
        key = (low, high, is_top)
        if key not in known:
            edges = {}
            zeros = "0" * (len(low) - 1)
            nines = "9" * (len(low) - 1)
            for digit in range(int(low[0]), int(high[0]) + 1):
                at_low = digit == int(low[0])
                at_high = digit == int(high[0])
                edges[ord(str(digit))] = self.digits(
                    low[1:] if at_low else zeros, high[1:] if at_high else nines, is_top and at_high, then, known
                )
            known[key] = self.automaton.add(edges)
        return known[key]

    def numbers(self, low, high, after):
        """Numbers with up to MOST_DECIMALS decimals between two whole ones."""
        decimals = after
        for at in range(MOST_DECIMALS):
            digits = dict.fromkeys(b"0123456789", decimals)
            decimals = (
                self.union([self.automaton.add(digits), after], "")
                if at < MOST_DECIMALS - 1
                else self.automaton.add(digits)
            )
        point = self.union([after, self.automaton.add({ord("."): decimals})], "")
        found = self.natural(max(low, 0), high, lambda is_top: after if is_top else point) if high >= 0 else []
        if low < 0:
            # Below nought the fraction leads away from it: -0.5 begins like nought and lies under it.
            least = -high if high < 0 else 0
            found.append(
                self.automaton.add(
                    {ord("-"): self.union(self.natural(least, -low, lambda is_top: after if is_top else point), "")}
                )
            )
        return found


KNOWN = frozenset(jsonschema.Draft202012Validator.VALIDATORS) | {"minContains", "maxContains", "then", "else"}


def open_choices(words, depth):
    """What is still to come of words that are open at a place, as far as one token may write it."""
    rests = (word[depth : depth + LONGEST_TOKEN] for word in words)
    return tuple(dict.fromkeys(rests)) if len(words) > 1 else ()


def whole(schema, keyword, otherwise):
    """A count that the schema names; in JSON Schema 2.0 is one too."""
    return int(schema.get(keyword, otherwise))


def integer_bounds(schema, path):
    """(least, greatest) whole number."""
    widest = 10**MOST_DIGITS - 1
    low = max(
        math.ceil(schema.get("minimum", -widest)),
        math.floor(schema["exclusiveMinimum"]) + 1 if "exclusiveMinimum" in schema else -widest,
    )
    high = min(
        math.floor(schema.get("maximum", widest)),
        math.ceil(schema["exclusiveMaximum"]) - 1 if "exclusiveMaximum" in schema else widest,
    )
    return checked_bounds(low, high, widest, path)


def number_bounds(schema, path):
    widest = 10**MOST_DIGITS - 1
    for keyword in ("exclusiveMinimum", "exclusiveMaximum"):
        if keyword in schema:
            raise UserError(
                f"{path}/{keyword}: cannot be kept while decoding a number; remove it, or check it after decoding"
            )
    for keyword in ("minimum", "maximum"):
        if schema.get(keyword, 0) != int(schema.get(keyword, 0)):
            raise UserError(
                f"{path}/{keyword}: {schema[keyword]} is not a whole number, and only those can be kept while "
                "decoding; widen it"
            )
    return checked_bounds(int(schema.get("minimum", -widest)), int(schema.get("maximum", widest)), widest, path)


def checked_bounds(low, high, widest, path):
    if low > widest or high < -widest:
        raise UserError(f"{path}/minimum: numbers of more than {MOST_DIGITS} digits cannot be written exactly")
    if low > high:
        raise UserError(f"{path}/minimum: no number lies between {low} and {high}")
    return max(low, -widest), min(high, widest)


def closed(automaton, text):
    """A text that was cut off, ended in the shortest way that fits the schema; None where it left the schema's path or
    had not decided its enum.

    Spaces between the parts of the JSON are dropped, half a character or half an escape at the end too.
    """
    state = automaton.start
    counter = 0
    last = None
    written = bytearray()
    for byte in text.encode("utf-8", "surrogatepass"):
        inside = automaton.string[state]
        if not inside and byte in b" \n\r\t" and byte not in automaton.edges[state]:
            continue
        target, counted = automaton.step(state, counter, byte)
        if not target or counted > automaton.bounds[automaton.string[target]][1]:
            break
        state = target
        counter = counted
        written.append(byte)
        if not automaton.string[state] or state == automaton.content[automaton.string[state]]:
            last = (state, counter, len(written))
    if last is None:
        return None
    state, counter, end = last
    fewest = automaton.bounds[automaton.string[state]][0] if automaton.string[state] else 0
    ending = shortest_ending(automaton, state)
    return None if ending is None else (bytes(written[:end]) + b"." * max(0, fewest - counter) + ending).decode()


def shortest_ending(automaton, start):
    """The fewest bytes to the end from a state; None where they would decide between values of an enum."""
    paths = {start: b""}
    waiting = [start]
    for state in waiting:
        if automaton.final[state]:
            return paths[state]
        if automaton.choices[state]:
            return None
        for byte, target in automaton.edges[state].items():
            if target not in paths:
                paths[target] = paths[state] + bytes([byte])
                if automaton.string[target] and target == automaton.content[automaton.string[target]]:
                    paths[target] += b"." * automaton.bounds[automaton.string[target]][0]
                waiting.append(target)
    return None
