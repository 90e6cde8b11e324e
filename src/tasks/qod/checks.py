"""Four questions about an answer: the seven basic checks, the official schema, the strict rules, the gold values.

Each takes the text that a model wrote, or the object that it is, and lists what is wrong: a Violation has the name of
its check, which never changes, the place as a JSON path, and words that repeat nothing of what was sent.
"""

import ipaddress
import re
from functools import cache

from tasks.answers import referred
from tasks.case_limits import kind_of
from tasks.qod.official import official_schema, official_violations
from tasks.qod.reading import Violation, inside, is_integer, is_refusal, is_same, listed, part, read

SEVEN = ("json", "required", "types", "unknown", "nesting", "profile", "duration")
REQUIRED = ("device", "applicationServer", "qosProfile", "duration")
PROFILES = ("QOS_E", "QOS_S", "QOS_M", "QOS_L")
LONGEST_S = 86_400
LISTS = ("missing", "conflicting", "invalid")  # of a refusal, in order
# What a refusal may name, in order.
NAMES = (
    "device",
    "device.publicPort",
    "applicationServer",
    "devicePorts",
    "applicationServerPorts",
    "qosProfile",
    "duration",
    "sink",
)
# The parts whose values are compared -> the keys that hold them.
PARTS = {
    "device": ("device",),
    "server": ("applicationServer",),
    "ports": ("devicePorts", "applicationServerPorts"),
    "profile": ("qosProfile",),
    "duration": ("duration",),
    "sink": ("sink",),
}
NETWORK = re.compile(r"([^/]+)(?:/(0|[1-9][0-9]{0,2}))?")


# ---- the seven checks


def seven_violations(written):
    """What fails the seven basic checks, which take every answer for a call."""
    value, unread = read(written)
    if unread:
        return [unread]
    found = [Violation("required", f"$.{name}", "is missing") for name in REQUIRED if name not in value]
    if is_refusal(value):
        return found
    found += misshapen(value, official_schema(), "$")
    if isinstance(value.get("qosProfile"), str) and value["qosProfile"] not in PROFILES:
        found.append(unknown_profile())
    if "duration" in value and not (is_integer(value["duration"]) and value["duration"] > 0):
        found.append(Violation("duration", "$.duration", "must be a whole number of seconds, at least 1"))
    return found


def unknown_profile():
    return Violation("profile", "$.qosProfile", f"must be one of {', '.join(PROFILES)}")


def misshapen(value, schema, path):
    """Where a value has another type or structure than the schema, each place under one check alone."""
    schema = referred(schema["$ref"], official_schema()) if "$ref" in schema else schema
    if path == "$.duration":
        return
    wanted = schema.get("type", "string")
    if not is_of(value, wanted):
        # An address as text in place of its object and the like is structure; a number as text is a type.
        both_plain = wanted not in ("object", "array") and not isinstance(value, dict | list)
        check = "types" if both_plain or value is None else "nesting"
        yield Violation(check, path, f"must be of the type {wanted}, found {kind_of(value)}")
    elif wanted == "object":
        yield from misshapen_fields(value, schema, path)
    elif wanted == "array":
        for at, item in enumerate(value):
            yield from misshapen(item, schema["items"], inside(path, at))


def is_of(value, wanted):
    if wanted == "integer":
        return is_integer(value)
    return isinstance(value, {"object": dict, "array": list, "string": str}[wanted])


def misshapen_fields(value, schema, path):
    known = schema["properties"]
    for key, item in value.items():
        if key in known:
            yield from misshapen(item, known[key], inside(path, key))
        elif key in field_names():
            yield Violation("nesting", inside(path, key), "is a field of another place")
        else:
            yield unknown_field(inside(path, key))
    if path == "$.device.ipv4Address" and "publicAddress" not in value:
        yield Violation("nesting", inside(path, "publicAddress"), "is missing")


def unknown_field(path):
    return Violation("unknown", path, "is no field of the API here")


@cache
def field_names():
    """Every field that the API knows, wherever it stands."""
    return frozenset(names_in(official_schema()))


def names_in(schema):
    """The names of the properties in a schema, at every depth."""
    found = set()
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found |= one.get("properties", {}).keys()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


# ---- the strict rules


def strict_violations(written):
    """What keeps a call from being sent, or a refusal from being given."""
    value, unread = read(written)
    if unread:
        return [unread]
    if is_refusal(value):
        return refusal_violations(value)
    found = official_violations(value)
    known = {one.path for one in found}
    # The official schema has the first word about a place; these rules say what it leaves open.
    return found + [one for one in beyond_the_schema(value) if one.path not in known]


def beyond_the_schema(value):
    yield from unknown_fields(value, official_schema(), "$")
    if "device" not in value:
        yield Violation("identifier", "$.device", "is missing")
    if "networkAccessIdentifier" in part(value, "device"):
        yield Violation("identifier", "$.device.networkAccessIdentifier", "may not be used in this release of the API")
    if value.get("qosProfile") not in PROFILES:
        yield unknown_profile()
    duration = value.get("duration")
    if not is_integer(duration) or duration > LONGEST_S:
        yield Violation("duration", "$.duration", f"must be a whole number of seconds, at most {LONGEST_S}")
    if "sinkCredential" in value:
        yield Violation("credential", "$.sinkCredential", "is never taken from a sentence")
    yield from unreal_networks(part(value, "applicationServer"))
    yield from unreal_ports(value)


def unknown_fields(value, schema, path):
    """Fields that the schema does not name where they stand, at every depth."""
    schema = referred(schema["$ref"], official_schema()) if "$ref" in schema else schema
    if isinstance(value, list) and "items" in schema:
        for at, item in enumerate(value):
            yield from unknown_fields(item, schema["items"], inside(path, at))
    # An object in the place of a plain value is of a wrong type, which the official schema says.
    if not isinstance(value, dict) or "properties" not in schema:
        return
    known = schema["properties"]
    for key, item in value.items():
        if key in known:
            yield from unknown_fields(item, known[key], inside(path, key))
        else:
            yield unknown_field(inside(path, key))


def unreal_networks(server):
    for key, kind in (("ipv4Address", ipaddress.IPv4Network), ("ipv6Address", ipaddress.IPv6Network)):
        if key in server and not is_network(server[key], kind):
            yield Violation("address", f"$.applicationServer.{key}", "is neither an address nor a network of its kind")


def is_network(text, kind):
    """Whether a text is an address, or one with the width of its network: no mask, no zone."""
    if not isinstance(text, str) or not NETWORK.fullmatch(text) or "%" in text:
        return False
    try:
        # The API allows bits behind the width, as in 1.2.3.4/24.
        kind(text, strict=False)
    except ValueError:
        return False
    return True


def unreal_ports(value):
    """Ports that are no whole numbers as they are written, and ranges that end before they begin."""
    port = part(part(value, "device"), "ipv4Address").get("publicPort", 0)
    if not is_integer(port):
        yield Violation("ports", "$.device.ipv4Address.publicPort", "must be a whole number")
    for name in PARTS["ports"]:
        ports = part(value, name)
        for at, one in enumerate(listed(ports, "ports")):
            if not is_integer(one):
                yield Violation("ports", f"$.{name}.ports[{at}]", "must be a whole number")
        for at, span in enumerate(listed(ports, "ranges")):
            yield from unreal_range(span, f"$.{name}.ranges[{at}]")


def unreal_range(span, path):
    ends = {key: span[key] for key in ("from", "to") if key in span} if isinstance(span, dict) else {}
    strange = [key for key, value in ends.items() if not is_integer(value)]
    for key in strange:
        yield Violation("ports", inside(path, key), "must be a whole number")
    if len(ends) == 2 and not strange and ends["from"] > ends["to"]:
        yield Violation("range", path, "ends before it begins")


def refusal_violations(value):
    """What is wrong with an object that says what a request lacks."""
    lists = value["error"]
    if value.keys() != {"error"} or not isinstance(lists, dict) or lists.keys() != set(LISTS):
        return [Violation("refusal.shape", "$", f"must hold error alone, and in it {', '.join(LISTS)}")]
    found = []
    for name in LISTS:
        path = f"$.error.{name}"
        if not isinstance(lists[name], list):
            found.append(Violation("refusal.shape", path, f"must be a list, found {kind_of(lists[name])}"))
        elif strange := [at for at, one in enumerate(lists[name]) if one not in NAMES]:
            found += [Violation("refusal.names", inside(path, at), "is nothing that a call has") for at in strange]
        elif sorted(lists[name], key=NAMES.index) != lists[name]:
            found.append(Violation("refusal.order", path, "must keep the order of the call"))
    if found:
        return found
    named = [one for name in LISTS for one in lists[name]]
    if not named:
        return [Violation("refusal.empty", "$.error", "must name at least one thing")]
    if len(set(named)) < len(named):
        return [Violation("refusal.twice", "$.error", "names something twice")]
    return []


# ---- the gold values


def wrong_values(written, gold):
    """In which parts an answer differs from the gold one, whatever else is wrong with it."""
    value, unread = read(written)
    if unread:
        return [unread]
    if is_refusal(value) or is_refusal(gold):
        if is_refusal(value) != is_refusal(gold):
            lacks = "the request lacks something" if is_refusal(gold) else "the request is complete"
            return [Violation("value.refusal", "$", lacks)]
        return [] if is_same(value, gold) else [Violation("value.refusal", "$.error", "names other things")]
    found = [
        Violation(f"value.{name}", f"$.{key}", "is not what the request says")
        for name, keys in PARTS.items()
        for key in keys
        if (key in value) != (key in gold) or not is_same(value.get(key), gold.get(key))
    ]
    known = {key for keys in PARTS.values() for key in keys}
    return found + [Violation("value.more", inside("$", key), "is not asked for") for key in value if key not in known]
