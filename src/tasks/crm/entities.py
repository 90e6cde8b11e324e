"""Who the synthetic records are about: people and organisations, and the others whom one takes for them.

An entity is a dictionary from field to its true value. Two entities that share a true value agree in that field however
it is written.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

from tasks.crm.pools import FREE_MAIL, JOBS, NUMBER_LAST, TRADES, latin

SHARED_MAILBOXES = "info office sales contact mail admin hello accounts kontakt buero".split()
FAMILY_GAP = (19, 38)  # years between parent and child
SUFFIXES = ("Jr", "Sr", "II", "III")
LINKS = ("of", "and", "&", "de", "on", "for", "at")  # between two words of a firm's name
ADDRESS = ("number", "street", "unit", "city", "state", "postal", "country", "era")
# What blocking brings two people together by; twice what it does more often.
BLOCKED = (
    "first",
    "last",
    "last",
    "birth",
    "birth",
    "city",
    "postal",
    "job",
    "birthplace",
    "company",
    "street",
    "first",
    "gender",
    "state",
    "tax",
)
COMMON_ENDINGS = "com com com org net co biz".split()
ENDINGS = (
    "io info co.uk de fr it es nl be ch at pl se no dk fi ie pt cz hu gr ro bg hr tr ru ua il in id my ph sg jp cn "
    "kr tw hk vn th au com.au nz ca us mx com.br ar cl pe za ng ke gh eg ma ae sa pk bd np eu me tv app dev ai shop"
).split()
LETTERS = "ABCDEFGHKLMNPRSTW"  # of postal codes
VOWELS = "aeiou"
CONSONANTS = "bcdfghklmnprstvw"


@dataclass(frozen=True)
class Place:
    """What goes with a town: how its postal codes and telephone numbers start."""

    city: str
    state: str
    postal: str
    dialling: str


def place(country, city, era):
    """One town: its postal codes and dialling code start alike, as real ones do.

    Another era gives the same town other ones: there is nothing to learn by heart, only that they agree.
    """
    key = zlib.crc32(f"{city}:{era}".encode())
    state = country.states[key % len(country.states)] if country.states else ""
    start = (
        LETTERS[key % 16] + LETTERS[key // 16 % 16] + str(1 + key // 256 % 29)
        if country.locale == "en_GB"
        else f"{key // 7 % 1000:03d}"
    )
    return Place(city, state, start, str(200 + key // 11 % 780))


def chance(rng, share):
    return rng.random() < share


def one_of(rng, values):
    return values[int(rng.random() * len(values))]


def number(rng, low, high):
    return low + int(rng.random() * (high - low + 1))


def digits(rng, n):
    return f"{int(rng.random() * 10**n):0{n}d}"


def name_from(rng, choices, invented=0.4):
    """A name by frequency; many are made up of the halves of two or respelt, so that a model compares letters instead
    of knowing names.
    """
    value = choices.pick(rng) if chance(rng, 0.7) else choices.even(rng)
    return invent(value, choices.even(rng), rng) if chance(rng, invented) else value


def invent(value, other, rng):
    """A new word that looks like its two parents."""
    if len(value) > 3 and len(other) > 3:
        cut = number(rng, 2, len(value) - 1)
        value = value[:cut] + other[max(1, len(other) - number(rng, 2, 5)) :].lower()
    if chance(rng, 0.3) and value.isascii() and len(value) > 3:
        at = number(rng, 1, len(value) - 1)
        value = value[:at] + one_of(rng, CONSONANTS if value[at].lower() not in VOWELS else VOWELS) + value[at + 1 :]
    return value


def address(rng, country, city=None, era=None):
    era = number(rng, 1, 500) if era is None else era
    where = place(country, city or name_from(rng, country.cities, 0.25), era)
    return {
        "number": str(
            number(rng, 1, 99) if country.language in NUMBER_LAST or chance(rng, 0.3) else number(rng, 100, 9999)
        ),
        "street": (name_from(rng, country.streets, 0.25), one_of(rng, country.street_words)),
        "era": era,
        "unit": unit(rng, country),
        "city": where.city,
        "state": where.state,
        "postal": where.postal + postal_end(rng, country),
        "country": country.locale[-2:],
    }


def unit(rng, country):
    """The number of a flat or the name of a house, where there is one."""
    if not chance(rng, 0.25):
        return ""
    return str(number(rng, 1, 40)) if chance(rng, 0.7) else country.streets.even(rng)


def postal_end(rng, country):
    if country.locale == "en_GB":
        return f" {digits(rng, 1)}{one_of(rng, LETTERS)}{one_of(rng, LETTERS)}"
    if country.language == "nl":
        return f"{digits(rng, 1)} {one_of(rng, LETTERS)}{one_of(rng, LETTERS)}"
    return digits(rng, 1 if country.language in ("da", "no", "hu") or country.locale == "en_AU" else 2)


def phone(rng, country, home=None):
    area = (
        place(country, home["city"], home["era"]).dialling if home and chance(rng, 0.7) else str(number(rng, 200, 989))
    )
    return area + digits(rng, 7 if country.phone_code in ("1", "7", "91", "86") else number(rng, 5, 7))


def email(rng, person):
    first = word(person["first"])
    last = word(person["last"])
    year = str(person["birth"][0])
    local = one_of(
        rng,
        (
            f"{first}.{last}",
            f"{first[:1]}{last}",
            f"{first}{last}",
            f"{first}_{last}",
            f"{last}.{first}",
            f"{first}{year[2:]}",
            f"{last}{digits(rng, 2)}",
            f"{first[:1]}.{last}",
            f"{first}{digits(rng, 3)}",
        ),
    )
    domain = mail_domain(person["company"]) if person["company"] and chance(rng, 0.5) else one_of(rng, FREE_MAIL)
    return f"{local}@{domain}"


@lru_cache(maxsize=50_000)
def word(text):
    """A name as it stands in an e-mail address."""
    return "".join(c for c in latin(text).lower() if c.isalnum()) or "x"


@lru_cache(maxsize=50_000)
def mail_domain(company):
    words = [word(part) for part in company[0].split()]
    key = zlib.crc32(company[0].encode())
    ending = COMMON_ENDINGS[key // 3 % len(COMMON_ENDINGS)] if key % 3 else ENDINGS[key // 3 % len(ENDINGS)]
    return f"{''.join(words) if sum(map(len, words)) < 16 else words[0]}.{ending}"


def company(rng, country):
    """(name, legal form, trade): words, a surname or letters, mostly with what it does."""
    trade = one_of(rng, TRADES)
    kind = rng.random()
    if kind < 0.35:
        name = name_from(rng, country.last)
        name = f"{name} & {country.last.even(rng)}" if chance(rng, 0.25) else f"{name}'s" if chance(rng, 0.15) else name
    elif kind < 0.5:
        name = f"{country.words.even(rng)} {country.words.even(rng)}"
    elif kind < 0.58:
        first = country.words.even(rng)
        name = f"{first} {one_of(rng, LINKS)} {country.words.even(rng)}"
    elif kind < 0.66:
        name = (
            country.cities.even(rng) if chance(rng, 0.6) else f"{country.streets.even(rng)} {country.street_words[0]}"
        )
    elif kind < 0.71:
        name = country.men.even(rng) + one_of(rng, ("'s", "s", "", " and Sons", " Brothers", "'s Place"))
    elif kind < 0.75:
        name = "".join(chr(65 + int(rng.random() * 26)) for _ in range(3))
    else:
        name = name_from(rng, country.words, 0.5)
    if chance(rng, 0.72):
        name = f"{name} {trade[0]}"
    if chance(rng, 0.08):
        name = f"The {name}"
    return name, one_of(rng, country.legal) if chance(rng, 0.4) else "", trade


def person(rng, country):
    woman = chance(rng, 0.5)
    first_names = country.women if woman else country.men
    where = address(rng, country)
    employer = company(rng, country)[:2] if chance(rng, 0.6) else ""
    entity = {
        "type": "person",
        "first": name_from(rng, first_names),
        "middle": first_names.even(rng) if chance(rng, 0.35) else "",
        "last": name_from(rng, country.last),
        "suffix": one_of(rng, SUFFIXES) if chance(rng, 0.05) else "",
        "gender": "F" if woman else "M",
        "birth": birth_date(rng),
        "birthplace": country.cities.even(rng),
        **where,
        "company": employer,
        "job": one_of(rng, JOBS),
        "tax": digits(rng, number(rng, 7, 11)),
        "phone": phone(rng, country, where),
    }
    if chance(rng, 0.12):
        entity["last"] = f"{entity['last']}{'-' if chance(rng, 0.5) else ' '}{country.last.even(rng)}"
    if entity["company"] and chance(rng, 0.1):
        return entity | {"email": f"{one_of(rng, SHARED_MAILBOXES)}@{mail_domain(entity['company'])}"}
    return entity | {"email": email(rng, entity)}


def birth_date(rng):
    """(year, month, day); the first of January where only the year is known."""
    year = number(rng, 1925, 2006) if chance(rng, 0.8) else number(rng, 1750, 2020)
    return (year, number(rng, 1, 12), number(rng, 1, 28)) if chance(rng, 0.88) else (year, 1, 1)


def is_shared(address):
    return address.partition("@")[0] in SHARED_MAILBOXES


def organisation(rng, country):
    where = address(rng, country)
    name, legal, trade = company(rng, country)
    site = mail_domain((name, legal))
    mailbox = one_of(rng, SHARED_MAILBOXES) if chance(rng, 0.6) else word(country.last.even(rng))
    agency = company(rng, country)[0] if chance(rng, 0.5) else ""
    if agency and chance(rng, 0.25):
        name = f"{agency}{one_of(rng, (' - ', ' ', ': '))}{name}"
    return {
        "type": "org",
        "org": name,
        "legal": legal,
        "industry": trade[2],
        "agency": agency,
        "phone": phone(rng, country, where),
        "email": f"{mailbox}@{site}",
        "website": site,
        **where,
        "tax": digits(rng, number(rng, 8, 12)),
    }


def updated(entity, rng, country):
    """The same entity later, or asked again."""
    return (updated_organisation if entity["type"] == "org" else updated_person)(dict(entity), rng, country)


def updated_organisation(entity, rng, country):
    """Moved, another number, another name, agency or trade."""
    change = rng.random()
    if change < 0.5:
        entity |= address(rng, country, *((entity["city"], entity["era"]) if chance(rng, 0.7) else ()))
    if change > 0.4:
        entity["phone"] = phone(rng, country, entity)
    if change > 0.92:
        entity["org"] = company(rng, country)[0]
    elif change > 0.84 and entity["agency"]:
        entity["org"] = with_or_without(entity["agency"], entity["org"])
    elif change > 0.7:
        entity |= {"industry": one_of(rng, TRADES)[2], "agency": company(rng, country)[0]}
    return entity


def with_or_without(agency, name):
    """The name after its agency's, or no longer so where it was."""
    return name.removeprefix(agency).strip(" -:") or name if agency in name else f"{agency} - {name}"


def updated_person(entity, rng, country):
    """Moved, another number, another job, married, another birth date given."""
    change = rng.random()
    if chance(rng, 0.3):
        year, month, day = entity["birth"]
        entity["birth"] = (
            year + number(rng, -9, 9) if chance(rng, 0.5) else year,
            min(12, max(1, month + number(rng, -3, 3))),
            min(28, max(1, day + number(rng, -9, 9))),
        )
    if change < 0.4:
        entity |= address(rng, country, *((entity["city"], entity["era"]) if chance(rng, 0.4) else ()))
    if 0.3 < change < 0.6:
        entity["phone"] = phone(rng, country)
    if 0.5 < change < 0.8:
        entity |= {"company": company(rng, country)[:2], "job": one_of(rng, JOBS)}
    if change > 0.6:
        entity["email"] = email(rng, entity)
    if chance(rng, 0.06):  # known by another name
        entity["first"] = name_from(rng, country.women if entity["gender"] == "F" else country.men)
    if change > 0.9 and entity["gender"] == "F":
        entity["last"] = name_from(rng, country.last)
    return entity


def look_alike(entity, rng, country):
    """Somebody else who agrees in fields that people or firms really share."""
    return (other_organisation if entity["type"] == "org" else other_person)(entity, rng, country)


def other_person(entity, rng, country):
    other = person(rng, country)
    make_alike = by_share(rng, PEOPLE_ALIKE)
    make_alike(other, entity, rng)
    return other


def other_organisation(entity, rng, country):
    other = organisation(rng, country)
    make_alike = by_share(rng, ORGANISATIONS_ALIKE)
    make_alike(other, entity, rng)
    return other


def by_share(rng, kinds):
    """One of [(the share of it and those before it, kind)]."""
    at = rng.random()
    return next(kind for upto, kind in kinds if at < upto)


def namesake(other, entity, rng):
    """One name, sometimes in the same town, firm or trade."""
    other |= shared(entity, "first", "last", "gender", *(("middle",) if chance(rng, 0.3) else ()))
    other |= shared(
        entity,
        *one_of(
            rng, ((), ("city", "state"), ("company",), ("job",), ("country", "birthplace"), ("city", "state", "postal"))
        ),
    )


def household(other, entity, rng):
    """Spouse, sibling, twin."""
    other |= shared(
        entity, "last", *ADDRESS, *(("phone",) if chance(rng, 0.6) else ()), *(("email",) if chance(rng, 0.15) else ())
    )
    if chance(rng, 0.25):
        other["birth"] = entity["birth"]
    if chance(rng, 0.2) and entity["first"]:
        other["first"] = entity["first"][:1] + other["first"][1:]


def child(other, entity, rng):
    """Parent and child of one name."""
    year = entity["birth"][0] + number(rng, *FAMILY_GAP)
    other |= shared(
        entity,
        "first",
        "last",
        "gender",
        *ADDRESS,
        *(("phone",) if chance(rng, 0.6) else ()),
        *(("email",) if chance(rng, 0.3) else ()),
    )
    suffixes = [suffix for suffix in SUFFIXES if suffix != entity["suffix"]]
    other |= {
        "birth": (year, *other["birth"][1:]),
        "suffix": one_of(rng, suffixes[:2]) if chance(rng, 0.7) else "",
        "middle": one_of(rng, (entity["middle"], "")),
    }


def colleague(other, entity, rng):
    """One firm, the switchboard's number, the shared mailbox."""
    other |= shared(
        entity, "company", *(("phone",) if chance(rng, 0.5) else ()), *(ADDRESS if chance(rng, 0.5) else ())
    )
    if is_shared(entity["email"]):
        other["email"] = entity["email"]
    if chance(rng, 0.2):
        other |= shared(entity, one_of(rng, ("first", "last")))


def near_namesake(other, entity, rng):
    """Names alike to the eye."""
    other["last"] = misspelt(entity["last"], rng)
    other |= shared(
        entity, "gender", *one_of(rng, ((), ("first",), ("city", "state"), ("birth",), ("first", "city", "state")))
    )


def blocked_person(other, entity, rng):
    """What blocking brings together: any few fields agree."""
    fields = rng.sample(BLOCKED, number(rng, 1, 4))
    other |= shared(entity, *fields)
    if "postal" in fields:
        other |= shared(entity, "city", "state")
    if chance(rng, 0.25):
        other["birth"] = near_date(entity["birth"], rng)
    if chance(rng, 0.2):
        other["first"] = entity["first"][:1] + other["first"][1:].lower()
    if "first" in fields:
        other["gender"] = entity["gender"]


def branch(other, entity, rng):
    """Another branch of the chain."""
    other |= shared(
        entity,
        "org",
        "legal",
        "industry",
        "agency",
        "website",
        *(("email",) if chance(rng, 0.3) else ()),
        *(("phone",) if chance(rng, 0.3) else ()),
        *(("city", "state") if chance(rng, 0.5) else ()),
        *(("postal",) if chance(rng, 0.3) else ()),
    )
    if chance(rng, 0.3):  # up the street
        other |= shared(entity, *ADDRESS, *(("phone",) if chance(rng, 0.5) else ())) | {
            "number": digits(rng, number(rng, 1, 4)).lstrip("0") or "7"
        }
    if chance(rng, 0.2):
        other["org"] = f"{entity['org']} {one_of(rng, ('2', 'II', 'North', 'West', 'Downtown', other['city']))}"


def subsidiary(other, entity, rng):
    """Parent and subsidiary."""
    kind = one_of(rng, ("Holding", "Group", "International", "Services", "Capital", "Logistics"))
    other |= {"org": f"{entity['org'].rsplit(' ', 1)[0]} {kind}"} | shared(entity, "website", "country")
    other |= shared(
        entity, *(ADDRESS if chance(rng, 0.4) else ("city", "state")), *(("phone",) if chance(rng, 0.3) else ())
    )


def neighbour(other, entity, rng):
    """Next door, or in the same house."""
    other |= shared(
        entity,
        "street",
        "city",
        "state",
        "postal",
        "country",
        *(("number",) if chance(rng, 0.4) else ()),
        *(("industry",) if chance(rng, 0.4) else ()),
    )


def near_name(other, entity, rng):
    """The names differ in one word or have one in common."""
    mine = entity["org"].split()
    theirs = other["org"].split()
    other["org"] = " ".join([*mine[:-1], theirs[-1]] if chance(rng, 0.5) else [theirs[0], *mine[1:]])
    other |= shared(
        entity,
        *one_of(
            rng,
            (
                ("city", "state"),
                ("industry",),
                ("city", "state", "industry"),
                ("city", "state", "postal", "agency"),
                ("street", "city"),
            ),
        ),
    )


def other_site(other, entity, rng):
    """One operator: its telephone stands at all its sites."""
    other |= shared(entity, "agency", "website", "email", *(("phone",) if chance(rng, 0.6) else ()), "city", "state")


def blocked_organisation(other, entity, rng):
    """What blocking brings together: any few fields agree."""
    other |= shared(
        entity, *rng.sample(("city", "state", "postal", "industry", "agency", "street", "country"), number(rng, 1, 3))
    )


PEOPLE_ALIKE = (
    (0.10, namesake),
    (0.20, household),
    (0.27, child),
    (0.36, colleague),
    (0.48, near_namesake),
    (1.0, blocked_person),
)
ORGANISATIONS_ALIKE = (
    (0.25, branch),
    (0.35, subsidiary),
    (0.5, neighbour),
    (0.72, near_name),
    (0.82, other_site),
    (1.0, blocked_organisation),
)


def shared(entity, *fields):
    return {field: entity[field] for field in fields}


def misspelt(name, rng):
    """Another real name one letter away, as Smith and Smyth, Meier and Meyer."""
    swaps = [
        ("i", "y"),
        ("e", "a"),
        ("o", "u"),
        ("ss", "s"),
        ("ck", "k"),
        ("th", "t"),
        ("n", "nn"),
        ("er", "ers"),
        ("son", "sen"),
        ("v", "w"),
        ("c", "k"),
        ("m", "n"),
    ]
    for old, new in rng.sample(swaps, 4):
        if old in name[1:]:
            return name[0] + name[1:].replace(old, new, 1)
    return name + "s"


def near_date(birth, rng):
    """Another day in the same month, month or year: two people, not a slip."""
    year, month, day = birth
    return one_of(
        rng,
        (
            (year, month, number(rng, 1, 28)),
            (year, number(rng, 1, 12), day),
            (year + number(rng, 1, 9), month, day),
            (year, number(rng, 1, 12), number(rng, 1, 28)),
            (year, 1, 1),
        ),
    )
