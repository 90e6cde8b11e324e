"""What a sentence states of the fields, and whether the comparison of the two records says the same.

The review page, `?detail=true`, the report and the KPIs read statements here, and take the comparison from
`fields.evidence` alone.
"""

import re
from dataclasses import dataclass

from tasks.crm.fields import KINDS, normal, relation

ONE_SIDED = frozenset(("left_only", "right_only"))
WORST_FIRST = ("different", "similar", "same")  # the first that a part has stands for the whole
NOT_GIVEN = "not_given"  # neither record fills the field
GIVEN = "given"  # what is stated of a field that is only named
OPPOSITE = {"same": "different", "similar": "different", "different": "same"}
# First hit decides. A claim that comparing two texts cannot check is neither true nor false.
POLARITY = [
    ("unchecked", r"nickname\w*|short(?:ened)? form|abbreviat\w*|diminutive|initials?|transliterat\w*|maiden|married"),
    ("similar", r"slight\w*|minor|format\w*|typos?|misspel\w*|spell\w*|transpos\w*|variants?|variations?"),
    (
        "one_sided",
        r"one side|one record|only (?:in|on|given|present|listed|appears?|available|provided|record ?[12]|the "
        r"(?:first|second|left|right|other) \w+)",
    ),
    (
        "missing",
        r"missing|absent|lack\w*|blank|empty|null|unavailable|unknown|omitted"
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
# What a sentence is made of: a key of that name is not recognised in it.
LITTLE_WORDS = frozenset(
    "a an and are as at be both but by do does for has have in is it its no non nor not of on one only or side sides "
    "so the to too vs was with".split()
)
# Keys that name nothing, as systems number them: a sentence may speak of one that neither record has.
NUMBERED = r"(?:field|attribute|attr|column|col|value|spalte|c|f)[ _]?\d{1,3}"
# A statement about the whole speaks of its parts.
PARTS_OF = {
    "name": ("first_name", "last_name"),
    "address": ("street", "house_number", "city", "postal_code", "state", "country"),
}
assert SPELLINGS.keys() == KINDS.keys() | {"address"}


@dataclass(frozen=True)
class Statement:
    """That the values of a field are the same, similar or different, or that one is missing."""

    kind: str
    words: str  # that name the field in the sentence
    stated: str | None  # None where the field is only named; `unchecked` where no comparison of texts can tell


@dataclass(frozen=True)
class Judged:
    """A statement beside what the comparison found."""

    statement: Statement
    evidence: str
    is_supported: bool | None  # None where nothing was stated that a comparison can tell


@dataclass(frozen=True)
class Part:
    """A piece of a clause between commas and `and`: the fields that it names and what it says of them."""

    kinds: dict[str, str]  # each with the words that name it
    polarity: str | None
    leads: bool  # the word stands before the field, as in `same email`, and so holds for the list that follows
    also: bool


def statements(reasoning, kinds):
    """A Statement for each field that a reasoning names; kinds are the case's own fields besides the known ones."""
    pattern, kind_of = mention_pattern(kinds)
    found = {}
    for clause in CLAUSE.split(ASIDE.sub(" ", spaced(reasoning, kinds))):
        parts = []
        for text in PART.split(clause):
            parts.append(part_of(text, pattern, kind_of, parts))
        for at, part in enumerate(parts):
            stated = part.polarity or borrowed(parts, at)
            for kind, words in part.kinds.items():
                found.setdefault((kind, stated), Statement(kind, words, stated))
    return list(found.values())


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
        if kind not in SPELLINGS and not {kind, f"{kind}s", f"{kind}es"} & LITTLE_WORDS
        for spelling in (kind, kind.replace("_", " "))
    }
    longest_first = sorted(kind_of, key=len, reverse=True)
    # A key may end in what is no letter, where \b would not hold.
    mentions = "|".join([*map(re.escape, longest_first), NUMBERED])
    return re.compile(rf"(?<!\w)({mentions})(?:s|es)?(?!\w)", re.I), kind_of


def part_of(text, pattern, kind_of, before):
    mentions = list(pattern.finditer(text))
    kinds = {}
    for match in mentions:
        name = match.group(1).lower()
        kinds.setdefault(kind_of.get(name, name), match.group())
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


def judged(reasoning, facts):
    """Every statement of a sentence beside what the comparison found."""
    relations = name_parts(facts) | {item.kind: item.relation for item in facts}
    found = []
    for one in statements(reasoning, [item.kind for item in facts]):
        parts = relations_of(one.kind, relations)
        found.append(Judged(one, whole(parts), is_supported(one.stated, parts)))
    return found


def name_parts(facts):
    """How first and last name compare where both records hold full names only."""
    names = next((item for item in facts if item.kind == "name" and item.left and item.right), None)
    if not names:
        return {}
    left, right = (normal("name", value).split() or [""] for value in (names.left, names.right))
    return {kind: relation(kind, left[at], right[at]) for kind, at in (("first_name", 0), ("last_name", -1))}


def relations_of(kind, relations):
    """How the values of a field compare; of its parts where only they are there."""
    return [relations[part] for part in ((kind,) if kind in relations else PARTS_OF.get(kind, ())) if part in relations]


def whole(parts):
    """One relation for a field or for its parts together: they differ where one part does."""
    return next((found for found in (*WORST_FIRST, *ONE_SIDED) if found in parts), NOT_GIVEN)


def is_supported(stated, parts):
    """Whether the comparison says what is stated; None where nothing is stated that it could say.

    What is said to be missing may be missing in one part, or in both records.
    """
    if stated in ("missing", "one_sided") and any(part in ONE_SIDED for part in parts):
        return True
    if stated == "missing":
        return not parts
    if not parts:
        return False
    return whole(parts) == stated if stated in (*WORST_FIRST, "one_sided") else None


def unsupported(reasoning, facts):
    """What a sentence states and the comparison does not show: the field, its name in the sentence, and both."""
    return [
        {
            "field": one.statement.kind.replace("_", " "),
            "words": one.statement.words,
            "stated": one.statement.stated or GIVEN,
            "evidence": one.evidence,
        }
        for one in judged(reasoning, facts)
        if one.is_supported is False
    ]
