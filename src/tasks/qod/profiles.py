"""Which profile a request gets and what says so: the first rule that fits decides, whatever else is there."""

from tasks.qod import facts

USES = {
    "E": "voice_call push_to_talk gaming cloud_gaming drone_control robot_control crane_control vehicle_control "
    "remote_surgery payment alarm",
    "S": "telemetry music tracking picture_chat still_inspection sd_video_call",
    "M": "hd_conference telemedicine hd_streaming body_camera live_lesson surveillance",
    "L": "video_4k broadcast contribution virtual_reality augmented_reality upload backup point_cloud many_cameras",
}
PROFILE_OF_USE = {use: letter for letter, uses in USES.items() for use in uses.split()}
RULES = {"named": 27, "throughput": 18, "latency": 11, "use": 44}
VAGUE_SHARE = 0.08  # of the requests also ask for "the best quality", which says nothing


def profile(voice, use):
    """(letter, facts); `use` is the use that the request must name, None where it need not name one."""
    rng = voice.rng
    rule = facts.weighted(rng, RULES)
    said = use or (rng.choice(list(PROFILE_OF_USE)) if rule == "use" or rng.random() < 0.35 else None)
    letter, found = RULED[rule](voice, said)
    if said:
        found.append(facts.use(voice, said))
    if rng.random() < VAGUE_SHARE:
        found.append(facts.vague(voice))
    return letter, found


def by_name(voice, use):
    rng = voice.rng
    letter = rng.choice(facts.PROFILES)
    found = [facts.named_profile(voice, letter)]
    if rng.random() < 0.12:
        found.append(facts.throughput(voice, rng.choice("SML")))
    if rng.random() < 0.12:
        found.append(facts.latency(voice))
    return letter, found


def by_throughput(voice, use):
    rng = voice.rng
    letter = rng.choice(facts.PROFILES)
    found = [facts.throughput(voice, letter)]
    # A small rate is S, and with stable latency E; above 500 kbit/s latency changes nothing.
    if letter == "E" or letter in "ML" and rng.random() < 0.3:
        found.append(facts.latency(voice))
    return letter, found


def by_latency(voice, use):
    return "E", [facts.latency(voice)]


def by_use(voice, use):
    return PROFILE_OF_USE[use], []


RULED = {"named": by_name, "throughput": by_throughput, "latency": by_latency, "use": by_use}
