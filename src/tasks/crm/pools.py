"""The values that synthetic records are made of: names, places, streets and words of many countries, drawn by
frequency.

From PyPI packages (Faker's locales and dictionaries, nicknames, anyascii) and, if a folder is given, from reference
lists there. Every value belongs to the training pool or to the test pool by its hash, so nothing that is tested was
seen in training.
"""

import csv
import importlib
import random
import re
import zlib
from bisect import bisect
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import accumulate, pairwise
from math import log10
from pathlib import Path

from anyascii import anyascii

from common import UserError

POOLS = ("train", "test", "all")
REFERENCE_LISTS = {"first": "common-forenames-by-country.csv", "last": "common-surnames-by-country.csv"}
GENDERS_OF = {"F": ("F",), "M": ("M",)}
TEST_SHARE = 5  # one value in five is held out
ZIPF_OFFSET = 8  # frequency of the n-th name: 1 / (n + offset); Faker's weighted lists fall about so
DICTIONARIES = ("en_US", "en_GB", "fr_FR", "it_IT", "nl_NL", "de_DE", "es_ES", "pl_PL", "la")
MOST_CITIES = 3_000
ALPHABETICAL = 0.75  # so much of a list rises with the alphabet
LEAST_VALUES = 6  # a locale whose list is shorter borrows the list of its script
# locale -> (its share of the records, phone country code)
LOCALES = {
    "en_US": (26, "1"),
    "en_GB": (9, "44"),
    "en_AU": (5, "61"),
    "en_CA": (3, "1"),
    "en_IE": (2, "353"),
    "en_IN": (4, "91"),
    "en_KE": (3, "254"),
    "en_NG": (2, "234"),
    "zu_ZA": (1, "27"),
    "tw_GH": (1, "233"),
    "de_DE": (6, "49"),
    "de_AT": (2, "43"),
    "de_CH": (1, "41"),
    "fr_FR": (5, "33"),
    "fr_CA": (1, "1"),
    "es_ES": (3, "34"),
    "es_MX": (2, "52"),
    "es_CO": (1, "57"),
    "it_IT": (3, "39"),
    "pt_BR": (2, "55"),
    "pt_PT": (1, "351"),
    "nl_NL": (3, "31"),
    "nl_BE": (1, "32"),
    "pl_PL": (2, "48"),
    "cs_CZ": (1, "420"),
    "sv_SE": (2, "46"),
    "no_NO": (1, "47"),
    "da_DK": (1, "45"),
    "fi_FI": (1, "358"),
    "hu_HU": (1, "36"),
    "ro_RO": (1, "40"),
    "hr_HR": (1, "385"),
    "tr_TR": (2, "90"),
    "id_ID": (1, "62"),
    "ru_RU": (3, "7"),
    "uk_UA": (1, "380"),
    "bg_BG": (1, "359"),
    "el_GR": (1, "30"),
    "ar_AA": (1, "20"),
    "he_IL": (1, "972"),
    "hi_IN": (1, "91"),
    "ja_JP": (2, "81"),
    "zh_CN": (2, "86"),
    "ko_KR": (1, "82"),
    "vi_VN": (1, "84"),
}
STREET_WORDS = {
    "en": "Street Avenue Road Lane Drive Boulevard Court Place Way Square Terrace Close Parade Crescent "
    "Highway".split(),
    "de": "straße weg platz allee ring gasse".split(),
    "fr": "rue avenue boulevard chemin place impasse".split(),
    "es": "Calle Avenida Plaza Paseo Camino".split(),
    "it": "Via Viale Piazza Corso Largo".split(),
    "pt": "Rua Avenida Travessa Praça".split(),
    "nl": "straat laan weg plein gracht".split(),
    "ru": "улица проспект переулок".split(),
    "uk": "вулиця проспект".split(),
    "pl": ["ul.", "al.", "os."],
    "sv": "gatan vägen".split(),
    "no": "gata veien".split(),
    "da": "gade vej".split(),
    "cs": ["ulice", "náměstí"],
}
JOINED_STREETS = frozenset("de nl sv no da".split())  # Hauptstraße: one word
STREET_FIRST = frozenset("fr es it pt ru uk pl ro".split())  # rue Victor Hugo: the kind before the name
NUMBER_LAST = frozenset("de nl it es pl ru uk sv no da cs hu hr fi el tr bg".split())
ORG_WORDS = (
    "Apex Summit Pioneer Blue Harbor Evergreen Quantum Silver Global Sunrise Northern Vertex Atlas Beacon Crystal "
    "Delta Falcon Granite Horizon Ivory Juniper Keystone Lunar Meridian Nova Orchid Pacific Quarry Redwood Sterling "
    "Liberty Golden Dragon Royal Star Sun Moon River Valley Mountain Ocean Eagle Lion Phoenix Cedar Oak Maple Willow "
    "Rose Lotus Diamond Crown Victory Premier United National American European Central Metro City Capital First "
    "Trinity Heritage Frontier Century Coastal Lakeside Parkview Hilltop Bright Happy Little New Old Grand Red Green "
    "Black White Union Alliance Prime Alpha Omega Sigma Titan Zenith Orion Aurora Cascade Compass Anchor Bridge "
    "Gateway Tower Arch Mission Hope Grace Faith Unity Harmony Community"
).split()
# What an organisation does: the words it may use for it, the longest first, then its industry in a word or two.
TRADES = [
    tuple(line.split("|"))
    for line in """
Systems|Sys|software;Technologies|Tech|software;Software|Soft|software;Solutions|Solns|consulting
Consulting|Consult|consulting;Logistics|Log|transport
Transport|Trans|transport;Foods|Food|food;Bakery|Bakers|food;Energy|Energie|utilities;Media|Med|media
Publishing|Publ|media;Textiles|Textile|manufacturing
Motors|Motor Co|automotive;Auto Repair|Auto|automotive;Health Center|Health Ctr|health;Medical Center|Med Ctr|health
Clinic|Clin|health;Pharmacy|Pharm|health
Dental Care|Dental|health;Hospital|Hosp|health;Builders|Bldrs|construction;Construction|Constr|construction
Travel|Travel Agency|tourism;Printing|Print|media
Insurance|Ins|finance;Bank|Bk|finance;Capital Partners|Capital|finance;Accounting Services|Accounting|finance
Law Office|Law|legal;Engineering|Eng|engineering
Manufacturing|Mfg|manufacturing;Industries|Ind|manufacturing;International|Intl|trade;Trading|Trade|trade
Imports|Import|trade;Hardware|Hdwe|retail
Supermarket|Market|retail;Furniture|Furn|retail;Restaurant|Rest.|american;Cafe|Café|coffee shops
Grill|Grille|american;Bistro|Brasserie|french
Pizzeria|Pizza|italian;Trattoria|Ristorante|italian;Sushi Bar|Sushi|japanese;Diner|Diners|american
Steak House|Steakhouse|steakhouses;Deli|Delicatessen|delis
Kitchen|Kitch.|continental;Hotel|Htl|hotels;Inn|Inn & Suites|hotels;Bar & Grill|Bar|american
Elementary School|Elem School|education
High School|HS|education;Academy|Acad|education;Child Care Center|Daycare|early childhood
Day Care Center|Daycare Ctr|early childhood
Learning Center|Learning Ctr|early childhood;Preschool|Pre-School|early childhood
Nursery School|Nursery|early childhood
Family Center|Family Ctr|social services;Community Center|Comm Ctr|social services
Youth Services|Youth Svcs|social services;Church|Ch.|religious
Foundation|Fdn|non-profit;Association|Assn|non-profit;Museum|Mus.|culture;Theatre|Theater|culture
Gallery|Gal.|culture;Fitness Club|Fitness|leisure
Salon|Hair Salon|beauty;Spa|Day Spa|beauty;Realty|Real Estate|real estate;Properties|Props|real estate
Security|Sec|services
Cleaning Services|Cleaning|services
""".replace("\n", ";").split(";")
    if line
]
LEGAL = {
    "en": "Inc|Incorporated|LLC|L.L.C.|Ltd|Limited|Corp|Corporation|Co|Company|PLC|LLP|Pty Ltd",
    "de": "GmbH|AG|KG|GmbH & Co. KG|e.K.|UG",
    "fr": "SA|SARL|SAS|S.A.R.L.",
    "es": "S.A.|S.L.|SL|SA de CV",
    "it": "S.p.A.|SRL|S.r.l.|SpA",
    "nl": "B.V.|BV|N.V.",
    "pl": "Sp. z o.o.|S.A.",
    "sv": "AB|Aktiebolag",
    "fi": "Oy|Oyj",
    "da": "A/S|ApS",
    "no": "AS|ASA",
    "ru": "ООО|ОАО|ЗАО",
    "uk": "ТОВ",
    "ja": "KK|株式会社",
    "pt": "Ltda|S.A.|Lda",
    "cs": "s.r.o.|a.s.",
    "tr": "A.Ş.|Ltd. Şti.",
    "hu": "Kft.|Zrt.",
    "ro": "SRL|SA",
}
FREE_MAIL = (
    "gmail.com yahoo.com outlook.com hotmail.com icloud.com aol.com gmx.de web.de orange.fr libero.it "
    "mail.ru yandex.ru proton.me live.com"
).split()
JOBS = (
    "Sales Manager|Sales Mgr;Chief Operating Officer|COO;Chief Financial Officer|CFO;Chief Technology Officer|CTO;"
    "Vice President|VP;Account Manager|Account Mgr;Director of Marketing|Marketing Director;"
    "Head of Purchasing|Purchasing Manager;Software Engineer|Software Developer;Office Manager|Office Mgr;"
    "Human Resources Manager|HR Manager;Assistant|Asst.;Accountant|Bookkeeper;Project Manager|PM;"
    "Senior Consultant|Sr. Consultant;Owner|Proprietor;Teacher|Schoolteacher;Physician|Doctor;Lawyer|Attorney;"
    "Painter|Artist;Writer|Author;Politician|Statesman;Engineer|Eng.;Journalist|Reporter;Clergyman|Priest;"
    "Soldier|Military officer;Farmer|Agriculturist;Merchant|Trader;Nurse|Registered Nurse;Composer|Musician"
).split(";")


class Choices:
    """Values drawn by frequency; `rarity` is how many powers of ten a value's frequency is below one."""

    def __init__(self, values, weights=None):
        self.values = list(values)
        weights = list(weights) if weights else [1 / (at + ZIPF_OFFSET) for at in range(len(self.values))]
        self._sums = list(accumulate(weights))
        self._total = self._sums[-1]
        self.rarity = {value: -log10(weight / self._total) for value, weight in zip(self.values, weights, strict=True)}

    def pick(self, rng):
        return self.values[bisect(self._sums, rng.random() * self._total)]

    def even(self, rng):
        return self.values[int(rng.random() * len(self.values))]


@dataclass(eq=False)
class Country:
    locale: str
    language: str
    phone_code: str
    women: Choices
    men: Choices
    last: Choices
    cities: Choices
    streets: Choices
    street_words: list
    legal: list
    states: list
    words: Choices  # what firms call themselves


@dataclass(frozen=True)
class Pools:
    """All countries of one pool, and the lists that they share."""

    pool: str
    reference: str | None = None

    @cached_property
    def shares(self):
        return Choices(LOCALES, [share for share, _ in LOCALES.values()])

    @cached_property
    def words(self):
        """What firms are called: the usual words, and any word of the dictionaries that Faker has."""
        found = [
            *ORG_WORDS,
            *(
                word.capitalize()
                for locale in DICTIONARIES
                for word in provider("lorem", locale).word_list
                if len(word) > 3
            ),
        ]
        found = kept(found, self.pool)
        return Choices(found, [1.0] * len(found))

    @cache  # noqa: B019 - a handful of pools live as long as the process
    def country(self, locale):
        _, code = LOCALES[locale]
        language = locale[:2]
        people = provider("person", locale)
        names = reference_names(self.reference, locale)
        last = Choices(*weighted(people, ("last_names", "last_names_male"), self.pool, names["last"]))
        places = provider("address", locale)
        return Country(
            locale,
            language,
            code,
            Choices(*weighted(people, ("first_names_female", "first_names"), self.pool, names["F"])),
            Choices(*weighted(people, ("first_names_male", "first_names"), self.pool, names["M"])),
            last,
            Choices(cities(places, last, self.pool)),
            Choices(streets(places, last, self.pool, language == "en")),
            STREET_WORDS.get(language, STREET_WORDS["en"]),
            LEGAL.get(language, LEGAL["en"]).split("|"),
            states(places),
            self.words,
        )


@lru_cache(maxsize=8)
def pools(pool="train", reference=None):
    if pool not in POOLS:
        raise UserError(f"--pool {pool}: one of {', '.join(POOLS)}")
    if reference and not Path(reference).is_dir():
        raise UserError(
            f"--reference {reference}: no such folder; it holds lists of names, for example "
            "common-surnames-by-country.csv"
        )
    return Pools(pool, reference)


def in_pool(value, pool):
    return pool == "all" or (zlib.crc32(value.lower().encode()) % TEST_SHARE == 0) == (pool == "test")


def kept(values, pool):
    """The values of one pool. Of a short list the test pool gets a third, so that the two never share a value."""
    values = list(dict.fromkeys(value.strip() for value in values if value and value.strip()))
    if pool == "all":
        return values
    held = {value for value in values if in_pool(value, "test")}
    if len(held) < LEAST_VALUES:
        held = set(sorted(values, key=hash_of)[: max(1, len(values) // 3)])
    return [value for value in values if (value in held) == (pool == "test")]


def provider(kind, locale):
    """Faker's lists of a locale; of the United States' where it has none (Australia's people, Kenya's streets)."""
    try:
        return importlib.import_module(f"faker.providers.{kind}.{locale}").Provider
    except ModuleNotFoundError:
        return importlib.import_module(f"faker.providers.{kind}.en_US").Provider


def scattered(values):
    """An alphabetical list in another order, the same in every process: as it stands, names with A would pass for the
    frequent ones.
    """
    rising = sum(a <= b for a, b in pairwise(values))
    return sorted(values, key=hash_of) if rising > ALPHABETICAL * len(values) else values


def hash_of(value):
    return zlib.crc32(value.lower().encode()), value


def weighted(people, attributes, pool, more=()):
    """(values, weights or None) of the first list of names that the locale fills."""
    for attribute in attributes:
        found = getattr(people, attribute, None)
        if (
            found
            and len(list(found)) >= LEAST_VALUES
            and all(isinstance(value, str) and "{" not in value for value in found)
        ):
            break
    else:
        found = provider("person", "en_US").last_names
    values = kept([*found, *more], pool)
    if isinstance(found, dict) and len(set(found.values())) > 3:
        least = min(found.values())  # what only a reference list knows is taken for rare
        return values, [max(float(found.get(value, least)), 1e-6) for value in values]
    return scattered(values), None


def cities(places, last, pool):
    """The locale's own towns, or towns made of surnames and endings where Faker makes them up as well."""
    found = [
        name for attribute in ("cities", "city_names", "localities", "towns") for name in getattr(places, attribute, ())
    ]
    found = [name if isinstance(name, str) else name[0] for name in found]
    if len(found) > MOST_CITIES:
        found.sort()  # Faker makes Italy's list from a set: its order is another in every process
        found = found[:: len(found) // MOST_CITIES]
    if len(found) < 40:
        endings = [ending for ending in getattr(places, "city_suffixes", ()) if len(ending) > 2] or ["ville"]
        rng = random.Random(1)
        plain = [name for name in last.values if name.isalpha()][:400] or ["Salem"]
        fronts = ["", "", "", "North ", "West ", "New ", "Lake ", "Port ", "St. ", "Mount "]
        found += [
            f"{rng.choice(fronts)}{rng.choice(plain)}{rng.choice(endings)}"
            if rng.random() < 0.7
            else f"{rng.choice(fronts)}{rng.choice(plain)}"
            for _ in range(500)
        ]
    return scattered(kept(found, pool))


def streets(places, last, pool, english):
    """What streets are called after: the locale's titles, surnames, in English words of the landscape and numbers."""
    own = [
        name
        for attribute in ("streets", "street_titles", "bairros", "towns")
        for name in getattr(places, attribute, ())
    ]
    own = [name if isinstance(name, str) else name[0] for name in own]
    scenery = (
        "Oak Maple Cedar Pine Elm Washington Lake Hill Park Main River Church Mill Station Bridge Garden Meadow Forest "
        "Spring High North "
        "South West East Union Market School Prospect Highland Jefferson Lincoln Franklin Victoria King Queen Chestnut "
        "Walnut Sunset "
        "Broadway Vine Grand Ocean Pacific Mission"
    ).split()
    numbered = [
        f"{n}{'th' if 10 < n % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}" for n in range(1, 120)
    ]
    return kept([*scattered(own)[:900], *(scenery + numbered if english and not own else []), *last.values[:400]], pool)


def states(places):
    found = [
        getattr(places, attribute, ())
        for attribute in ("states_abbr", "states", "provinces", "regions", "counties", "prefectures", "estados")
    ]
    return [
        value if isinstance(value, str) else value[-1]
        for value in next((values for values in found if len(values) > 3), ())
    ]


def reference_names(folder, locale):
    """More women's, men's and last names of a country, from lists in the reference folder; empty without one."""
    names = {"F": [], "M": [], "last": []}
    for kind, pattern in REFERENCE_LISTS.items():
        for path in sorted(Path(folder).rglob(pattern)) if folder else ():
            for row in csv_rows(path):
                if row["Country"] == locale[-2:]:
                    name = row["Romanized Name"] or row["Localized Name"]
                    for who in ("last",) if kind == "last" else GENDERS_OF.get(row.get("Gender"), ("F", "M")):
                        names[who].append(name)
    return names


@lru_cache(maxsize=8)
def csv_rows(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [column for column in ("Country", "Romanized Name", "Localized Name") if rows and column not in rows[0]]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}; a list of names has Country, Localized Name and Romanized Name"
        )
    return rows


@lru_cache(maxsize=50_000)
def latin(text):
    """The text in plain Latin letters, as a foreign colleague would type it."""
    return re.sub(r"\s+", " ", anyascii(text)).strip()
