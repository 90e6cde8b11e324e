"""What a request says: the answer's parts first, then each as words."""

import re
from dataclasses import dataclass

from tasks.qod import lengths, values
from tasks.qod.wording import OPEN, kept, weighted

DEVICE_FORMS = {
    "phone": 38,
    "v4_port": 17,
    "v4_private": 8,
    "v4_both": 6,
    "v6": 12,
    "phone v4_port": 6,
    "phone v4_private": 2,
    "phone v6": 4,
    "v4_port v6": 3,
    "v4_both v6": 2,
    "phone v4_both v6": 2,
}
SERVER_FORMS = {"v4": 46, "net": 15, "v4:port": 12, "v6": 11, "v6:port": 2, "v6_net": 5, "v4 v6": 7, "net v6_net": 2}
CORRECTED_SHARE = 0.06  # of the devices, servers, lengths and profiles are first named wrongly
CLOCK_SHARE = 0.25  # of the lengths are two times of day
PROFILES = "ESML"
KILOBITS = (
    *(64, 100, 128, 200, 256, 300, 400, 500, 600, 800, 1000, 1500, 2000, 3000, 4000),
    *(4500, 5000, 6000, 7000, 7500, 8000),
)


@dataclass
class Fact:
    """One thing that a request says; `value` is its words, None where only a form has a line for it."""

    name: str
    value: str | None
    in_form: str | None = None  # the words behind a label, where they differ
    sentence: str | None = None  # where it is said in a sentence of its own alone

    @property
    def for_form(self):
        return self.in_form or self.value


def corrected(voice, value, another):
    """The value, sometimes after a wrong one that is taken back."""
    if voice.rng.random() >= CORRECTED_SHARE:
        return value
    wrong = another()
    return value if wrong == value else voice.say("correction", a=wrong, b=value)


# Device


def device(voice):
    """(device of the answer, fact)."""
    form = weighted(voice.rng, DEVICE_FORMS)
    gold = {}
    texts = []
    for part in form.split():
        value, text = DEVICE_PARTS[part](voice)
        gold |= value
        texts.append(text)
    if form in ("phone", "v4_port"):
        texts = [corrected(voice, texts[0], lambda: DEVICE_PARTS[form](voice)[1])]
    voice.rng.shuffle(texts)
    text = texts[0]
    for other in texts[1:]:
        text = voice.say("device_join", a=text, b=other)
    return gold, Fact("device", text)


def phone(voice):
    code, national = voice.source.phone(voice.rng)
    return {"phoneNumber": f"+{code}{national}"}, voice.say("phone", p=kept(written_phone(voice.rng, code, national)))


def written_phone(rng, code, national):
    """A number as people write it: + or 00, with spaces, dots, dashes, brackets or nothing."""
    lead = "+" if rng.random() < 0.8 else "00"
    separator = rng.choice((" ", " ", " ", "", "", "-", "."))
    groups = grouped(rng, national)
    if separator and len(groups) > 1 and rng.random() < 0.15:
        groups[0] = f"({groups[0]})"
    return f"{lead}{code}{separator}{separator.join(groups)}"


def grouped(rng, national):
    """Digits in groups: two halves, threes or pairs."""
    size = rng.choice((2, 3, 3, 4))
    first = rng.choice((3, 3, 2, size))
    rest = national[first:]
    if rng.random() < 0.4:
        return [national[:first], rest]
    parts = [rest[at : at + size] for at in range(0, len(rest), size)]
    if len(parts) > 1 and len(parts[-1]) == 1:  # nobody writes a digit alone
        parts[-2:] = [parts[-2] + parts[-1]]
    return [national[:first], *parts]


def v4_port(voice):
    address = voice.source.public_v4(voice.rng)
    port = values.device_port(voice.rng)
    gold = {"ipv4Address": {"publicAddress": address, "publicPort": port}}
    return gold, voice.say("v4_port", a=kept(address), p=kept(port))


def v4_private(voice):
    address = voice.source.public_v4(voice.rng)
    inner = voice.source.private_v4(voice.rng)
    gold = {"ipv4Address": {"publicAddress": address, "privateAddress": inner}}
    return gold, voice.say("v4_private", a=kept(address), b=kept(inner))


def v4_both(voice):
    address = voice.source.public_v4(voice.rng)
    inner = voice.source.private_v4(voice.rng)
    port = values.device_port(voice.rng)
    gold = {"ipv4Address": {"publicAddress": address, "privateAddress": inner, "publicPort": port}}
    return gold, voice.say("v4_both", a=kept(address), b=kept(inner), p=kept(port))


def v6(voice):
    address = voice.source.v6(voice.rng)
    return {"ipv6Address": address.lower()}, voice.say("v6", x=kept(address))


DEVICE_PARTS = {"phone": phone, "v4_port": v4_port, "v4_private": v4_private, "v4_both": v4_both, "v6": v6}

# Server


def server(voice):
    """({key of the answer: value}, fact): the server, and its port where it stands behind the address."""
    form = weighted(voice.rng, SERVER_FORMS)
    gold = {}
    texts = []
    for part in form.split():
        key, value, text = server_part(voice, part)
        gold[key] = value
        texts.append(text)
    if form == "v4":
        texts = [corrected(voice, texts[0], lambda: server_part(voice, "v4")[2])]
    text = texts[0] if len(texts) == 1 else joined_servers(voice, *texts)
    answer = {"applicationServer": gold}
    if "port" in form:
        port = values.server_port(voice.rng)
        address = re.search(f"{OPEN}(.*)\x03", text).group(1)
        text = kept(f"{address}:{port}" if form == "v4:port" else f"[{address}]:{port}")
        answer["applicationServerPorts"] = {"ports": [port]}
    return answer, Fact("server", text)


def joined_servers(voice, first, second):
    return voice.say("server_join", a=first, b=second.removeprefix("IPv6 "))  # the wording may say so itself


def server_part(voice, part):
    """(key of the answer, value, words) of one address or network."""
    rng = voice.rng
    if part.startswith("v4"):
        address = voice.source.public_v4(rng)
        return "ipv4Address", address, voice.say("server_v4", a=kept(address))
    if part == "net":
        network = voice.source.network_v4(rng)
        return "ipv4Address", network, voice.say("server_net", a=kept(network))
    if part == "v6_net":
        network = voice.source.network_v6(rng)
        return "ipv6Address", network, voice.say("server_net", a=kept(network))
    address = voice.source.v6(rng)
    return "ipv6Address", address.lower(), voice.say("server_v6", a=kept(address))


# Ports of the flow


def ports(voice, side):
    """(ports of the answer, fact); side is `device` or `server`."""
    rng = voice.rng
    n_ranges = rng.choice((0, 0, 1, 1, 2))
    n_single = rng.choice((0, 1, 2)) if n_ranges else rng.choice((1, 1, 2, 3))
    draw = values.server_port if side == "server" else values.device_port
    single = distinct(draw, rng, n_single)
    ranges = []
    for _ in range(n_ranges):
        first = rng.choice((rng.randint(1024, 60000), rng.randint(10, 60) * 1000))
        ranges.append({"from": first, "to": first + rng.choice((1, 5, 9, 10, 20, 50, 99, 100, 500, 1000))})
    gold = ({"ranges": ranges} if ranges else {}) | ({"ports": single} if single else {})
    dash = voice.pick("to")
    texts = [[range_text(one["from"], one["to"], dash) for one in ranges], [kept(port) for port in single]]
    rng.shuffle(texts)
    return gold, Fact(f"{side}_ports", ports_text(voice, [*texts[0], *texts[1]]))


def distinct(draw, rng, n):
    found = []
    while len(found) < n:
        if (port := draw(rng)) not in found:
            found.append(port)
    return found


def range_text(first, last, dash):
    return kept(f"{first}-{last}") if dash == "-" else f"{kept(first)} {dash} {kept(last)}"


def ports_text(voice, texts):
    if len(texts) == 1 and texts[0].count(OPEN) == 1 and "-" not in texts[0]:
        return voice.say("port_one", texts[0])
    joined = ", ".join(texts[:-1])
    together = f"{joined} {voice.pick('and')} {texts[-1]}" if joined else texts[-1]
    return voice.say("port_many", together)


# Duration and sink


def duration(voice):
    """(seconds, fact)."""
    if voice.rng.random() < CLOCK_SHARE:
        seconds, begin, end = lengths.clock(voice)
        return seconds, Fact("clock", voice.say("clock", a=begin, b=end), f"{begin} - {end}")
    seconds, text = lengths.length(voice)

    def another():
        other, words = lengths.length(voice)
        return text if other == seconds else words

    return seconds, Fact("duration", corrected(voice, text, another))


def sink(voice):
    address = f"https://{voice.source.sink_tail(voice.rng)}"
    return address, Fact("sink", kept(address))


# Profile


def named(voice, letter):
    text = profile_name(voice, letter)
    in_form = kept(voice.rng.choice((f"QOS_{letter}", f"QOS_{letter}", letter)))
    return Fact("named", text, in_form)


def profile_name(voice, letter):
    text = voice.say("named", letter)
    return kept(text.lower() if text.startswith("qos_") else text)


def named_profile(voice, letter):
    fact = named(voice, letter)
    wrong = voice.rng.choice([one for one in PROFILES if one != letter])
    text = corrected(voice, fact.value, lambda: profile_name(voice, wrong))
    return Fact("named", text, text if text != fact.value else fact.in_form)


def throughput(voice, letter):
    """A rate that the profile of that letter is for; E is a small one, which stable latency must go with."""
    rng = voice.rng
    low, high = {"E": (64, 500), "S": (64, 4000), "M": (4001, 8000), "L": (8001, 60000)}[letter]
    if rng.random() < 0.35 and letter != "L" or letter == "E" and rng.random() < 0.9:
        fitting = [one for one in KILOBITS if low <= one <= high]
        rate = rng.choice((*fitting, max(low, rng.randint(low, high) // 10 * 10)))
        return Fact("throughput", kept(f"{rate} {voice.pick('kilobits')}"))
    halves = [half / 2 for half in range(1, 121) if low <= half * 500 <= high]
    whole = [one for one in halves if one == int(one)] or halves
    number = f"{rng.choice(whole if rng.random() < 0.7 else halves):g}".replace(".", voice.words["decimal"])
    return Fact("throughput", kept(f"{number} {voice.pick('megabits')}"))


def latency(voice):
    return Fact("latency", voice.pick("latency"))


def use(voice, name):
    return Fact("use", voice.use(name))


def vague(voice):
    return Fact("vague", "")
