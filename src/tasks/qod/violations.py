"""Wrong answers to QoD requests, each made from the gold answer with one named fault, and what an answer fails."""

import contextlib
import copy
import ipaddress
import re

from common import to_json
from tasks.qod import checks
from tasks.qod.reading import is_refusal, part, read

# Fields that requests suggest and the API has nowhere -> values that go with them.
UNKNOWN = {
    "priority": ("high", "premium", 1),
    "bandwidth": ("20 Mbit/s", 20),
    "throughput": ("8 Mbps", 8000),
    "latency": ("low", "20 ms", 50),
    "jitter": ("low", 5),
    "protocol": ("UDP", "TCP"),
    "useCase": ("gaming", "video", "drone"),
    "description": ("QoD session", "as requested"),
    "startTime": ("now", "2027-03-01T10:00:00Z"),
    "language": ("en", "de"),
}
# Fields that somebody may try to have written.
INJECTED = {
    "admin": (True, "yes"),
    "role": ("admin", "root"),
    "debug": (True,),
    "override": (True, "all"),
    "bypassChecks": (True,),
    "unlimited": (True,),
    "apiKey": ("none", "test"),
}
# Other names that models give to a required field.
REQUIRED_RENAMED = {
    "device": ("ue", "deviceId", "userEquipment"),
    "applicationServer": ("appServer", "server", "application_server"),
    "qosProfile": ("profile", "qos", "qos_profile"),
    "duration": ("durationSeconds", "duration_s", "sessionDuration"),
}
# The same of a field deeper down. Without `publicAddress`: its absence would be a second fault.
INNER_RENAMED = {
    "phoneNumber": ("msisdn", "phone", "phone_number"),
    "ipv4Address": ("ipv4", "ipAddress", "ip"),
    "ipv6Address": ("ipv6", "ip6"),
    "publicPort": ("port", "public_port"),
    "privateAddress": ("localAddress", "private_address"),
    "ranges": ("portRanges",),
    "ports": ("portList",),
    "from": ("start", "begin"),
    "to": ("end", "until"),
}
UNKNOWN_PROFILES = ("QOS_X", "QOS_XL", "QOS_H", "QOS_LOW_LATENCY", "qos_m", "E", "L", "voice", "premium", "low-latency")
PROSE = (
    "Here is the body of createSession:\n{}",
    "Sure! {}",
    "{}\n\nLet me know if you need anything else.",
    "The request is for a QoD session, so the call is {} with the values named above.",
    "Hier ist der Aufruf: {}",
)
FENCES = ("```json\n{}\n```", "```\n{}\n```", "```json\n{}")
INVENTED_DURATIONS_S = (600, 1_800, 3_600, 7_200)
BLOCKS = ("203.0.113", "198.51.100")  # of addresses for examples, as models invent them
PHONE = re.compile(r"(?:\+|\b00)([1-9](?:[ .()-]*\d){6,13})(?!\d)")
ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f]{1,4}(?::[0-9a-f]{0,4}){2,7})(?!\w|\.\d)", re.I)


def fails(text, gold):
    """The names of the checks that a text fails: of the first of seven checks, strict rules and values that finds
    anything, as a fault of form has others in its train.
    """
    value, unread = read(text)
    if unread:
        return [unread.check]
    # The seven checks take every answer for a call.
    found = [] if is_refusal(value) else checks.seven_violations(value)
    found = found or checks.strict_violations(value) or checks.wrong_values(value, gold)
    return list(dict.fromkeys(one.check for one in found))


def of_call(change):
    """A violation made of calls alone: `change` alters a copy, and gives None where it does not apply."""

    def made(case, gold, rng):
        if is_refusal(gold):
            return None
        value = change(copy.deepcopy(gold), rng)
        return None if value is None else to_json(value)

    return made


def around(frames):
    """A violation made of any answer: its text within one of these frames."""
    return lambda case, gold, rng: rng.choice(frames).format(to_json(gold))


# ---- names and places


def with_field(names):
    """A change that writes one more field into the call, its device or its server."""

    def change(call, rng):
        place = rng.choice((call, call["device"], call["applicationServer"]))
        name = rng.choice(list(names))
        items = list(place.items())
        items.insert(rng.randint(1, len(items)), (name, rng.choice(names[name])))
        place.clear()
        place.update(items)
        return call

    return change


def renamed_field(call, rng):
    key = rng.choice(checks.REQUIRED)
    rename(call, key, rng.choice(REQUIRED_RENAMED[key]))
    return call


def renamed_inner_field(call, rng):
    places = [(place, key) for one in call.values() for place in objects_in(one) for key in place]
    place, key = rng.choice([(place, key) for place, key in places if key in INNER_RENAMED])
    rename(place, key, rng.choice(INNER_RENAMED[key]))
    return call


def objects_in(value):
    """The objects in a value, at every depth."""
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from objects_in(one)


def rename(place, key, name):
    items = [(name if one == key else one, value) for one, value in place.items()]
    place.clear()
    place.update(items)


def missing_field(call, rng):
    del call[rng.choice(checks.REQUIRED)]
    return call


def flattened_device(call, rng):
    """The address as a text, its fields one level too high, or the whole device as a text."""
    device = call["device"]
    address = device.get("ipv4Address")
    if address is None:
        call["device"] = rng.choice(list(device.values()))
    elif rng.random() < 0.5:
        port = f":{address['publicPort']}" if "publicPort" in address and rng.random() < 0.5 else ""
        device["ipv4Address"] = address["publicAddress"] + port
    else:
        items = [
            one for key, value in device.items() for one in (value.items() if value is address else [(key, value)])
        ]
        call["device"] = dict(items)
    return call


def nested_server(call, rng):
    server = call["applicationServer"]
    key = rng.choice(list(server))
    wrapper = rng.choice(("applicationServer", "publicAddress", "address", key))
    if wrapper == "applicationServer":
        call["applicationServer"] = {wrapper: server}
    else:
        server[key] = {wrapper: server[key]}
    return call


# ---- values


def other_profile(call, rng):
    call["qosProfile"] = rng.choice([one for one in checks.PROFILES if one != call["qosProfile"]])
    return call


def unknown_profile(call, rng):
    call["qosProfile"] = rng.choice(UNKNOWN_PROFILES)
    return call


def duration_as_text(call, rng):
    seconds = call["duration"]
    minutes = [f"{seconds // 60} minutes", f"PT{seconds // 60}M"] if seconds % 60 == 0 else []
    call["duration"] = rng.choice([str(seconds), str(seconds), f"{seconds}s", *minutes])
    return call


def duration_in_minutes(call, rng):
    if call["duration"] % 60:
        return None
    call["duration"] //= 60
    return call


def swapped_addresses(call, rng):
    """The device's address and the server's in each other's place; a network is no address of a device."""
    device = call["device"]
    server = call["applicationServer"]
    places = ((part(device, "ipv4Address"), "publicAddress", "ipv4Address"), (device, "ipv6Address", "ipv6Address"))
    ways = [
        (place, key, other)
        for place, key, other in places
        if key in place and other in server and "/" not in server[other] and place[key] != server[other]
    ]
    if not ways:
        return None
    place, key, other = rng.choice(ways)
    place[key], server[other] = server[other], place[key]
    return call


# ---- a call or a refusal in the other's place


def refused_call(call, rng):
    """A refusal in its form where nothing is missing."""
    names = [name for name in checks.NAMES if name in call]
    named = rng.sample(names, rng.choice((1, 1, 2)))
    return refusal({name: rng.choice(("missing", "missing", "conflicting", "invalid")) for name in named})


def refusal(lists):
    """The refusal that names each of these in the list beside it."""
    return {"error": {of: [name for name in checks.NAMES if lists.get(name) == of] for of in checks.LISTS}}


def wrong_names(case, gold, rng):
    """A refusal in its form that names one thing more, one less, or one in another list."""
    if not is_refusal(gold):
        return None
    lists = {name: of for of in checks.LISTS for name in gold["error"][of]}
    more = [name for name in checks.NAMES if name not in lists]
    name = rng.choice(list(lists))
    way = rng.choice(["moved", *["more"] * bool(more), *["less"] * (len(lists) > 1)])
    if way == "moved":
        lists[name] = rng.choice([of for of in checks.LISTS if of != lists[name]])
    elif way == "more":
        lists[rng.choice(more)] = rng.choice(checks.LISTS)
    else:
        del lists[name]
    return to_json(refusal(lists))


def made_up_call(case, gold, rng):
    """A call in the place of a refusal: what the request holds, and inventions for what it lacks."""
    if not is_refusal(gold):
        return None
    request = case["request"]
    phone = PHONE.search(request)
    profile = re.search(r"QOS_[ESML]\b", request, re.I)
    addresses = [*addresses_in(request), *(("ipv4Address", f"{block}.{rng.randint(1, 254)}") for block in BLOCKS)]
    if phone:
        device = {"phoneNumber": f"+{re.sub(r'[^0-9]', '', phone[1])}"}
    else:
        key, address = addresses.pop(0)
        of_port = {"publicAddress": address, "publicPort": rng.randint(1_024, 65_535)}
        device = {key: of_port if key == "ipv4Address" else address}
    call = {
        "device": device,
        "applicationServer": dict(addresses[:1]),
        "qosProfile": profile[0].upper() if profile else rng.choice(checks.PROFILES),
        "duration": rng.choice(INVENTED_DURATIONS_S),
    }
    return to_json(call)


def addresses_in(request):
    """(key of the answer, address) of each IP address in a text, once."""
    found = {}
    for text in ADDRESS.findall(request):
        # What only looks like one, as 10:30:00 or 300.1.1.1, is none.
        with contextlib.suppress(ValueError):
            found[text.lower()] = f"ipv{ipaddress.ip_address(text).version}Address"
    return [(key, address) for address, key in found.items()]


def truncated(case, gold, rng):
    text = to_json(gold)
    return text[: rng.randint(len(text) // 4, len(text) - 1)]


# name -> (function of case, gold answer and random numbers that gives the rejected text or None, the checks it fails).
# Those that are no JSON come last: few pairs begin at the top.
VIOLATIONS = {
    "unknown_field": (of_call(with_field(UNKNOWN)), ("unknown",)),
    "wrong_profile": (of_call(other_profile), ("value.profile",)),
    "flattened_device": (of_call(flattened_device), ("nesting",)),
    "duration_in_minutes": (of_call(duration_in_minutes), ("value.duration",)),
    "made_up_call": (made_up_call, ("value.refusal",)),
    "nested_server": (of_call(nested_server), ("nesting",)),
    "missing_field": (of_call(missing_field), ("required",)),
    "refused_call": (of_call(refused_call), ("value.refusal",)),
    "duration_as_text": (of_call(duration_as_text), ("duration",)),
    "unknown_profile": (of_call(unknown_profile), ("profile",)),
    "renamed_field": (of_call(renamed_field), ("required", "unknown")),
    "wrong_names": (wrong_names, ("value.refusal",)),
    "swapped_addresses": (of_call(swapped_addresses), ("value.device", "value.server")),
    "injected_field": (of_call(with_field(INJECTED)), ("unknown",)),
    "renamed_inner_field": (of_call(renamed_inner_field), ("unknown",)),
    "truncated": (truncated, ("json",)),
    "prose": (around(PROSE), ("json",)),
    "code_fence": (around(FENCES), ("json",)),
}
