"""The label policy in numbers (docs/label_policy.md says it in words): points for agreement and difference, and where
the verdicts lie.

The generator labels by it. Within BORDER of a threshold the pair's true identity decides, and two parties are never a
DUPLICATE.
"""

DUPLICATE_FROM = 6.0
NO_MATCH_BELOW = 2.0
BORDER = 1.5
DOUBTED_FROM = 0.0  # one party under so little evidence that nobody could tell is left apart
# field -> (points where both records agree, points where they differ). One-sided and empty fields count nothing.
POINTS = {
    "tax": (8.0, -4.0),
    "email": (6.0, -0.4),
    "phone": (5.0, -0.8),
    "birth": (4.5, -5.0),
    "suffix": (0.0, -6.0),
    "gender": (0.3, -1.5),
    "middle": (1.0, -2.5),
    "birthplace": (2.0, -0.8),
    "job": (0.8, -0.3),
    "company": (2.0, -0.7),
    "street": (3.5, -1.2),
    "unit": (0.3, -1.0),
    "postal": (1.5, -0.8),
    "city": (0.8, -0.8),
    "state": (0.2, -0.6),
    "country": (0.1, -1.5),
    "website": (2.0, -0.8),
    "industry": (0.6, -0.4),
    "agency": (0.6, -0.5),
    "org": (4.5, -4.5),
    "first": (0.45, -6.0),
    "last": (0.85, -4.0),  # first and last: points for each power of ten that the name is rare
}
SHARED_MAILBOX = 1.5  # an info@ or office@ address is many people's
MARRIED = -1.5  # another surname where first name and birth date agree
# What agrees within one group is mostly one piece of evidence; a DUPLICATE needs two groups.
GROUP = {
    "first": "name",
    "middle": "name",
    "last": "name",
    "org": "name",
    "suffix": "name",
    "street": "place",
    "unit": "place",
    "postal": "place",
    "city": "place",
    "state": "place",
    "country": "place",
    "email": "contact",
    "phone": "contact",
    "website": "contact",
    "birth": "birth",
    "birthplace": "birth",
}
CONTRADICTIONS = ("birth", "suffix", "tax", "org", "first")
PROOF = "tax"  # an id that agrees is never left unreviewed, whatever else differs
SURELY = 0.7
SITE = "org"  # what stands at another address is another site: an organisation that may have moved is for review
STREET_COVERS = {"postal": 0.5, "city": 0.3, "state": 0.0}  # a shared street implies the town


def label(relations, rarity, shared_mailbox, same):
    """The verdict on two records whose fields relate so, of one party or of two."""
    found = verdict(*weigh(relations, rarity, shared_mailbox), same)
    if not relations or found == "NO_MATCH" and relations.get(PROOF, 0) > SURELY:
        return "POSSIBLE"
    return found


def verdict(points, groups, contradicted, same):
    """What an evidence total, the number of groups that agree, a contradiction, and the truth come to."""
    points += BORDER if same else -BORDER
    if points >= DUPLICATE_FROM:
        return "DUPLICATE" if same and groups > 1 and not contradicted else "POSSIBLE"
    if points < NO_MATCH_BELOW:
        return "POSSIBLE" if same and not contradicted and points >= DOUBTED_FROM else "NO_MATCH"
    return "POSSIBLE"


def weigh(relations, rarity, shared_mailbox):
    """(points, number of groups that agree, contradicted) of {field: share in -1..1}: 1 agrees, 0 says nothing, -1
    differs.
    """
    total = 0.0
    groups = set()
    contradicted = False
    street = relations.get("street", 0) > 0
    for field, share in relations.items():
        agree, differ = POINTS[field]
        if share > 0:
            points = agree * rarity.get(field, 1.0) * share
            if field == "email" and shared_mailbox:
                points = SHARED_MAILBOX
            if street and field in STREET_COVERS:
                points *= STREET_COVERS[field]
            total += points
            if points > 0.5:
                groups.add(GROUP.get(field, field))
        elif share < 0:
            points = differ * -share
            if field == "last" and relations.get("first", 0) > 0 and relations.get("birth", 0) > 0:
                points = MARRIED
            total += points
            contradicted |= (
                field in CONTRADICTIONS and share < -0.7 or field == "street" and SITE in relations and share < -0.4
            )
    return total, len(groups), contradicted
