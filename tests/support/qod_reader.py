"""A reader of requests that knows nothing of the generator: which values does a text hold?"""

import re

NUMBERS = {}
for words in (
    "a one two three four five six seven eight nine ten eleven twelve",
    "eine zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "une deux trois quatre cinq six sept huit neuf dix onze douze",
    "una dos tres cuatro cinco seis siete ocho nueve diez once doce",
    "un' due tre quattro cinque sei sette otto nove dieci undici dodici",
    "uma duas três quatro cinco seis sete oito nove dez onze doze",
):
    listed = words.split()
    NUMBERS |= {word: at + 1 for at, word in enumerate(listed if listed[0] != "a" else listed[1:])}
for value, words in {
    15: "fifteen fünfzehn quinze quince quindici",
    25: "twenty-five fünfundzwanzig vingt-cinq veinticinco venticinque vinte_e_cinco",
    20: "twenty zwanzig vingt veinte venti vinte",
    30: "thirty dreißig trente treinta trenta trinta",
    40: "forty vierzig quarante cuarenta quaranta quarenta",
    45: "forty-five fünfundvierzig quarante-cinq cuarenta_y_cinco quarantacinque quarenta_e_cinco",
    50: "fifty fünfzig cinquante cincuenta cinquanta cinquenta",
    90: "ninety neunzig quatre-vingt-dix noventa novanta",
}.items():
    NUMBERS |= {word.replace("_", " "): value for word in words.split()}
NUMBER = "|".join(sorted(map(re.escape, NUMBERS), key=len, reverse=True)) + r"|\d+(?:[.,]\d+)?"
UNITS = {
    3600: r"h\b|hrs?\b|std\.|hours?|stunden?|heures?|horas?|ore\b|ora\b",
    60: r"mins?\b|minut\w*",
    1: r"s\b|sec\w*|seg\w*|sekunden?|seconde?s?|segundos?",
}
PART = re.compile(rf"(?<![\w.,])({NUMBER})\s*({'|'.join(UNITS.values())})", re.I)
FIXED = {
    2700: "three quarters of an hour|dreiviertelstunde|trois quarts d'heure|tres cuartos de hora|tre quarti d'ora|"
    "três quartos de hora",
    900: "quarter of an hour|(?<!drei)viertelstunde|un quart d'heure|cuarto de hora|un quarto d'ora|um quarto de hora",
    9000: "two (?:hours )?and a half|zweieinhalb|deux heures et demie|dos horas y media|due ore e mezza|"
    "duas horas e meia",
    5400: "an hour and a half|one and a half|anderthalb|eineinhalb|une heure et demie|una hora y media|"
    "un'ora e mezza|uma hora e meia",
    1800: "half an h(?:ou)?r|a half hour|halbe stunde|halbes stündchen|demi-heure|media hora|mezz'or(?:a|etta)|"
    "meia hora",
    4500: "hour and a quarter|one and a quarter|eineinviertel|stunde und eine viertel|une heure (?:et|un) quart|"
    "hora y (?:un )?cuarto|ora e un quarto|hora e um quarto",
    6300: "hour and three quarters|eindreiviertel|heure trois quarts|hora y tres cuartos|ora e tre quarti|"
    "hora e três quartos",
    12600: "three and a half|dreieinhalb|trois heures et demie|tres horas y media|tre ore e mezza|três horas e meia",
    16200: "four and a half|viereinhalb|quatre heures et demie|cuatro horas y media|quattro ore e mezza|"
    "quatro horas e meia",
    19800: "five and a half|fünfeinhalb|cinq heures et demie|cinco horas y media|cinque ore e mezza|cinco horas e meia",
    45000: "twelve and a half",
    43200: "half a day|halben tag|demi-journée|medio día|mezza giornata|meio dia",
    86400: "full day|one day|entire day|ganzen tag|journée entière|día entero|giornata intera|dia inteiro",
    3600: r"\ban hour|un'ora",
}
TIME = re.compile(r"(?<![\d.])(?<!\d:)(\d{1,2})(?:[:.]| ?h ?)?(\d\d)?(?: ?(am|pm)\b)?(?! ?(?:min|mbit|kbit))", re.I)


def durations(text):
    """Every length in seconds that the text may be read to hold."""
    found = {seconds for seconds, words in FIXED.items() if re.search(words, text, re.I)}
    parts = [(seconds_of(*match.groups()), match.start(), match.end()) for match in PART.finditer(text)]
    found |= {seconds for seconds, _, _ in parts}
    for (first, _, end), (second, start, _) in zip(parts, parts[1:], strict=False):
        if start - end <= 6:
            found.add(first + second)
    for hours, minutes in re.findall(r"(?<![\d.:])(\d{1,2})(?:h|:)(\d\d)(?!\d)", text):
        found.add(int(hours) * 3600 + int(minutes) * 60)
    for hours, minutes in re.findall(r"PT(?:(\d+)H)?(?:(\d+)M)?", text):
        found.add(int(hours or 0) * 3600 + int(minutes or 0) * 60)
    for thousands, rest in re.findall(r"(?<![\d.,])(\d{1,2})[., ](\d{3}) ?(?:s\b|se[ckg])", text, re.I):
        found.add(int(thousands) * 1000 + int(rest))
    return found | between_times(text)


def seconds_of(number, unit):
    amount = NUMBERS.get(number.lower()) or float(number.replace(",", "."))
    return round(amount * next(seconds for seconds, words in UNITS.items() if re.fullmatch(words, unit, re.I)))


def between_times(text):
    """The lengths between any two neighbouring times of day, over midnight where the second is earlier."""
    times = [minutes_of(*match.groups()) for match in TIME.finditer(text)]
    return {(end - begin) % 1440 * 60 for begin, end in zip(times, times[1:], strict=False)}


def minutes_of(hour, minute, half):
    hour = int(hour) % 12 + 12 * (half.lower() == "pm") if half else int(hour)
    return hour * 60 + int(minute or 0)


def holds_phone(text, number):
    """Whether the digits of a number stand in the text behind a + or 00, whatever is between them."""
    return bool(re.search(r"(?:\+|00)" + r"[ .()-]*".join(number[1:]), text))


def holds_address(text, address):
    return bool(re.search(rf"(?<![\w.]){re.escape(address)}(?![\w/]|\.\d)", text, re.I))


def holds_port(text, port):
    return bool(re.search(rf"(?<!\d){port}(?!\d)", text))


def missing_values(text, call):
    """What of a call's values the text does not hold."""
    device = call.get("device", {})
    ipv4 = device.get("ipv4Address", {})
    addresses = [ipv4.get("publicAddress"), ipv4.get("privateAddress"), device.get("ipv6Address")]
    addresses += call.get("applicationServer", {}).values()
    lost = [one for one in addresses if one and not holds_address(text, one)]
    lost += [one for one in ports_of(call) if not holds_port(text, one)]
    if "phoneNumber" in device and not holds_phone(text, device["phoneNumber"]):
        lost.append(device["phoneNumber"])
    if call.get("sink", "") not in text:
        lost.append(call["sink"])
    if call["duration"] not in durations(text):
        lost.append(call["duration"])
    return lost


def ports_of(call):
    port = call.get("device", {}).get("ipv4Address", {}).get("publicPort")
    found = [] if port is None else [port]
    for key in ("devicePorts", "applicationServerPorts"):
        listed = call.get(key, {})
        found += listed.get("ports", [])
        found += [end for span in listed.get("ranges", []) for end in (span["from"], span["to"])]
    return found
