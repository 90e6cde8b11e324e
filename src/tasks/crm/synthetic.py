"""A small generator of labelled pairs, enough to try the pipeline on: people at companies, three locales besides English.

A pair is one person twice (DUPLICATE), two who share some strong field (POSSIBLE), or two people (NO_MATCH, mostly with
look-alike fields). The reasoning is written from the same field evidence that the faithfulness KPI checks.
"""

import random

from tasks.crm.fields import evidence

PEOPLE = {
    "en": ("James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph Jessica Thomas Sarah "
           "Charles Karen Daniel Nancy Matthew Lisa Anthony Betty Mark Sandra Paul Ashley Steven Emily Andrew Donna Joshua Michelle".split(),
           "Smith Johnson Williams Brown Jones Garcia Miller Davis Wilson Anderson Taylor Moore Jackson Martin Lee Thompson White Harris Clark "
           "Lewis Robinson Walker Young Allen King Wright Scott Hill Green Adams Baker Nelson Carter Mitchell Roberts Turner Phillips".split()),
    "de": ("Lukas Anna Jürgen Käthe Stefan Sabine Björn Heike Matthias Renate Götz Ulrike Florian Petra".split(),
           "Müller Schmidt Schneider Fischer Weber Schäfer Koch Bauer Krüger Größmann Vogel Jäger Köhler Lehmann".split()),
    "ru": ("Иван Анна Дмитрий Ольга Сергей Мария Алексей Елена Николай Татьяна".split(),
           "Иванов Смирнов Кузнецов Попов Соколов Лебедев Козлов Новиков Морозов Волков".split()),
    "ja": ("健 美咲 翔太 由美 大輔 陽子 拓也 直子".split(), "佐藤 鈴木 高橋 田中 伊藤 渡辺 山本 中村".split()),
}
LATIN = str.maketrans("абвгдезийклмнопрстуфхцчшщъыьэюяё", "abvgdezijklmnoprstufhccss_y_euae", "")
STREETS = ("Oak Maple Cedar Pine Elm Washington Lake Hill Park Main River Church Mill Station Bridge Garden Meadow Forest Spring High "
           "North South West East Union Market School Prospect Highland Jefferson Lincoln Franklin").split()
STREET_KINDS = [("Street", "St"), ("Avenue", "Ave"), ("Road", "Rd"), ("Lane", "Ln"), ("Drive", "Dr")]
CITIES = {
    "en": "Springfield Franklin Clinton Madison Georgetown Salem Fairview Bristol Dover Hudson Kingston Milton Newport Oxford Ashland Burlington".split(),
    "de": "Köln München Düsseldorf Hamburg Leipzig Nürnberg Bremen Aachen".split(),
    "ru": "Москва Казань Самара Омск Томск Пермь".split(),
    "ja": "東京 大阪 京都 名古屋 札幌 福岡".split(),
}
COMPANY_WORDS = ("Apex Summit Pioneer Blue Harbor Evergreen Quantum Silver Global Sunrise Northern Vertex Atlas Beacon Crystal Delta Falcon "
                 "Granite Horizon Ivory Juniper Keystone Lunar Meridian Nova Orchid Pacific Quarry Redwood Sterling").split()
COMPANY_TRADES = "Systems Logistics Foods Partners Consulting Energy Media Textiles Motors Software Health Builders Travel Print".split()
LEGAL = {"en": [" Inc.", " LLC", " Ltd", ""], "de": [" GmbH", " AG", ""], "ru": [" OOO", ""], "ja": [" KK", ""]}
NICKNAMES = {"James": "Jim", "Robert": "Bob", "Jennifer": "Jen", "Michael": "Mike", "Elizabeth": "Liz", "William": "Bill", "Richard": "Rick",
             "Joseph": "Joe", "Thomas": "Tom", "Charles": "Chuck", "Daniel": "Dan", "Matthew": "Matt", "Anthony": "Tony", "Steven": "Steve",
             "Andrew": "Andy", "Joshua": "Josh", "Susan": "Sue", "Patricia": "Pat", "David": "Dave"}
SCHEMAS = [
    {"first_name": "first_name", "last_name": "last_name", "company": "company", "email": "email", "phone": "phone",
     "street": "street", "city": "city", "postal_code": "zip"},
    {"first_name": "FirstName", "last_name": "LastName", "company": "AccountName", "email": "Email", "phone": "Phone",
     "street": "MailingStreet", "city": "MailingCity", "postal_code": "MailingPostalCode"},
    {"name": "full_name", "company": "organisation", "email": "e_mail", "phone": "telephone",
     "street": "address.street", "city": "address.city", "postal_code": "address.postcode"},
]


def rows(n, seed, start=0):
    """Rows `start` to `start + n` of the endless sequence that a seed names, whatever the number asked for at once."""
    for index in range(start, start + n):
        rng = random.Random(f"{seed}:{index}")
        label = rng.choices(("DUPLICATE", "POSSIBLE", "NO_MATCH"), (35, 20, 45))[0]
        # In a real export a record stands in several pairs; here every tenth row asks about the person of the row before.
        subject = index - 1 if index % 10 == 9 else index
        left, right = _pair(label, _person(random.Random(f"{seed}:{subject}:left")), rng)
        schema = rng.choice(SCHEMAS)
        other = schema if rng.random() < 0.6 else rng.choice(SCHEMAS)
        case = {"record1": _as_record(left, schema), "record2": _as_record(right, other)}
        yield {"id": f"syn-{seed}-{index:07d}", "input": case, "output": {"result": label, "reasoning": reasoning(label, case)}}


def _pair(label, left, rng):
    if label == "DUPLICATE":
        return left, _retyped(left, rng)
    right = _person(rng, left["locale"])
    if label == "POSSIBLE":
        # A namesake at the same firm, one household, or one person after a move: a steward would want to look.
        shared = rng.choice([("first_name", "last_name", "company"), ("last_name", "street", "city", "postal_code", "phone"),
                             ("first_name", "last_name", "city")])
    else:
        shared = rng.choice([(), (), ("first_name", "last_name"), ("company",), ("company", "city"), ("last_name", "city"), ("city",)])
    right |= {key: left[key] for key in shared}
    right["email"] = _email(right, rng)
    return (_thinned(left, rng), _thinned(right, rng)) if rng.random() < 0.4 else (left, right)


def _person(rng, locale=None):
    locale = locale or rng.choices(("en", "de", "ru", "ja"), (70, 15, 10, 5))[0]
    first, last = (rng.choice(names) for names in PEOPLE[locale])
    kind = rng.choice(STREET_KINDS)
    person = {"locale": locale, "first_name": first, "last_name": last,
              "company": f"{rng.choice(COMPANY_WORDS)} {rng.choice(COMPANY_TRADES)}{rng.choice(LEGAL[locale])}",
              "phone": f"+{rng.choice((1, 44, 49, 7, 81))} {rng.randint(200, 999)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}",
              "street": f"{rng.randint(1, 2999)} {rng.choice(STREETS)} {kind[0]}", "city": rng.choice(CITIES[locale]),
              "postal_code": f"{rng.randint(10000, 99999)}"}
    return person | {"email": _email(person, rng)}


def _email(person, rng):
    first, last = (person[key].lower().translate(LATIN) for key in ("first_name", "last_name"))
    local = rng.choice([f"{first}.{last}", f"{first[0]}{last}", f"{last}{rng.randint(1, 99)}"])
    domain = rng.choice([person["company"].split()[0].lower() + ".com", "mail.example", "post.example"])
    return f"{local}@{domain}"


def _retyped(person, rng):
    """The same person as another system holds them: two to four of the usual slips."""
    copy = dict(person)
    for slip in rng.sample([_typo, _nickname, _short_street, _phone_style, _no_legal_form, _new_email, _moved, _shouted], rng.randint(2, 4)):
        slip(copy, rng)
    return _thinned(copy, rng) if rng.random() < 0.4 else copy


def _typo(person, rng):
    key = rng.choice(("first_name", "last_name", "street", "email"))
    value = person[key]
    at = rng.randrange(max(1, len(value) - 1))
    person[key] = value[:at] + value[at + 1:at + 2] + value[at:at + 1] + value[at + 2:]


def _nickname(person, rng):
    person["first_name"] = NICKNAMES.get(person["first_name"], person["first_name"])


def _short_street(person, rng):
    for long, short in STREET_KINDS:
        person["street"] = person["street"].replace(long, short)


def _phone_style(person, rng):
    digits = person["phone"].replace(" ", "")
    person["phone"] = rng.choice([digits, digits[-10:], f"({digits[-10:-7]}) {digits[-7:-4]}-{digits[-4:]}"])


def _no_legal_form(person, rng):
    person["company"] = " ".join(person["company"].split()[:2])


def _new_email(person, rng):
    person["email"] = _email(person, rng)


def _moved(person, rng):
    person["street"], person["postal_code"] = f"{rng.randint(1, 2999)} {rng.choice(STREETS)} Street", f"{rng.randint(10000, 99999)}"


def _shouted(person, rng):
    person["last_name"], person["city"] = person["last_name"].upper(), person["city"].upper()


def _thinned(person, rng):
    return person | dict.fromkeys(rng.sample(("company", "email", "phone", "street", "postal_code"), rng.randint(1, 2)), "")


def _as_record(person, schema):
    values = person | {"name": f"{person['first_name']} {person['last_name']}"}
    record = {}
    for kind, path in schema.items():
        *parents, key = path.split(".")
        place = record
        for parent in parents:
            place = place.setdefault(parent, {})
        if values[kind]:
            place[key] = values[kind]
    return record


OPENINGS = {"DUPLICATE": "Same person", "POSSIBLE": "Needs review", "NO_MATCH": "Different people"}


def reasoning(label, case):
    """One short sentence from the field evidence: what agrees, what is close, what differs; at most three fields each."""
    found = {relation: [item.words for item in evidence(case) if item.relation == relation][:3] for relation in ("same", "similar", "different")}
    wanted = ("same", "similar") if label == "DUPLICATE" else ("same", "different") if label == "POSSIBLE" else ("different", "same")
    clauses = [_clause(found[relation], relation) for relation in wanted if found[relation]]
    return f"{OPENINGS[label]}: {'; '.join(clauses) or 'no field is on both sides'}."


def _clause(words, relation):
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    verb = {"same": ("match", "matches"), "similar": ("are similar", "is similar"), "different": ("differ", "differs")}[relation]
    return f"{listed} {verb[len(words) == 1]}"
