"""Values of requests: numbers, addresses, ports, hosts. The two pools share no block, no country code and no host."""

import ipaddress
from dataclasses import dataclass

DOCUMENTATION_SHARE = 0.5  # of the addresses come from the blocks for examples


@dataclass(frozen=True)
class Source:
    """Where one pool's values come from."""

    countries: tuple  # (code, lengths of a national number)
    documentation: tuple  # first three bytes
    first_bytes: tuple
    private: tuple  # (first two bytes, with the second between two bounds)
    ipv6: tuple  # (first groups, smallest and largest group after them)
    hosts: tuple
    domains: tuple
    hooks: tuple
    paths: tuple
    people_names: tuple
    cities: tuple
    months: tuple

    def phone(self, rng):
        """(country code, national digits)."""
        code, lengths = rng.choice(self.countries)
        return code, str(rng.randint(1, 9)) + digits(rng, rng.choice(lengths) - 1)

    def public_v4(self, rng):
        if rng.random() < DOCUMENTATION_SHARE:
            return f"{rng.choice(self.documentation)}.{rng.randint(1, 254)}"
        return f"{rng.choice(self.first_bytes)}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"

    def private_v4(self, rng):
        first, low, high = rng.choice(self.private)
        return f"{first}.{rng.randint(low, high)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"

    def network_v4(self, rng):
        address = self.public_v4(rng)
        length = rng.choice((24, 24, 25, 26, 27, 28, 29, 30, 22, 16))
        if address.startswith(self.documentation):
            length = max(length, 24)  # a block for examples is no larger
        return str(ipaddress.ip_network(f"{address}/{length}", strict=False))

    def v6_start(self, rng):
        prefix, low, high = rng.choice(self.ipv6)
        return f"{prefix}:{rng.randint(low, high):x}"

    def v6(self, rng):
        """An address in one of the usual spellings: short, all eight groups, with zeros, in capitals."""
        start = self.v6_start(rng)
        spelling = rng.random()
        n_groups = start.count(":") + 1
        if spelling < 0.6:
            middle = [f"{rng.randint(1, 0xFFFF):x}" for _ in range(rng.randint(0, 2))]
            text = ":".join([start, *middle]) + f"::{rng.randint(1, 0xFFFF):x}"
        else:
            text = ":".join([start, *(f"{rng.randint(1, 0xFFFF):x}" for _ in range(8 - n_groups))])
        if spelling > 0.9:
            text = ipaddress.ip_address(text).exploded
        return text.upper() if rng.random() < 0.12 else text

    def network_v6(self, rng):
        return f"{self.v6_start(rng)}:{rng.randint(1, 0xFFFF):x}::/{rng.choice((64, 64, 80, 96))}"

    def host(self, rng):
        return f"{rng.choice(self.hosts)}.{rng.choice(self.domains)}"

    def sink_tail(self, rng):
        """A notification address without its scheme."""
        port = rng.choice(("", "", "", ":8443", f":{rng.randint(4000, 9999)}"))
        number = rng.choice(("", "", f"/{rng.randint(1, 9999)}", f"?id={rng.randint(1, 9999)}"))
        return f"{rng.choice(self.hooks)}.{rng.choice(self.domains)}{port}/{rng.choice(self.paths)}{number}"

    def access_identifier(self, rng):
        return f"{rng.choice(self.people_names).lower()}{rng.randint(1, 99)}@{rng.choice(self.domains)}"

    def person(self, rng):
        return rng.choice(self.people_names)

    def city(self, rng):
        return rng.choice(self.cities)

    def invoice(self, rng):
        return rng.choice((f"{rng.randint(1000, 99999)}-{rng.randint(10, 99)}", f"R{digits(rng, 6)}", digits(rng, 5)))

    def price(self, rng):
        return str(rng.choice((25, 49, 80, 99, 120, 250, 480, 1200)))

    def date(self, rng):
        return f"{rng.randint(1, 28)}.{rng.choice(self.months)}.20{rng.randint(27, 33)}"

    def people(self, rng):
        return str(rng.randint(3, 90))

    def other_address(self, rng):
        return self.private_v4(rng) if rng.random() < 0.4 else self.public_v4(rng)


def digits(rng, n):
    return "".join(rng.choices("0123456789", k=n))


def server_port(rng):
    return rng.choice((80, 443, 554, 1883, 1935, 3478, 5004, 5060, 5061, 8080, 8443, 8883, rng.randint(1024, 65535)))


def device_port(rng):
    return rng.randint(1024, 65535)


TRAIN = Source(
    countries=(
        *(("49", (10, 11)), ("49", (10, 11)), ("1", (10,)), ("33", (9,)), ("34", (9,)), ("39", (10,)), ("351", (9,))),
        *(("44", (10,)), ("43", (10,)), ("31", (9,)), ("32", (9,)), ("48", (9,)), ("91", (10,)), ("81", (10,))),
    ),
    documentation=("203.0.113", "198.51.100"),
    first_bytes=(5, 31, 46, 62, 77, 80, 84, 89, 93, 109, 151, 178, 185, 212),
    private=((10, 0, 127), (172, 16, 23), (192, 168, 168)),
    ipv6=(("2001:db8", 0, 0x7FFF), ("2001:db8", 0, 0x7FFF), ("2a00", 0x1000, 0x7FFF), ("2a02", 0x800, 0x3FFF)),
    hosts=("game", "cam-07", "edge1", "stream", "backend", "app", "srv-12", "studio", "node3"),
    domains=("example.com", "example.org", "acme.example", "nordwind.example", "hafen.example", "clinic.example"),
    hooks=("hooks", "notify", "api", "events", "cb", "listener", "qod"),
    paths=("qod", "qod/events", "v1/notify", "callback", "sessions/status", "hook", "in/qos"),
    people_names=("Anna", "Marco", "Jonas", "Lucia", "Pierre", "Ines", "Tom", "Sofia", "Karl", "Paula", "Amir", "Nina"),
    cities=("Hamburg", "Lyon", "Porto", "Bilbao", "Turin", "Leeds", "Graz", "Utrecht", "Gdansk", "Austin"),
    months=("01", "03", "04", "06", "07", "09", "10", "12"),
)
TEST = Source(
    countries=(
        *(("41", (9,)), ("46", (9,)), ("45", (8,)), ("47", (8,)), ("358", (9,)), ("353", (9,)), ("420", (9,))),
        *(("55", (11,)), ("52", (10,)), ("61", (9,)), ("90", (10,)), ("30", (10,))),
    ),
    documentation=("192.0.2",),
    first_bytes=(23, 45, 57, 68, 79, 88, 91, 146, 176, 188, 195, 217),
    private=((10, 128, 255), (172, 24, 31)),
    ipv6=(
        ("2001:db8", 0x8000, 0xFFFF),
        ("2001:db8", 0x8000, 0xFFFF),
        ("2a01", 0x100, 0x7FFF),
        ("2606", 0x1000, 0x7FFF),
    ),
    hosts=("arena", "lidar-2", "gateway", "relay", "ingest", "portal", "vm-40", "playout"),
    domains=("example.net", "contoso.example", "fjord.example", "ospedale.example", "quay.example"),
    hooks=("callbacks", "push", "status", "webhook", "receiver"),
    paths=("network/updates", "v2/session", "report", "quality", "on-demand/news"),
    people_names=("Elena", "Henrik", "Maud", "Oskar", "Bianca", "Rui", "Greta", "Selim", "Yara"),
    cities=("Bergen", "Basel", "Aarhus", "Galway", "Verona", "Coimbra", "Tampere", "Nantes"),
    months=("02", "05", "08", "11"),
)
SOURCES = {"train": TRAIN, "test": TEST}
