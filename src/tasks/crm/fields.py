"""Field evidence: which fields of two records mean the same thing, and how their values compare.

Baseline features, reasonings, faithfulness and the report's side-by-side view all stand on `evidence`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz

from tasks.crm.data import plain

# kind -> the key names that mean it, after splitting camelCase and dropping everything but letters and digits.
KINDS = {
    "name": "name fullname contactname displayname customername person",
    "first_name": "firstname givenname forename fname first",
    "last_name": "lastname surname familyname lname last",
    "company": "company companyname organization organisation organizationname organisationname employer account accountname business businessname legalname",
    "email": "email emailaddress mail emailid primaryemail workemail",
    "phone": "phone phonenumber telephone tel mobile mobilephone cell fax workphone homephone primaryphone",
    "street": "street streetaddress address addressline addressline1 address1 addr line1 mailingstreet billingstreet",
    "city": "city town locality municipality mailingcity billingcity suburb",
    "postal_code": "postalcode postcode zip zipcode plz mailingpostalcode billingpostalcode",
    "state": "state province region county stateprovince",
    "country": "country countrycode countryname nation",
    "birth_date": "birthdate dateofbirth dob birthday born",
    "website": "website url web homepage domain",
    "job_title": "jobtitle title position role",
    "tax_id": "taxid vat vatid vatnumber ein taxnumber ssn nationalid socsecid",
}
KIND_OF_KEY = {alias: kind for kind, aliases in KINDS.items() for alias in aliases.split()}
# Keys that name the row in its own system say nothing about who it is.
IGNORED_KEYS = frozenset("id recordid recid rowid contactid crmid source sourcesystem createdat updatedat".split())
SIMILAR_AT = 82
LEGAL_FORMS = re.compile(r"\b(inc|incorporated|ltd|limited|llc|corp|corporation|co|company|gmbh|ag|sa|sas|sarl|srl|spa|bv|nv|ab|oy|plc|ooo|kk|pty)\b\.?", re.I)


@dataclass(frozen=True)
class Evidence:
    kind: str       # what the field means; an unknown key is a kind of its own
    left: str
    right: str
    relation: str   # same, similar, different, left_only, right_only

    @property
    def words(self):
        return self.kind.replace("_", " ")


def evidence(case):
    """One Evidence per kind of field that either record fills."""
    left, right = by_kind(case["record1"]), by_kind(case["record2"])
    _meet_at_full_name(left, right)
    return [Evidence(kind, left.get(kind, ""), right.get(kind, ""), relation(kind, left.get(kind, ""), right.get(kind, "")))
            for kind in dict.fromkeys([*left, *right])]


def by_kind(record):
    """A record's filled values by what they mean; several values of one kind are joined."""
    found = {}
    for key, value in flat(record):
        kind = kind_of(key)
        if kind and value.strip():
            found[kind] = f"{found[kind]} {value.strip()}" if kind in found else value.strip()
    return found


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
    if letters in IGNORED_KEYS:
        return None
    return KIND_OF_KEY.get(letters, key.strip().lower() or None)


def _meet_at_full_name(left, right):
    """Where one side has a full name and the other its parts, compare both as full names."""
    for a, b in ((left, right), (right, left)):
        if "name" in a and "name" not in b and ("first_name" in b or "last_name" in b):
            b["name"] = " ".join(b.pop(part) for part in ("first_name", "last_name") if part in b)
            for part in ("first_name", "last_name"):
                a.pop(part, None)


def relation(kind, left, right):
    if not left or not right:
        return "left_only" if left else "right_only"
    a, b = normal(kind, left), normal(kind, right)
    if a == b:
        return "same"
    return "similar" if similarity(kind, a, b) >= SIMILAR_AT else "different"


def similarity(kind, a, b):
    """0 to 100 between two normalised values; numbers are the same or not, one slip in a long one is similar."""
    if kind in ("phone", "postal_code", "tax_id", "birth_date"):
        return fuzz.ratio(a, b) if len(a) >= 7 and len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) <= 2 else 0.0
    return max(fuzz.ratio(a, b), fuzz.token_sort_ratio(a, b))


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
    if kind in ("postal_code", "tax_id", "birth_date"):
        return plain(value)
    if kind == "name":
        last, _, first = value.partition(",")
        value = f"{first} {last}"
    return " ".join(word for word in (plain(word) for word in re.split(r"[\s,;/]+", value)) if word)
