"""Field evidence: which fields of two records mean the same thing, and how their values compare.

Baseline features, reasonings, faithfulness and the report's side-by-side view all stand on `evidence`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz
from rapidfuzz.distance import OSA

from entity_resolution.plain_text import plain

# kind -> the key names that mean it, as words; how a key writes them (case, underscores, spaces) does not matter.
KINDS = {
    "name": "name|full name|contact name|display name|customer name|person|person name|client|nombre completo|"
    "nom complet|naam|nome completo",
    "first_name": "first name|given name|forename|fname|first|givenname|vorname|prénom|nombre|voornaam|nome|"
    "imię|имя|名",
    "middle_name": "middle name|middle initial|second name|mname|middle|zweiter vorname|отчество",
    "last_name": "last name|surname|family name|lname|last|nachname|familienname|nom|apellido|apellidos|achternaam|"
    "cognome|nazwisko|фамилия|姓",
    "company": "company|company name|organization|organisation|organization name|organisation name|employer|account|"
    "account name|business|business name|legal name|site name|store name|firma|unternehmen|société|entreprise|"
    "empresa|azienda|bedrijf|компания|会社名",
    "agency": "agency|parent company|parent account|parent|operator|owner|group name|holding|träger|programme|program",
    "industry": "industry|sector|type|category|business type|branche|line of business",
    "email": "email|email address|mail|email id|primary email|work email|mail address|contact email|correo|courriel|"
    "почта",
    "phone": "phone|phone number|telephone|tel|mobile|mobile phone|cell|fax|work phone|home phone|primary phone|"
    "contact phone|telefon|téléphone|teléfono|telefono|telefoon|телефон|電話",
    "street": "street|street address|address|address line|address line 1|address 1|addr|line 1|mailing street|"
    "billing street|full address|street name|strasse|straße|anschrift|adresse|rue|calle|dirección|indirizzo|straat|"
    "улица|адрес|住所",
    "house_number": "house number|street number|building number|house no|number|nr|hausnummer|numéro|número|"
    "numero civico|huisnummer|дом",
    "unit": "unit|apartment|suite|address 2|address line 2|line 2|apt|flat",
    "city": "city|town|locality|municipality|mailing city|billing city|suburb|place|ort|stadt|wohnort|ville|ciudad|"
    "città|plaats|miasto|город|市",
    "postal_code": "postal code|postcode|zip|zip code|plz|postleitzahl|mailing postal code|billing postal code|"
    "code postal|código postal|cap|индекс|郵便番号",
    "state": "state|province|region|county|state province|bundesland|provincia|état",
    "country": "country|country code|country name|nation|land|pays|país|paese|страна",
    "birth_date": "birth date|date of birth|dob|birthday|born|birth|geburtsdatum|date de naissance|"
    "fecha de nacimiento|data di nascita|дата рождения|生年月日",
    "birth_place": "birth place|place of birth|birthplace|pob|geburtsort|lieu de naissance",
    "gender": "gender|sex|geschlecht|sexe|sexo|sesso|пол",
    "website": "website|url|web|homepage|domain|web site|webseite|site web|sitio web",
    "job_title": "job title|title|position|role|occupation|profession|job|beruf|métier|cargo|функция",
    "tax_id": "tax id|vat|vat id|vat number|ein|tax number|ssn|national id|soc sec id|steuernummer|ust id|nif|siret|"
    "partita iva|инн",
}
KIND_OF_KEY = {
    re.sub(r"[\W_]+", "", words).lower(): kind for kind, aliases in KINDS.items() for words in aliases.split("|")
}
# Words that say whose or which field it is, not what it holds: contact_email, BillingCity, customerFirstName.
WHOSE = re.compile(
    r"^(?:contact|customer|client|person|primary|main|mailing|billing|shipping|home|work|office|current|crm|kunde|lead"
    r"|acct|account)(?=.)"
)
# Keys that name the row in its own system, and free remarks, say nothing about who it is.
IGNORED_KEYS = frozenset(
    "id recordid recid rowid contactid customerid accountid crmid externalid uuid guid key source sourceid "
    "sourcesystem createdat updatedat created updated modified lastmodified lastupdated createdon modifiedon "
    "creationdate note notes comment comments remark remarks description memo bemerkung bemerkungen".split()
)
SIMILAR_AT = 82
NOTHING = frozenset(
    ("", "n/a", "na", "-", "--", "none", "null", "nan", "unknown", "not available", "?", ".")
)  # how systems write that they know nothing
NUMBERS = frozenset(("phone", "postal_code", "tax_id", "birth_date", "house_number"))
ADDRESSED = frozenset(("email", "website"))  # one letter more or less is another mailbox, another site
ONE_SLIP_FROM = 5  # letters; Mary and Mark, Dan and Jan are two names
SWAPPED_FROM = 4  # Kira and Kiar
HELD_WITHIN = frozenset(("street", "company", "name"))  # a longer form holds the shorter one whole
BETWEEN_WORDS = re.compile(r"[\s,;/]+")
NUMBERED = re.compile(r"\d$")  # Attribute_2, col7: a key that names nothing
TELLTALE = [
    ("email", re.compile(r"[^@\s]+@[^@\s]+$")),
    ("birth_date", re.compile(r"(?:\d{1,2}[-./]\d{1,2}[-./](?:1[5-9]|20)\d\d|(?:1[5-9]|20)\d\d[-./]\d\d[-./]\d\d)$")),
    ("website", re.compile(r"(?:https?://|www\.)\S+$")),
    ("phone", re.compile(r"\+?[\d ().\-/]{7,}$")),
]
NAME_PARTS = ("first_name", "last_name")
MONTHS = frozenset(f"{month:02}" for month in range(1, 13))
STREET_WORDS = {
    "st": "street",
    "str": "street",
    "strasse": "street",
    "ave": "avenue",
    "av": "avenue",
    "rd": "road",
    "dr": "drive",
    "ln": "lane",
    "blvd": "boulevard",
    "blv": "boulevard",
    "bd": "boulevard",
    "ct": "court",
    "pl": "place",
    "sq": "square",
    "hwy": "highway",
    "pkwy": "parkway",
    "ter": "terrace",
    "cir": "circle",
    "n": "north",
    "s": "south",
    "e": "east",
    "w": "west",
    "c": "calle",
    "avda": "avenida",
}
LEGAL_FORMS = re.compile(
    r"\b(inc|incorporated|ltd|limited|llc|corp|corporation|co|company|gmbh|ag|sa|sas|sarl|srl|spa|bv|nv|ab|oy|plc"
    r"|ooo|kk|pty)\b\.?",
    re.I,
)


@dataclass(frozen=True)
class Evidence:
    kind: str  # what the field means; an unknown key is a kind of its own
    left: str
    right: str
    relation: str  # same, similar, different, left_only, right_only

    @property
    def words(self):
        return self.kind.replace("_", " ")


def evidence(case):
    """One Evidence per kind of field that either record fills."""
    left = by_kind(case["record1"])
    right = by_kind(case["record2"])
    _meet_at_full_name(left, right)
    return [
        Evidence(kind, left.get(kind, ""), right.get(kind, ""), relation(kind, left.get(kind, ""), right.get(kind, "")))
        for kind in dict.fromkeys([*left, *right])
    ]


def uncompared(case):
    """(key, value in the one record, in the other) of keys that carry no evidence by themselves: ids, remarks, time
    stamps.
    """
    found = [{}, {}]
    for values, record in zip(found, (case["record1"], case["record2"]), strict=True):
        for key, value in flat(record):
            if kind_of(key) is None and value.strip():
                values[key] = f"{values[key]} {value.strip()}" if key in values else value.strip()
    return [(key, found[0].get(key, ""), found[1].get(key, "")) for key in dict.fromkeys([*found[0], *found[1]])]


def by_kind(record):
    """A record's filled values by what they mean; several values of one kind are joined."""
    found = {}
    for key, value in record.items() if all(type(value) is str for value in record.values()) else flat(record):
        kind = kind_of(key)
        if kind not in KINDS and kind and NUMBERED.search(kind):
            kind = kind_by_value(value) or kind
        value = value.strip()
        if kind and value.lower() not in NOTHING:
            found[kind] = f"{found[kind]} {value}" if kind in found else value
    return found


def kind_by_value(value):
    """What a column without a name must hold, where its values give it away."""
    return next((kind for kind, pattern in TELLTALE if pattern.match(value.strip())), None)


def flat(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from flat(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from flat(item, key)
    elif value is not None:
        yield key, str(value)


@lru_cache(maxsize=20_000)
def kind_of(key):
    """The kind of a key name; None for keys that carry no evidence."""
    letters = re.sub(r"[\W_]+", "", key).lower()
    if {letters, WHOSE.sub("", letters), letters.rstrip("0123456789")} & IGNORED_KEYS:
        return None
    return KIND_OF_KEY.get(letters) or KIND_OF_KEY.get(WHOSE.sub("", letters)) or key.strip().lower() or None


def _meet_at_full_name(left, right):
    """Where one side has a full name and the other its parts, compare both as full names; likewise an organisation's
    one name.
    """
    for a, b in ((left, right), (right, left)):
        if "name" in a and "name" not in b and ("first_name" in b or "last_name" in b):
            b["name"] = " ".join(b.pop(part) for part in NAME_PARTS if part in b)
            for part in NAME_PARTS:
                a.pop(part, None)
        elif "name" in a and "name" not in b and "company" in b and "company" not in a:
            a["company"] = a.pop("name")
        if "street" in a and "street" in b and "house_number" in a and "house_number" not in b:
            a["street"] = f"{a.pop('house_number')} {a['street']}"


def relation(kind, left, right):
    if not left or not right:
        return "left_only" if left else "right_only"
    a = normal(kind, left)
    b = normal(kind, right)
    if a == b:
        return "same"
    return "similar" if similarity(kind, a, b) >= SIMILAR_AT else "different"


def similarity(kind, a, b):
    """0 to 100 between two normalised values; numbers are the same or not, one slip in a long one is similar."""
    if kind in NUMBERS:
        return (
            fuzz.ratio(a, b)
            if len(a) >= 7 and len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 2
            else 0.0
        )
    if kind in HELD_WITHIN:
        fewer, more = sorted((set(a.split()), set(b.split())), key=len)
        if len(fewer) > 1 and fewer <= more:
            return 95.0
    if kind in ("first_name", "name") and same_but_short_forms(a, b):
        return 90.0
    if kind in ("first_name", "middle_name") and is_initial(a, b):
        return 85.0  # an initial that fits
    found = max(fuzz.ratio(a, b), fuzz.token_sort_ratio(a, b))
    return max(found, 85.0) if is_one_slip(kind, a, b) else found


def is_one_slip(kind, a, b):
    """Smith and Smyth, Adams and Adasm: one letter is wrong, missing or too many, or two neighbours are swapped.

    By the share of equal letters alone a word of five would be another one for a single wrong letter.
    """
    if kind in ADDRESSED or OSA.distance(a, b, score_cutoff=1) != 1:
        return False
    shorter = min(len(a), len(b))
    return shorter >= ONE_SLIP_FROM or (shorter >= SWAPPED_FROM and sorted(a) == sorted(b))


def same_but_short_forms(a, b):
    """Bob Miller, R. Miller and Robert Miller: every word is shared, a known short form, or beside a shared one an
    initial that fits.
    """
    left = a.split()
    right = b.split()
    if not left or len(left) != len(right):
        return False
    words = list(zip(left, right, strict=True))
    shares_a_word = any(x == y and len(x) > 1 for x, y in words)
    return all(x == y or y in short_forms(x) or (shares_a_word and is_initial(x, y)) for x, y in words)


def is_initial(a, b):
    return min(len(a), len(b)) == 1 and a[:1] == b[:1]


@lru_cache(maxsize=20_000)
def short_forms(name):
    """The names that stand for a first name or that it stands for."""
    table = nickname_table()
    return frozenset(table.nicknames_of(name) | table.canonicals_of(name))


@lru_cache(maxsize=1)
def nickname_table():
    from nicknames import NickNamer

    return NickNamer()


@lru_cache(maxsize=100_000)
def normal(kind, value):
    """The value without the differences that never matter for its kind."""
    if kind == "phone":
        return re.sub(r"\D", "", value)[-9:]
    if kind == "email":
        return value.strip().lower()
    if kind == "website":
        return re.sub(r"^(https?://)?(www\.)?", "", value.strip().lower()).rstrip("/")
    if kind == "company":
        return " ".join(plain(word) for word in LEGAL_FORMS.sub(" ", value).split()) or plain(value)
    if kind == "birth_date":
        return normal_date(value)
    if kind in NUMBERS:
        return plain(value)
    if kind == "gender":
        return plain(value)[:1]
    if kind == "name":
        last, _, first = value.partition(",")
        value = f"{first} {last}"
    words = [word for word in map(plain, BETWEEN_WORDS.split(value)) if word]
    return " ".join(STREET_WORDS.get(word, word) for word in words) if kind == "street" else " ".join(words)


def normal_date(value):
    """Year first, then the two other groups in order of size: systems disagree on which of them is the day."""
    groups = re.findall(r"\d+", value)
    if len(groups) == 1 and len(groups[0]) == 8:
        digits = groups[0]
        at = 4 if digits[4:6] in MONTHS or digits[:2] in ("19", "20") else 0
        groups = [digits[:4], digits[4:6], digits[6:]] if at else [digits[4:], digits[:2], digits[2:4]]
    year = next((group for group in groups[:3] if len(group) == 4), None)
    if len(groups) < 3 or year is None:
        return plain(value)
    rest = groups[:3]
    rest.remove(year)
    return year + "".join(sorted(group.zfill(2) for group in rest))
