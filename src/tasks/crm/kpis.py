"""What only the CRM task can score: does the reasoning say true things about the fields, and which slice is a case in."""

import re
import unicodedata

from tasks.crm.fields import KINDS, evidence

TRUE_OF = {
    "same": {"same"},
    "similar": {"similar", "same"},
    "different": {"different", "similar"},
    "missing": {"left_only", "right_only"},
}
# First hit decides, so negated agreement stands before agreement.
POLARITY = [
    ("missing", r"missing|absent|only (?:in|on)|lacks?|lacking|not given|not provided|no \w+ (?:on|in) one|one side"),
    ("different", r"differ\w*|do(?:es)? not match|don't match|doesn't match|mismatch\w*|conflict\w*|disagree\w*|not the same|unequal|contradict\w*"),
    ("similar", r"similar|close|nearly|almost|resembl\w*|alike|variant|spelling|typo"),
    ("same", r"match\w*|same|identical|equal|agree\w*|shared?|shares"),
]
POLARITY = [(name, re.compile(rf"\b(?:{pattern})\b", re.I)) for name, pattern in POLARITY]
# Words about the two cases as a whole, not about a field.
VERDICT_WORDS = re.compile(r"\b(?:same|different|distinct) (?:person|people|individuals?|customers?|contacts?|records?|entit(?:y|ies)|organi[sz]ations?)\b", re.I)
CLAUSE = re.compile(r"[;.]|,?\s\b(?:but|while|whereas|although|though|yet|however)\b", re.I)
SPELLINGS = {
    "name": ["full name", "names", "name"], "first_name": ["first name", "given name", "forename"],
    "last_name": ["last name", "surname", "family name"], "company": ["company name", "company", "organisation", "organization", "employer"],
    "email": ["email address", "e-mail", "emails", "email"], "phone": ["phone number", "telephone", "phones", "phone", "mobile"],
    "street": ["street address", "street", "address"], "city": ["city", "town"],
    "postal_code": ["postal code", "postcode", "zip code", "zip"], "state": ["state", "province", "region"], "country": ["country"],
    "birth_date": ["birth date", "date of birth", "birthday", "dob"], "website": ["website", "domain", "url"],
    "job_title": ["job title", "title", "position"], "tax_id": ["tax id", "tax number", "vat number", "vat"],
}
assert SPELLINGS.keys() == KINDS.keys()


def statements(reasoning, kinds):
    """(kind, polarity or None) for each field that a reasoning names; kinds are the case's own fields besides the known ones."""
    pattern, kind_of = mention_pattern(kinds)
    found = []
    for clause in CLAUSE.split(VERDICT_WORDS.sub(" ", reasoning)):
        mentioned = [kind_of[match.group(1).lower()] for match in pattern.finditer(clause)]
        polarity = next((name for name, words in POLARITY if words.search(clause)), None)
        found += [(kind, polarity) for kind in dict.fromkeys(mentioned)]
    return found


def mention_pattern(kinds):
    kind_of = {spelling: kind for kind, spellings in SPELLINGS.items() for spelling in spellings}
    kind_of |= {kind.replace("_", " ").lower(): kind for kind in kinds if kind not in SPELLINGS and len(kind) > 2}
    longest_first = sorted(kind_of, key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, longest_first)) + r")\b", re.I), kind_of


def score(case, answer):
    """Counts for one valid answer: statements made, true ones, fields invented, and fields it could have named."""
    relations = {item.kind: item.relation for item in evidence(case)}
    said = statements(answer["reasoning"], relations)
    known = [(kind, polarity) for kind, polarity in said if _present(kind, relations)]
    true = [kind for kind, polarity in known if polarity is None or _relation(kind, relations) & TRUE_OF[polarity]]
    telling = [kind for kind, relation in relations.items() if relation in ("same", "different")]
    return {"statements": len(said), "true": len(true), "invented": len(said) - len(known),
            "telling": len(telling), "named": len(set(telling) & {kind for kind, _ in known})}


def _present(kind, relations):
    return bool(_relation(kind, relations))


def _relation(kind, relations):
    """A statement about the name may speak of first and last name, and the other way round."""
    family = {"name": ("name", "first_name", "last_name"), "first_name": ("first_name", "name"), "last_name": ("last_name", "name")}
    return {relations[member] for member in family.get(kind, (kind,)) if member in relations}


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


def compare(case):
    """Rows for a side-by-side view: field, left value, right value, relation."""
    return [{"field": item.words, "left": item.left, "right": item.right, "relation": item.relation} for item in evidence(case)]
