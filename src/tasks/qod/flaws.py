"""What a request may lack, say twice or say wrongly, and the error that is the right answer."""

from tasks.qod import facts, lengths, values
from tasks.qod.checks import LISTS, NAMES
from tasks.qod.facts import Fact
from tasks.qod.wording import kept, weighted

# (list, name): how often of a hundred
FLAWS = {
    ("missing", "device"): 9,
    ("missing", "device.publicPort"): 9,
    ("missing", "applicationServer"): 9,
    ("missing", "qosProfile"): 9,
    ("missing", "duration"): 10,
    ("conflicting", "device"): 4,
    ("conflicting", "device.publicPort"): 1,
    ("conflicting", "applicationServer"): 4,
    ("conflicting", "qosProfile"): 4,
    ("conflicting", "duration"): 5,
    ("conflicting", "sink"): 1,
    ("invalid", "device"): 8,
    ("invalid", "device.publicPort"): 2,
    ("invalid", "applicationServer"): 5,
    ("invalid", "devicePorts"): 3,
    ("invalid", "applicationServerPorts"): 4,
    ("invalid", "qosProfile"): 4,
    ("invalid", "duration"): 6,
    ("invalid", "sink"): 3,
}
SLOTS = {
    "device.publicPort": "device",
    "qosProfile": "profile",
    "applicationServer": "server",
    "devicePorts": "device_ports",
    "applicationServerPorts": "server_ports",
}  # what of a request holds a name, where it is called otherwise
HOW_MANY = {1: 64, 2: 24, 3: 9, 4: 3}
EMPTY_LINE_SHARE = 0.4  # of what is missing has a line in a form, with nothing in it


def draw(rng):
    """{slot: (list, name)} of one to four flaws."""
    n = weighted(rng, HOW_MANY)
    found = {}
    while len(found) < n:
        flaw = weighted(rng, FLAWS)
        found.setdefault(slot_of(flaw[1]), flaw)
    return found


def slot_of(name):
    return SLOTS.get(name, name)


def error(flaws):
    """The answer to a request with these flaws, as (list, name)."""
    return {"error": {of: [name for name in NAMES if (of, name) in flaws] for of in LISTS}}


def said(voice, flaw):
    """The facts that a request states instead of a good one."""
    of, name = flaw
    return {"missing": missing, "conflicting": conflicting, "invalid": invalid}[of](voice, name)


def missing(voice, name):
    rng = voice.rng
    if name == "device.publicPort":
        return [Fact("device", voice.say("v4_only", a=kept(voice.source.public_v4(rng))))]
    found = []
    if name == "duration" and rng.random() < 0.4:
        found = [Fact("until", voice.say("until", kept(end_alone(voice))))]
    elif name == "qosProfile" and rng.random() < 0.4:
        found = [facts.vague(voice)]
    elif rng.random() < EMPTY_LINE_SHARE:
        label = {"qosProfile": "named", "applicationServer": "server"}.get(name, name)
        found = [Fact(label, None, kept(voice.pick("nothing")))]
    return found


def end_alone(voice):
    if voice.rng.random() < 0.5:
        return voice.pick("until_word")
    return lengths.time_of_day(voice.pick("clock_time"), voice.rng.randint(24, 95) * 15)


# Two values where one is possible


def conflicting(voice, name):
    if name == "duration":
        return two_durations(voice)
    if name == "device.publicPort":
        address = voice.source.public_v4(voice.rng)
        port, other = facts.distinct(values.device_port, voice.rng, 2)
        return [Fact("device", voice.say("either", a=kept(f"{address}:{port}"), b=kept(f"{address}:{other}")))]
    device = voice.rng.choice((one_phone, one_phone, one_address))
    make = {"device": device, "applicationServer": one_server, "qosProfile": one_profile, "sink": one_sink}[name]
    key = {"qosProfile": "named", "applicationServer": "server"}.get(name, name)
    first = make(voice)
    second = make(voice)
    while second == first:
        second = make(voice)
    return stated_twice(voice, key, first, second)


def one_phone(voice):
    return kept(facts.written_phone(voice.rng, *voice.source.phone(voice.rng)))


def one_address(voice):
    return kept(f"{voice.source.public_v4(voice.rng)}:{values.device_port(voice.rng)}")


def one_server(voice):
    return kept(voice.source.public_v4(voice.rng))


def one_profile(voice):
    return kept(f"QOS_{voice.rng.choice(facts.PROFILES)}")


def one_sink(voice):
    return facts.sink(voice)[1].value


def two_durations(voice):
    first, text = lengths.length(voice)
    second, other = lengths.length(voice)
    while second == first:
        second, other = lengths.length(voice)
    return stated_twice(voice, "duration", text, other)


def stated_twice(voice, key, first, second):
    """Both in one breath, or the second in a sentence later on."""
    if voice.rng.random() < 0.65:
        return [Fact(key, voice.say("either", a=first, b=second))]
    # The label says of what: an address alone might be the device's or the server's.
    label = voice.words[f"label_{key}"][0]
    label = label if voice.language == "de" else label.lower()
    return [Fact(key, first), Fact(key, second, sentence=f"{voice.pick('contradiction')} {label} {second}.")]


# A value that cannot be used


def invalid(voice, name):
    return [INVALID[name](voice)]


def bad_device(voice):
    rng = voice.rng
    kind = rng.choice(("national", "national", "identifier", "host", "private", "private", "part", "part"))
    if kind == "national":
        _, national = voice.source.phone(rng)
        parts = facts.grouped(rng, national)
        parts[0] = f"0{parts[0]}"
        text = voice.say("phone", p=kept(rng.choice((" ", " ", "", "-", "/")).join(parts)))
    elif kind == "identifier":
        text = voice.say("nai", n=kept(voice.source.access_identifier(rng)))
    elif kind == "host":
        text = voice.say("host_device", h=kept(voice.source.host(rng)))
    elif kind == "private":
        text = voice.say("private_only", b=kept(voice.source.private_v4(rng)))
    else:
        text = voice.say("v4_port", a=kept(beyond_255(voice)), p=kept(values.device_port(rng)))
    return Fact("device", text)


def beyond_255(voice):
    """An IPv4 address with one part that is too large."""
    parts = voice.source.public_v4(voice.rng).split(".")
    parts[voice.rng.randint(1, 3)] = str(voice.rng.randint(256, 999))
    return ".".join(parts)


def bad_public_port(voice):
    port = voice.rng.randint(65_536, 99_999)
    return Fact("device", voice.say("v4_port", a=kept(voice.source.public_v4(voice.rng)), p=kept(port)))


def bad_server(voice):
    if voice.rng.random() < 0.5:
        return Fact("server", voice.say("host_server", h=kept(voice.source.host(voice.rng))))
    return Fact("server", voice.say("server_v4", a=kept(beyond_255(voice))))


def bad_ports(side):
    def make(voice):
        rng = voice.rng
        dash = voice.pick("to")
        if rng.random() < 0.45:
            text = voice.say("port_one", kept(rng.randint(65_536, 99_999)))
        else:
            last = rng.randint(1024, 60_000)
            text = voice.say("port_many", facts.range_text(last + rng.randint(5, 2000), last, dash))
        return Fact(f"{side}_ports", text)

    return make


def bad_profile(voice):
    letter = voice.rng.choice(BAD_LETTERS[voice.pool])
    return Fact("named", facts.profile_name(voice, letter))


def bad_duration(voice):
    key = voice.rng.choice(("too_long", "too_long", "zero", "no_length"))
    return Fact("duration", kept(voice.pick(key)))


def bad_sink(voice):
    scheme = voice.rng.choice(("http://", "http://", "ftp://", "mqtt://", "ws://"))
    return Fact("sink", kept(f"{scheme}{voice.source.sink_tail(voice.rng)}"))


BAD_LETTERS = {"train": ("X", "Z", "XL", "Q", "GOLD", "1", "H"), "test": ("K", "T", "XXL", "PLUS", "7", "N")}
INVALID = {
    "device": bad_device,
    "device.publicPort": bad_public_port,
    "applicationServer": bad_server,
    "devicePorts": bad_ports("device"),
    "applicationServerPorts": bad_ports("server"),
    "qosProfile": bad_profile,
    "duration": bad_duration,
    "sink": bad_sink,
}
