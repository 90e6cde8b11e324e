"""Values of requests: numbers, addresses, ports, hosts. The two pools share no block, no country code and no host."""

import ipaddress
from dataclasses import dataclass

DOCUMENTATION_SHARE = 0.5  # of the addresses come from the blocks for examples
NEAR_PRIVATE_SHARE = 0.3  # of the others begin as private ones do


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
    near_private: tuple = ()  # (first byte, smallest and largest second byte) of public addresses

    def phone(self, rng):
        """(country code, national digits)."""
        code, lengths = rng.choice(self.countries)
        return code, str(rng.randint(1, 9)) + digits(rng, rng.choice(lengths) - 1)

    def public_v4(self, rng):
        if rng.random() < DOCUMENTATION_SHARE:
            return f"{rng.choice(self.documentation)}.{rng.randint(1, 254)}"
        if self.near_private and rng.random() < NEAR_PRIVATE_SHARE:
            first, low, high = rng.choice(self.near_private)
            start = f"{first}.{rng.randint(low, high)}"
        else:
            start = f"{rng.choice(self.first_bytes)}.{rng.randint(0, 255)}"
        return f"{start}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"

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
NOT_PUBLIC = (10, 127, 169, 172, 192, 198, 203)  # first bytes with blocks for something else
COUNTRIES = {  # lengths of a national number: the country codes that have it
    (7, 8): "372 506 507 852 65 216 961",
    (8, 9): "64 66 84 98 351 502 503 595 598",
    (9,): "27 31 32 33 34 36 48 51 56 94 212 213 233 254 255 256 385 386 593 962 966 971 972",
    (10,): "1 1 1 1 39 39 44 44 43 57 58 60 62 63 81 82 91 91 92 234 886",
    (10, 11): "49 49 49 49 54 86 880",
}
# A model copies what it has seen many unlike cases of; from a dozen beginnings it learns those by heart.
TRAIN = Source(
    countries=tuple((code, lengths) for lengths, codes in COUNTRIES.items() for code in codes.split()),
    documentation=("203.0.113", "198.51.100"),
    first_bytes=tuple(byte for byte in range(1, 224) if byte not in (*TEST.first_bytes, *NOT_PUBLIC)),
    private=((10, 0, 127), (172, 16, 23), (192, 168, 168)),
    ipv6=(
        *[("2001:db8", 0, 0x7FFF)] * 24,
        *((f"{start:x}", 1, 0xFFFF) for start in range(0x2002, 0x2C10, 53) if start not in (0x2606, 0x2A01)),
        *((start, 1, 0xFFFF) for start in ("2a00", "2a02", "2a03", "2600", "2607", "2804", "240e", "fd00", "fdab")),
    ),
    hosts=tuple(
        "game cam-07 edge1 stream api app srv-12 studio node3 db bridge core1 mixer vod sip-2 files panel hub".split()
    ),
    domains=(
        *("example.com", "example.org", "acme.example", "nordwind.example", "hafen.example", "clinic.example"),
        *("luna.example", "rig-ops.example", "cityworks.example", "mail.example.org", "eu.example.com", "farm.example"),
    ),
    hooks=tuple("hooks notify api events cb listener qod n ops ingress alerts message-bus svc".split()),
    paths=tuple(
        "qod qod/events v1/notify callback sessions/status hook in/qos e api/v3/qod/sink messages s/changed".split()
    ),
    people_names=tuple(
        "Anna Marco Jonas Lucia Pierre Ines Tom Sofia Karl Paula Amir Nina Priya Omar Wei Olga Sean Aoife Kofi Mia "
        "Luca Hans Chloe Diego Carmen Joao Marta Ivan Lena Ravi Fatima Ken".split()
    ),
    cities=tuple(
        "Hamburg Lyon Porto Bilbao Turin Leeds Graz Utrecht Gdansk Austin Cork Nagoya Pune Lagos Quito Perth Denver "
        "Malaga Ghent Zagreb".split()
    ),
    months=("01", "03", "04", "06", "07", "09", "10", "12"),
    # Where every 192 is private, a public 192 is taken for a private address.
    near_private=(
        *((192, 1, 87), (192, 89, 167), (192, 169, 255)),
        *((172, 0, 15), (172, 32, 255), (198, 20, 50), (203, 1, 255)),
    ),
)
SOURCES = {"train": TRAIN, "validation": TRAIN, "test": TEST}
