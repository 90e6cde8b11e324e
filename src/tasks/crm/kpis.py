"""What only the CRM task can score: whether the reasoning says true things about the fields, and a case's slices."""

import re
import unicodedata
from dataclasses import dataclass

from tasks.crm.data import RECORDS
from tasks.crm.fields import KINDS, evidence, normal, relation, similarity

# The relations of a field's two values for which a statement is true; `near` values may be called either.
TRUE_OF = {
    "same": {"same"},
    "similar": {"similar", "same", "near"},
    "different": {"different", "similar", "near"},
    "missing": {"left_only", "right_only"},
}
NEAR_AT = 75  # Smith and Smyth, Oak Street and Oak St
OPPOSITE = {"same": "different", "similar": "different", "different": "same"}
# First hit decides. A claim that comparing two texts cannot check is neither true nor false.
POLARITY = [
    ("unchecked", r"nickname\w*|short(?:ened)? form|abbreviat\w*|diminutive|initials?|transliterat\w*|maiden|married"),
    ("similar", r"slight\w*|minor|format\w*|typos?|misspel\w*|spell\w*|transpos\w*|variants?|variations?"),
    (
        "missing",
        r"missing|absent|lack\w*|blank|empty|null|unavailable|unknown|omitted|no \w+ (?:on|in) one|one side|one record"
        r"|only (?:in|on|given|present|listed|appears?|available|provided|record ?[12]|the "
        r"(?:first|second|left|right|other) \w+)"
        r"|not (?:given|provided|present|listed|available|recorded|there|have|filled)|n['’]t have",
    ),
    (
        "different",
        r"differ\w*|mismatch\w*|unmatched|conflict\w*|disagree\w*|unequal|contradict\w*|dissimilar|distinct"
        r"|var(?:y|ies)|chang\w*|inconsistent|another|unrelated|vs|versus",
    ),
    ("similar", r"similar|closely|close|nearly|almost|resembl\w*|alike|partial\w*"),
    (
        "same",
        r"match\w*|same|identical|equal|equals|equivalent|agree\w*|shared?|shares|sharing|overlap\w*|coincid\w*"
        r"|consistent|common|exact\w*|align\w*",
    ),
    ("missing", r"no|without|neither"),
]
POLARITY = [(name, re.compile(rf"\b(?:{pattern})\b", re.I)) for name, pattern in POLARITY]
NEGATION = re.compile(r"\b(?:not(?! only)|no|neither|nor|never|none|without|non)\b|n['’]t\b", re.I)
EXCEPT = re.compile(r"\b(?:except|apart from|aside from|other than)\b", re.I)
ALSO = re.compile(r"\b(?:as do|as does|as is|as are|so do|so does|also|too|likewise|as well)\b", re.I)
# Words about the two cases as a whole, parts of a value, and values themselves: nothing about a field.
ASIDE = re.compile(
    r"\b(?:same|different|distinct|separate|unrelated) (?:real-world "
    r")?(?:persons?|people|individuals?|customers?|contacts?|records?"
    r"|entit(?:y|ies)|organi[sz]ations?)\b|\b(?:no|likely|probable|possible|potential|clear|strong|definite) "
    r"(?:match|duplicate)\b"
    r"(?=\s*[:.;,])|\be?-?mail domains?\b|\b(?:area|country|dialling|dialing) codes?\b|\S+@\S+|\"[^\"]*\""
    r"|\([^()]*\b(?:vs|versus)\b[^()]*\)",
    re.I,
)
CLAUSE = re.compile(
    r";|\.(?=\s|$)|,?\s\b(?:but|while|whereas|although|though|yet|however|despite|because|since)\b", re.I
)
PART = re.compile(r",|&|\band\b|\bor\b|\bplus\b|(?=\b(?:except|apart from|aside from|other than)\b)", re.I)
SPELLINGS = {
    "name": ["full name", "contact name", "customer name", "name"],
    "first_name": ["first name", "given name", "forename"],
    "last_name": ["last name", "surname", "family name"],
    "middle_name": ["middle name", "middle initial"],
    "company": [
        "company name",
        "account name",
        "business name",
        "legal name",
        "company",
        "companies",
        "organisation",
        "organization",
        "employer",
    ],
    "email": ["email address", "e-mail", "email"],
    "phone": ["phone number", "telephone", "phone", "mobile", "cell"],
    "street": ["street address", "street name", "street"],
    "city": ["city", "cities", "town"],
    "postal_code": ["postal code", "postcode", "zip code", "zip"],
    "state": ["state", "province", "region"],
    "country": ["country", "countries"],
    "birth_date": ["birth date", "date of birth", "dates of birth", "birthday", "dob"],
    "website": ["website", "web site", "domain", "url"],
    "birth_place": ["birth place", "place of birth", "birthplace"],
    "gender": ["gender", "sex"],
    "house_number": ["house number", "street number"],
    "unit": ["unit", "apartment", "suite"],
    "agency": ["agency", "parent company"],
    "industry": ["industry", "sector"],
    "job_title": ["job title", "title", "position", "occupation"],
    "tax_id": ["tax id", "tax number", "vat number", "vat"],
    "address": ["mailing address", "address"],
}
# A statement about the whole speaks of its parts.
PARTS_OF = {
    "name": ("first_name", "last_name"),
    "address": ("street", "house_number", "city", "postal_code", "state", "country"),
}
assert SPELLINGS.keys() == KINDS.keys() | {"address"}


@dataclass(frozen=True)
class Part:
    """A piece of a clause between commas and `and`: the fields that it names and what it says of them."""

    kinds: list[str]
    polarity: str | None
    leads: bool  # the word stands before the field, as in `same email`, and so holds for the list that follows
    also: bool


def statements(reasoning, kinds):
    """(kind, polarity or None) for each field that a reasoning names; kinds are the case's own fields besides the known
    ones.
    """
    pattern, kind_of = mention_pattern(kinds)
    found = []
    for clause in CLAUSE.split(ASIDE.sub(" ", spaced(reasoning, kinds))):
        parts = []
        for text in PART.split(clause):
            parts.append(part_of(text, pattern, kind_of, parts))
        found += [(kind, part.polarity or borrowed(parts, at)) for at, part in enumerate(parts) for kind in part.kinds]
    return list(dict.fromkeys(found))


def spaced(reasoning, kinds):
    """Key names as words: `first_name` and `FirstName` are the first name; a case's own key of no known kind stays as
    it is.
    """
    own = set(kinds) - SPELLINGS.keys()
    words = (
        word if word.lower() in own else re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", word)
        for word in re.split(r"(\W+)", reasoning)
    )
    return re.sub(r"\bfirst (?:and|&) last name", "first name and last name", "".join(words), flags=re.I)


def mention_pattern(kinds):
    kind_of = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}
    kind_of |= {
        spelling: kind
        for kind in kinds
        if kind not in SPELLINGS and len(kind) > 2
        for spelling in (kind, kind.replace("_", " "))
    }
    longest_first = sorted(kind_of, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")(?:s|es)?\b", re.I), kind_of


def part_of(text, pattern, kind_of, before):
    mentions = list(pattern.finditer(text))
    kinds = list(dict.fromkeys(kind_of[match.group(1).lower()] for match in mentions))
    rest = pattern.sub(lambda match: " " * len(match.group()), text)
    name, hit = next(((name, hit) for name, words in POLARITY if (hit := words.search(rest))), (None, None))
    if hit and NEGATION.search(rest, 0, hit.start()):
        name = OPPOSITE.get(name, name)
    if not hit and EXCEPT.search(text):
        name = OPPOSITE.get(next((part.polarity for part in reversed(before) if part.polarity), "same"))
    leads = bool(mentions) and (not hit or hit.start() < mentions[0].start())
    return Part(kinds, name, leads, bool(ALSO.search(text)))


def borrowed(parts, at):
    """A field in a list takes the word of its list: `email and phone match`, `same email and phone`."""
    after = next((part for part in parts[at + 1 :] if part.polarity), None)
    if after and not after.leads:
        return after.polarity
    before = next((part for part in reversed(parts[:at]) if part.polarity), None)
    return before.polarity if before and (before.leads or parts[at].also) else None


def score(row, answer):
    """Counts for one answer: statements made, true ones, fields invented, and fields it could have named."""
    if answer is None:
        return {}
    facts = evidence(row["input"])
    relations = {item.kind: item.relation for item in facts}
    judgements = name_parts(facts) | {item.kind: judged(item.kind, item.left, item.right) for item in facts}
    claims = statements(answer["reasoning"], relations)
    invented = [kind for kind, polarity in claims if not relations_of(kind, judgements) and polarity != "missing"]
    checked = [(kind, polarity) for kind, polarity in claims if polarity in TRUE_OF and kind not in invented]
    telling = {kind for kind, found in relations.items() if found in ("same", "different")}
    named = {part for kind, _ in claims for part in (kind, *PARTS_OF.get(kind, ()))}
    if named & {"first_name", "last_name"}:
        named.add("name")
    return {
        "statements": len(checked) + len(invented),
        "true": sum(is_true(kind, polarity, judgements) for kind, polarity in checked),
        "invented": len(invented),
        "telling": len(telling),
        "named": len(telling & named),
    }


def judged(kind, left, right):
    """The field evidence, with room for values that one reader calls similar and another different."""
    found = relation(kind, left, right)
    return (
        "near"
        if found == "different" and similarity(kind, normal(kind, left), normal(kind, right)) >= NEAR_AT
        else found
    )


def name_parts(facts):
    """How first and last name compare where both records hold full names only."""
    whole = next((item for item in facts if item.kind == "name" and item.left and item.right), None)
    if not whole:
        return {}
    words = [normal("name", value).split() or [""] for value in (whole.left, whole.right)]
    return {kind: judged(kind, *(names[at] for names in words)) for kind, at in (("first_name", 0), ("last_name", -1))}


def relations_of(kind, relations):
    """How the values of a field compare; of its parts where only they are there."""
    return [relations[part] for part in ((kind,) if kind in relations else PARTS_OF.get(kind, ())) if part in relations]


def is_true(kind, polarity, relations):
    """`Same` and `similar` must hold for every part on both sides, `different` and `missing` for one; a missing field
    may be missing on both.
    """
    found = relations_of(kind, relations)
    if polarity == "missing":
        return not found or any(one in TRUE_OF["missing"] for one in found)
    fits = [one in TRUE_OF[polarity] for one in found if one not in TRUE_OF["missing"]]
    return any(fits) if polarity == "different" else bool(fits) and all(fits)


# name -> (what it means, how it is made from summed counts)
AGGREGATES = {
    "faithful_pct": ("field statements in valid answers that are true", "true", "statements"),
    "invented_pct": ("field statements about fields that neither record has", "invented", "statements"),
    "fields_named_pct": ("agreeing or differing fields that the reasoning names", "named", "telling"),
}


def slices(case):
    """The named groups that a case belongs to, for KPIs by slice."""
    facts = evidence(case)
    kinds = {item.kind for item in facts}
    text = " ".join(item.left + item.right for item in facts)
    one_sided = sum(item.relation in ("left_only", "right_only") for item in facts)
    return {
        "fields": "some missing on one side" if one_sided else "all on both sides",
        "script": "Latin" if all(_latin(c) for c in text if c.isalpha()) else "non-Latin",
        "subject": "person" if kinds & {"name", "first_name", "last_name", "birth_date"} else "organisation",
    }


def _latin(letter):
    return letter.isascii() or "LATIN" in unicodedata.name(letter, "")


COMPARED = RECORDS  # what the two sides of the view below are


def compare(case):
    """Rows for a side-by-side view: field, left value, right value, relation."""
    return [
        {"field": item.words, "left": item.left, "right": item.right, "relation": item.relation}
        for item in evidence(case)
    ]
