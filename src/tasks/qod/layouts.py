"""Facts -> a request: sentences, a mail, a ticket, a form, a line of a log, ..."""

import re

from tasks.qod.wording import OPEN, plain

NEWLINE = "\n"
# What a form or a line of a machine looks like around its fields; the pools share none.
MARKS = {
    "train": {
        "key_value": (": ", ": ", " - ", ":", " -> ", "\t", " : ", " is ", " := ", " – ", "... ", " | "),
        "form": ("{}. {}: {}", "{}. {}: {}", "{}) {}: {}", "#{} {}: {}", "{} {}: {}", "[{}] {}: {}", "{}/ {} – {}"),
        "yaml": ("request:", "session:", "qod:", "order:", "network_request:"),
        "json": (("{", ", ", "}"), ("{", ", ", "}"), ("{\n  ", ",\n  ", "\n}"), ("{ ", " , ", " }"), ("[{", ",", "}]")),
        "table": (" | ", " | ", "\t", " || ", " / ", " ¦ ", " :: ", " » ", " • ", " # ", "|"),
        "log": ("{} INFO qod-request", "{} qod-request", "{} gw01 request:", "<134>{} net", "{} NOTICE session wanted"),
        "command": ("qod open", "qodctl create", "$ session new", "./request.sh", "net reserve"),
        "calendar": ("* {}", "- {}", "{}", "[ ] {}"),
        "calendar_mark": (" / ", ", ", " | ", " * "),
        "terse": ("; ", ", ", ". ", " - ", " / ", "\n"),
        "terse_head": (": ", " - ", ", ", ". ", "\n"),
    },
    "test": {
        "key_value": (" = ",),
        "form": ("({}) {} - {}",),
        "yaml": ("booking:",),
        "json": (("{\n ", ",\n ", "\n}"),),
        "table": (" ; ",),
        "log": ("[{}] order-intake:",),
        "command": ("netq book",),
        "calendar": ("## {}",),
        "calendar_mark": (" ~ ",),
    },
}
LATENCY_IN_SENTENCES = "latency_plain"  # German wants another case after `with`
# In training alone, of the messages and of the chats.
TERSE_SHARE = 0.15
INTERVIEW_SHARE = 0.3


# Prose


def phrase(voice, fact):
    return voice.say("vague_phrase") if fact.name == "vague" else voice.say(PHRASES[fact.name], fact.value)


def sentence(voice, fact):
    if fact.sentence:
        return fact.sentence
    if fact.name == "vague":
        return voice.say("vague_sentence")
    if fact.name == "until":
        return voice.say("clock_sentence", fact.value)
    value = fact.value
    if fact.name == "latency" and LATENCY_IN_SENTENCES in voice.words:
        value = voice.pick(LATENCY_IN_SENTENCES)
    return capital(voice.say(f"{fact.name}_sentence", value))


PHRASES = {
    **{name: f"{name}_phrase" for name in "device server duration clock use named throughput latency sink".split()},
    **{name: f"{name}_phrase" for name in ("device_ports", "server_ports")},
    "until": "clock_phrase",
}


def capital(text):
    """A sentence with a capital letter; a value at its beginning stays as it is."""
    if text.startswith(OPEN):
        return text
    at = next((at for at, letter in enumerate(text) if letter.isalnum()), 0)
    return text[:at] + text[at].upper() + text[at + 1 :]


def said_facts(facts):
    return [fact for fact in facts if fact.value is not None]


def prose(voice, facts):
    """Sentences that hold the facts, in an order of their own; some in one sentence, some in one each."""
    rng = voice.rng
    facts = said_facts(facts)
    apart = [fact for fact in facts if fact.sentence]
    joined = [fact for fact in facts if not fact.sentence]
    rng.shuffle(joined)
    n_together = rng.choice((len(joined), len(joined), 4, 3, 2, 0, 0))
    together = joined[: min(n_together, 5)]
    rest = joined[len(together) :]
    sentences = [one_sentence(voice, together)] if together else [voice.say("intro")]
    sentences += [sentence(voice, fact) for fact in rest]
    if not together and rng.random() < 0.3:
        del sentences[0]
    return [*sentences, *(sentence(voice, fact) for fact in apart)]


def one_sentence(voice, facts):
    opener = voice.say("opener")
    ending = re.search(r"\s*\?$", opener)
    phrases = " ".join(phrase(voice, fact) for fact in facts)
    return f"{opener[: ending.start()]} {phrases}{ending.group()}" if ending else f"{opener} {phrases}."


def with_asides(voice, sentences):
    """The sentences with what is beside the point between them."""
    rng = voice.rng
    n_fillers = rng.choices((0, 1, 2, 4, 7), weights=(64, 22, 8, 4, 2))[0]
    templates = voice.words["filler"]
    asides = [voice.filled(one) for one in rng.sample(templates, min(n_fillers, len(templates)))]
    if rng.random() < 0.22:
        asides.append(voice.say("distractor"))
    if rng.random() < 0.05:
        asides.append(voice.say("injection"))
    found = list(sentences)
    for aside in asides:
        found.insert(rng.randint(0, len(found)), aside)
    return found


def message(voice, facts):
    """A plain message: perhaps a greeting, the sentences, perhaps a good-bye."""
    rng = voice.rng
    if voice.pool == "train" and said_facts(facts) and rng.random() < TERSE_SHARE:
        return terse(voice, facts)
    sentences = with_asides(voice, prose(voice, facts))
    if rng.random() < 0.25:
        sentences.append(voice.say("closing"))
    if rng.random() < 0.06:
        sentences.append(voice.pick("emoji"))
    text = " ".join(sentences)
    return f"{voice.say('greeting')}{rng.choice((NEWLINE, ' '))}{text}" if rng.random() < 0.3 else text


def terse(voice, facts):
    """Hardly a word around the values: what it is for, then the rest in any order."""
    rng = voice.rng
    said = said_facts(facts)
    rng.shuffle(said)
    said.sort(key=lambda fact: fact.name != "use")
    parts = [alone(voice, fact) for fact in said]
    joint = marked(voice, "terse")
    if said[0].name == "use" and len(parts) > 1:
        parts[:2] = [capital(parts[0]) + marked(voice, "terse_head") + parts[1]]
    return joint.join(parts)


def alone(voice, fact):
    """A fact as it can stand by itself: a length or a use needs no word before it, an address does."""
    if fact.name in CLEAR_ALONE:
        return bare(voice, fact) if fact.name == "vague" else fact.value
    if voice.rng.random() < 0.5 and not fact.sentence:
        return phrase(voice, fact)
    return f"{label(voice, fact).lower()}{voice.rng.choice((' ', ' ', ': '))}{bare(voice, fact)}"


CLEAR_ALONE = ("use", "named", "throughput", "latency", "duration", "clock", "vague")


def plain_list(voice, facts):
    """Device, server and the rest after one another, with commas or an arrow."""
    rng = voice.rng
    said = said_facts(facts)
    if not said:
        return message(voice, facts)
    found = {fact.name: fact for fact in said}
    if found.keys() >= {"device", "server"} and rng.random() < 0.5 and len(found) == len(said):
        arrow = {"train": (" -> ", " > "), "test": (" => ", " --> ")}[voice.pool]
        first = f"{found.pop('device').value}{rng.choice(arrow)}{found.pop('server').value}"
        rest = [phrase(voice, fact) if fact.name in UNCLEAR_ALONE else bare(voice, fact) for fact in found.values()]
        rng.shuffle(rest)
        return ", ".join([first, *rest])
    parts = [f"{label(voice, fact).lower()} {bare(voice, fact)}" for fact in said]
    rng.shuffle(parts)
    return ", ".join(parts)


UNCLEAR_ALONE = ("device_ports", "server_ports", "sink")


def text_message(voice, facts):
    return f"{plain_list(voice, facts)} {voice.pick('emoji')}" if voice.rng.random() < 0.3 else plain_list(voice, facts)


def mail(voice, facts):
    body = " ".join(with_asides(voice, prose(voice, facts)))
    subject = f"{voice.say('subject')}: {voice.say('title')}\n\n" if voice.rng.random() < 0.6 else ""
    signature = f"{voice.pick('signoff')}\n{voice.source.person(voice.rng)}"
    return f"{subject}{voice.say('greeting')}\n\n{body}\n\n{signature}"


def ticket(voice, facts):
    head = {"train": "Ticket {}", "test": "Case #{}"}[voice.pool].format(voice.rng.randint(1000, 99999))
    priority = voice.rng.choice({"train": ("P2", "P3", "prio 1"), "test": ("sev 2", "sev 3")}[voice.pool])
    return f"{head} [{priority}] {voice.say('title')}\n{' '.join(with_asides(voice, prose(voice, facts)))}"


def chat(voice, facts):
    """Lines of two people; the second one only nods."""
    rng = voice.rng
    asking = voice.source.person(rng).lower()
    if voice.pool == "train" and rng.random() < INTERVIEW_SHARE:
        return interview(voice, facts, asking)
    sentences = with_asides(voice, prose(voice, facts))
    lines = []
    at = 0
    while at < len(sentences):
        step = rng.choice((1, 1, 2))
        lines.append(f"{asking}: {' '.join(sentences[at : at + step])}")
        at += step
    if len(lines) > 1 and rng.random() < 0.6:
        lines.insert(1, f"{'support' if voice.pool == 'train' else 'helpdesk'}: ok")
    return "\n".join(lines)


def interview(voice, facts, asking):
    """One asks for a fact after the other, the other says no more than that."""
    lines = [f"{asking}: {voice.say('intro')}"]
    for key, text in fields(voice, facts):
        lines += [f"support: {key.rstrip(' ?:')}?", f"{asking}: {text}"]
    return "\n".join(lines)


def transcript(voice, facts):
    sentences = with_asides(voice, prose(voice, facts))
    return " ".join(
        f"{capital(voice.pick('spoken'))}... {one}" if voice.rng.random() < 0.5 else one for one in sentences
    )


def handover_note(voice, facts):
    bullet = {"train": "- ", "test": "* "}[voice.pool]
    sentences = with_asides(voice, [sentence(voice, fact) for fact in said_facts(facts)])
    return f"{voice.say('title')}\n" + "\n".join(f"{bullet}{one}" for one in sentences)


# Forms


def label(voice, fact):
    return voice.pick("label_clock" if fact.name == "until" else f"label_{fact.name}")


def bare(voice, fact):
    if fact.name == "vague":
        return voice.say("vague_phrase")
    if fact.name == "latency" and LATENCY_IN_SENTENCES in voice.words:
        return voice.pick(LATENCY_IN_SENTENCES)
    return fact.for_form


def fields(voice, facts):
    """(label, words) of every fact, sometimes with one that is beside the point."""
    labels = {fact.name: label(voice, fact) for fact in facts}  # what is stated twice has one label
    found = [(labels[fact.name], bare(voice, fact)) for fact in facts]
    if voice.rng.random() < 0.25:
        if voice.rng.random() < 0.5:
            found.append((voice.pick("label_other"), voice.source.invoice(voice.rng)))
        else:
            found.append((voice.pick("label_person"), voice.source.person(voice.rng)))
    if voice.rng.random() < 0.5:
        voice.rng.shuffle(found)
    return found


def marked(voice, layout):
    return voice.rng.choice(MARKS[voice.pool][layout])


def key_value(voice, facts):
    mark = marked(voice, "key_value")
    return with_note(voice, "\n".join(f"{key}{mark}{text}" for key, text in fields(voice, facts)))


def form(voice, facts):
    mark = marked(voice, "form")
    lines = [mark.format(number, key, text) for number, (key, text) in enumerate(fields(voice, facts), 1)]
    return "\n".join([voice.say("title"), *lines])


def yaml_note(voice, facts):
    head = marked(voice, "yaml")
    return "\n".join([head, *(f"  {slug(key)}: {text}" for key, text in fields(voice, facts))])


def json_note(voice, facts):
    pairs = [f'"{slug(key)}": "{text}"' for key, text in fields(voice, facts)]
    opening, joint, closing = marked(voice, "json")
    return with_note(voice, opening + joint.join(pairs) + closing)


def table_row(voice, facts):
    found = fields(voice, facts)
    mark = marked(voice, "table")
    return f"{mark.join(key for key, _ in found)}\n{mark.join(text for _, text in found)}"


def log_line(voice, facts):
    rng = voice.rng
    stamp = f"20{rng.randint(27, 33)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T{rng.randint(0, 23):02}:"
    stamp += f"{rng.randint(0, 59):02}:{rng.randint(0, 59):02}Z"
    head = marked(voice, "log").format(stamp)
    return " ".join([head, *(f"{slug(key)}={quoted(text)}" for key, text in fields(voice, facts))])


def command_line(voice, facts):
    head = marked(voice, "command")
    return " ".join([head, *(f"--{slug(key, '-')} {quoted(text)}" for key, text in fields(voice, facts))])


def calendar_entry(voice, facts):
    head = marked(voice, "calendar").format(voice.say("title"))
    mark = marked(voice, "calendar_mark")
    return head + mark + mark.join(f"{key}: {text}" for key, text in fields(voice, facts))


def with_note(voice, text):
    """The form, sometimes with a remark below it that asks for something else."""
    return f"{text}\n{voice.say('injection')}" if voice.rng.random() < 0.04 else text


def slug(text, mark="_"):
    return re.sub(r"\W+", mark, text.lower()).strip(mark)


def quoted(text):
    return f'"{text}"' if " " in plain(text) else text


LAYOUTS = {
    "device_list": plain_list,
    "text_message": text_message,
    "mail": mail,
    "ticket": ticket,
    "chat": chat,
    "transcript": transcript,
    "handover_note": handover_note,
    "key_value": key_value,
    "form": form,
    "yaml_note": yaml_note,
    "json_note": json_note,
    "table_row": table_row,
    "log_line": log_line,
    "command_line": command_line,
    "calendar_entry": calendar_entry,
}
WRITTEN_BY_MACHINES = ("yaml_note", "json_note", "log_line", "command_line")
