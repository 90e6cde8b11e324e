"""How long a session lasts, in words, numbers, ISO 8601 or two clock times."""

from tasks.qod.wording import kept, weighted

DAY = 86_400
MINUTE_STEPS = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 75, 80, 90, 100, 105, 120, 150, 180, 240)


def length(voice):
    """(seconds, text) of a session."""
    make = weighted(voice.rng, FORMS | IN_TRAINING if voice.pool == "train" else FORMS)
    seconds, text = make(voice)
    return seconds, kept(text)


def fixed(voice):
    text, seconds = voice.rng.choice(list(voice.words["fixed_lengths"].items()))
    return seconds, text


def hours_in_words(voice):
    hours = voice.rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    return hours * 3600, with_unit(voice, voice.words["numbers"][hours - 1], hours, "hour")


def minutes_in_words(voice):
    amount, word = voice.rng.choice(list(voice.words["words_for"].items()))
    unit, seconds = voice.rng.choices((("minute", 60), ("second", 1)), weights=(9, 1))[0]
    return amount * seconds, with_unit(voice, word, amount, unit)


def hours_and_minutes_in_words(voice):
    hours = voice.rng.randint(1, 6)
    minutes, word = voice.rng.choice([one for one in voice.words["words_for"].items() if one[0] < 60])
    first = with_unit(voice, voice.words["numbers"][hours - 1], hours, "hour")
    second = with_unit(voice, word, minutes, "minute")
    return hours * 3600 + minutes * 60, f"{first} {voice.words['join_units']} {second}"


def with_unit(voice, number, amount, unit):
    units = voice.words["units"]
    at = ("second", "minute", "hour").index(unit) * 2
    text = f"{number} {units[at] if amount == 1 else units[at + 1]}"
    return text.replace("' ", "'")  # un'ora


def minutes_in_digits(voice):
    minutes = voice.rng.choice((*MINUTE_STEPS, voice.rng.randint(2, 600)))
    written = (with_unit(voice, minutes, minutes, "minute"), f"{minutes} {voice.pick('short_minutes')}")
    return minutes * 60, voice.rng.choice(written)


def hours_in_digits(voice):
    hours = voice.rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12, 18, 24, voice.rng.randint(1, 24)))
    return hours * 3600, voice.rng.choice(
        (f"{hours} {voice.pick('short_hours')}", with_unit(voice, hours, hours, "hour"))
    )


def seconds_in_digits(voice):
    seconds = voice.rng.choice((30, 45, 90, 120, 300, 600, 900, 1800, 3600, 5400, 7200, voice.rng.randint(60, DAY)))
    return seconds, voice.rng.choice((f"{seconds} s", f"{seconds}s", with_unit(voice, seconds, seconds, "second")))


def hours_and_minutes_in_digits(voice):
    hours = voice.rng.randint(1, 9)
    minutes = voice.rng.choice((5, 10, 15, 20, 30, 40, 45, 50, voice.rng.randint(1, 59)))
    form = voice.rng.choice(("{0}h{1:02}", "{0} h {1} min", "{0}:{1:02} h", "{0}h {1}min"))
    return hours * 3600 + minutes * 60, form.format(hours, minutes)


def hours_and_minutes_with_units(voice):
    hours = voice.rng.randint(1, 12)
    minutes = voice.rng.choice((*MINUTE_STEPS[:11], voice.rng.randint(1, 59)))
    joint = voice.rng.choice((" ", f" {voice.words['join_units']} ", ", "))
    first = with_unit(voice, hours, hours, "hour")
    return hours * 3600 + minutes * 60, first + joint + with_unit(voice, minutes, minutes, "minute")


def large_number_of_seconds(voice):
    """With a mark between the thousands."""
    seconds = voice.rng.randint(1_000, DAY)
    mark = "," if voice.words["decimal"] == "." else voice.rng.choice((".", " "))
    return seconds, f"{seconds:,}".replace(",", mark) + voice.rng.choice((" s", f" {voice.words['units'][1]}"))


def decimal_hours(voice):
    quarters = voice.rng.choice((1, 2, 3, 5, 6, 7, 10, 14, 18, 30, voice.rng.randint(1, 40)))
    number = f"{quarters / 4:g}".replace(".", voice.words["decimal"])
    return quarters * 900, f"{number} {voice.rng.choice(('h', voice.words['units'][5]))}"


def iso(voice):
    hours = voice.rng.randint(0, 12)
    minutes = voice.rng.choice((0, 0, 15, 20, 30, 45)) if hours else voice.rng.choice((5, 10, 15, 20, 45, 90))
    return hours * 3600 + minutes * 60, f"PT{f'{hours}H' if hours else ''}{f'{minutes}M' if minutes else ''}"


# How often each is drawn, in both pools and in training beside them.
FORMS = {
    fixed: 12,
    hours_in_words: 16,
    minutes_in_words: 8,
    hours_and_minutes_in_words: 5,
    minutes_in_digits: 20,
    hours_in_digits: 13,
    seconds_in_digits: 8,
    hours_and_minutes_in_digits: 9,
    decimal_hours: 5,
    iso: 8,
}
IN_TRAINING = {hours_and_minutes_with_units: 8, large_number_of_seconds: 3}
BARE_BEGIN_SHARE = 0.3  # in training, of the full hours before `17:30`


def clock(voice):
    """(seconds, begin, end) of a session between two times of day, often over midnight."""
    rng = voice.rng
    step = rng.choice((15, 15, 30, 5))
    begin = rng.randint(*rng.choice(((0, 1439), (0, 1439), (18 * 60, 1439)))) // step * step
    minutes = rng.randint(1, rng.choice((4, 8, 12)) * 60 // step) * step
    end = (begin + minutes) % 1440
    key = "clock_hour" if begin % 60 == end % 60 == 0 else "clock_time"
    form = voice.pick(key)
    first = time_of_day(form, begin)
    is_full_hour = key == "clock_time" and "{H}" in form and begin and begin % 60 == 0
    if voice.pool == "train" and is_full_hour and rng.random() < BARE_BEGIN_SHARE:
        first = f"{begin // 60}"
    return minutes * 60, kept(first), kept(time_of_day(form, end))


def time_of_day(form, minutes):
    hour, minute = divmod(minutes, 60)
    return form.format(H=f"{hour:02}", M=f"{minute:02}", h=hour % 12 or 12, half="pm" if hour >= 12 else "am")
