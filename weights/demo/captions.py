"""Captions to train the connectors on: a grammar of camera phrases, scenes that mislead, light, sound and defects."""

import random
from typing import Final

from weights.demo.motion import MOTIONS

DROPPED: Final = len(MOTIONS)
"""The class of a negative prompt: a list of defects names no motion."""

CAMERA: Final = (
    "the camera",
    "the camera",
    "the camera",
    "camera",
    "our camera",
    "the shot",
    "the view",
    "the lens",
    "the frame",
    "the viewpoint",
    "a handheld camera",
    "the drone",
)
PACE: Final = (
    "slowly",
    "gently",
    "smoothly",
    "gradually",
    "steadily",
    "quickly",
    "softly",
    "slightly",
    "gracefully",
    "calmly",
    "continuously",
)
SLOW: Final = ("slow", "gentle", "smooth", "steady", "gradual", "quick", "subtle", "cinematic", "long", "soft")

SIDEWAYS: Final = (
    "pans",
    "pans",
    "pans",
    "moves",
    "slides",
    "glides",
    "trucks",
    "tracks",
    "drifts",
    "sweeps",
    "swings",
    "shifts",
    "travels",
    "turns",
    "rotates",
    "floats",
    "heads",
    "goes",
)
TO_SIDE: Final = (
    "{side}",
    "to the {side}",
    "towards the {side}",
    "toward the {side}",
    "{side}ward",
    "{side}wards",
    "from {other} to {side}",
    "off to the {side}",
    "to the {side} side",
    "across to the {side}",
    "over to the {side}",
)
VERTICAL: Final = {
    "up": (
        "tilts up",
        "tilts upward",
        "tilts upwards",
        "moves up",
        "moves upward",
        "rises",
        "rises up",
        "pedestals up",
        "cranes up",
        "booms up",
        "looks up",
        "lifts",
        "lifts up",
        "ascends",
        "climbs",
        "climbs up",
        "drifts upward",
        "glides up",
        "floats upward",
        "goes up",
        "sweeps up",
        "pans up",
        "tilts up from the ground",
        "tilts up to the sky",
        "rises toward the sky",
        "travels upwards",
    ),
    "down": (
        "tilts down",
        "tilts downward",
        "tilts downwards",
        "moves down",
        "moves downward",
        "lowers",
        "sinks",
        "sinks down",
        "pedestals down",
        "cranes down",
        "booms down",
        "looks down",
        "drops",
        "drops down",
        "descends",
        "drifts downward",
        "glides down",
        "floats downward",
        "goes down",
        "sweeps down",
        "pans down",
        "tilts down from the sky",
        "tilts down to the ground",
        "descends toward the ground",
        "falls slowly",
        "travels downwards",
    ),
}
IN: Final = (
    "zooms in",
    "zooms in",
    "zooms in on {it}",
    "zooms into {it}",
    "zooms closer",
    "dollies in",
    "dollies in",
    "dollies in toward {it}",
    "dollies toward {it}",
    "dollies forward",
    "pushes in",
    "pushes in on {it}",
    "pushes in toward {it}",
    "pushes forward",
    "moves in",
    "moves closer",
    "moves closer to {it}",
    "moves forward",
    "moves toward {it}",
    "moves in on {it}",
    "gets closer",
    "gets closer to {it}",
    "comes closer",
    "tracks in",
    "tracks forward",
    "creeps in",
    "creeps closer to {it}",
    "closes in on {it}",
    "approaches {it}",
    "advances toward {it}",
    "travels forward",
    "glides in toward {it}",
    "glides forward",
    "drifts closer",
    "drifts toward {it}",
    "tightens on {it}",
    "trucks in",
)
OUT: Final = (
    "zooms out",
    "zooms out",
    "zooms out from {it}",
    "zooms out to reveal the whole scene",
    "zooms away",
    "dollies out",
    "dollies out",
    "dollies back",
    "dollies away from {it}",
    "dollies backward",
    "pulls back",
    "pulls back",
    "pulls back from {it}",
    "pulls out",
    "pulls away from {it}",
    "pulls back to reveal the surroundings",
    "moves back",
    "moves backward",
    "moves backwards",
    "moves away",
    "moves away from {it}",
    "moves out",
    "moves further away",
    "gets further away",
    "tracks back",
    "tracks out",
    "tracks backward",
    "backs away",
    "backs away from {it}",
    "backs up",
    "retreats",
    "retreats from {it}",
    "withdraws",
    "travels backward",
    "glides back",
    "drifts away from {it}",
    "drifts back",
    "widens",
    "widens to show the whole place",
    "opens out",
)
STILL: Final = (
    "the camera is still",
    "the camera stays still",
    "the camera does not move",
    "the camera doesn't move",
    "the camera remains stationary",
    "the camera is fixed",
    "the camera is static",
    "the camera holds still",
    "static shot",
    "static camera",
    "fixed camera",
    "a fixed shot",
    "still camera",
    "locked off shot",
    "locked-off camera",
    "tripod shot",
    "no camera movement",
    "no camera motion",
    "nothing moves",
    "a still frame",
    "the frame holds",
    "the shot is steady and motionless",
    "stationary camera",
    "without any camera movement",
    "shot on a tripod",
    "the view stays the same",
)
SHOTS: Final = {
    "pan left": (
        "{slow} pan left",
        "{slow} pan to the left",
        "left pan",
        "a {slow} leftward pan",
        "a {slow} pan toward the left",
        "a {slow} sweep to the left",
        "panning left",
        "panning to the left",
        "truck left",
        "tracking shot to the left",
        "pan from right to left",
        "sliding left",
        "a {slow} left pan",
        "pan left",
    ),
    "pan right": (
        "{slow} pan right",
        "{slow} pan to the right",
        "right pan",
        "a {slow} rightward pan",
        "a {slow} pan toward the right",
        "a {slow} sweep to the right",
        "panning right",
        "panning to the right",
        "truck right",
        "tracking shot to the right",
        "pan from left to right",
        "sliding right",
        "a {slow} right pan",
        "pan right",
    ),
    "tilt up": (
        "{slow} tilt up",
        "a {slow} upward tilt",
        "tilt upward",
        "tilting up",
        "tilting upwards",
        "pedestal up",
        "crane up",
        "a {slow} crane shot up",
        "a rising shot",
        "a {slow} upward move",
        "tilt up to the sky",
        "tilt up",
        "boom up",
    ),
    "tilt down": (
        "{slow} tilt down",
        "a {slow} downward tilt",
        "tilt downward",
        "tilting down",
        "tilting downwards",
        "pedestal down",
        "crane down",
        "a {slow} crane shot down",
        "a descending shot",
        "a {slow} downward move",
        "tilt down to the ground",
        "tilt down",
        "boom down",
    ),
    "zoom in": (
        "{slow} zoom in",
        "a {slow} zoom in on {it}",
        "zoom in",
        "zooming in",
        "zoom into {it}",
        "{slow} push in",
        "a {slow} push-in",
        "dolly in",
        "{slow} dolly in",
        "a {slow} dolly-in toward {it}",
        "dolly forward",
        "pushing in on {it}",
        "push in on {it}",
        "a {slow} move toward {it}",
        "moving closer to {it}",
        "moving forward",
        "tracking in",
        "zoom-in",
        "a {slow} inward zoom",
    ),
    "zoom out": (
        "{slow} zoom out",
        "a {slow} zoom out from {it}",
        "zoom out",
        "zooming out",
        "{slow} pull back",
        "a {slow} pull-back",
        "pull out",
        "dolly out",
        "{slow} dolly out",
        "a {slow} dolly-out",
        "dolly back",
        "pulling back from {it}",
        "pulling away",
        "a {slow} move away from {it}",
        "moving away from {it}",
        "moving backward",
        "zoom-out",
        "a {slow} outward zoom",
        "a {slow} reveal of the whole scene",
    ),
}

WHO: Final = (
    "a woman",
    "a man",
    "a child",
    "an old man",
    "an old woman",
    "a girl",
    "a boy",
    "a young woman in a dress",
    "a man in a suit",
    "an astronaut",
    "a cat",
    "a dog",
    "two dogs",
    "a horse",
    "a bird",
    "a robot",
    "a dragon",
    "a knight",
    "a dancer",
    "a musician",
    "a singer",
    "a chef",
    "a soldier",
    "a painter",
    "a fox",
    "a lion",
    "a crowd of people",
    "people",
    "a couple",
    "a family",
    "a cyclist",
    "a fisherman",
    "a fish",
    "a butterfly",
    "a bear",
    "a wizard",
    "a scientist",
    "a doctor",
    "a farmer",
    "a sailor",
)
WHAT: Final = (
    "a cup of coffee",
    "a red ball",
    "an old car",
    "a ship",
    "a sailing boat",
    "a rocket",
    "a temple",
    "a castle",
    "a train",
    "a bridge",
    "flowers",
    "a yellow flower",
    "a tree",
    "a house",
    "a lighthouse",
    "a candle",
    "a book",
    "a piano",
    "a guitar",
    "a statue",
    "a fountain",
    "a waterfall",
    "a river",
    "a mountain",
    "a city skyline",
    "a street",
    "a forest",
    "a beach",
    "a field of wheat",
    "a plate of food",
    "a spaceship",
    "a clock",
    "a window",
    "a wall of bricks",
    "the moon",
    "galaxies and stars",
    "a building",
    "a garden",
    "a market",
    "a kitchen",
    "a road",
    "a lake",
    "clouds",
    "a painting",
    "a toy",
    "a bowl of fruit",
)
IT: Final = (
    "her face",
    "his face",
    "the face",
    "the subject",
    "it",
    "them",
    "him",
    "her",
    "the woman",
    "the man",
    "the cat",
    "the cup",
    "the building",
    "the temple",
    "the flower",
    "the horizon",
    "the object",
    "the eyes",
    "her eyes",
    "the center",
    "the door",
    "the window",
    "the table",
    "the street",
    "the castle",
    "the rocket",
    "the scene",
    "the child",
    "the ship",
    "the dog",
    "the bird",
    "the mountain",
    "the middle",
    "the crowd",
    "the detail",
    "the hands",
)
DOES: Final = (
    "stands still",
    "walks to the left",
    "walks to the right",
    "walks",
    "walks by",
    "runs away",
    "turns around",
    "turns left",
    "looks up",
    "looks down",
    "looks to the right",
    "looks at the camera",
    "smiles at the camera",
    "smiles",
    "waits",
    "sleeps",
    "sits down",
    "stands up",
    "gets up",
    "sits in a chair",
    "climbs a hill",
    "dances",
    "sings",
    "reads a book",
    "plays the guitar",
    "jumps up and down",
    "raises a hand",
    "raises the left hand",
    "lowers the head",
    "moves slowly",
    "moves closer to the fire",
    "talks",
    "laughs",
    "breathes",
    "works",
    "flies over the sea",
    "swims",
    "rests",
    "waves",
    "watches the sunset",
    "opens the door",
    "drinks coffee",
    "drives away",
    "comes in",
    "goes out",
    "moves back and forth",
    "leans forward",
    "steps back",
    "turns the head to the left",
    "points to the right",
    "drops a glass",
    "falls asleep",
)
IS: Final = (
    "on a table",
    "at night",
    "at sunset",
    "in the rain",
    "in the snow",
    "by the sea",
    "in the distance",
    "on the left",
    "on the right",
    "on the right side",
    "in the middle",
    "in the background",
    "in the foreground",
    "under the bridge",
    "up on the hill",
    "down the road",
    "in a dark room",
    "in the morning light",
    "in a busy neon-lit street",
    "amid a busy street",
    "in the city",
    "in the forest",
    "on a rocky mountain",
    "under a blue sky",
    "in space",
    "in an old town",
    "on the shore",
    "in a quiet garden",
    "near the window",
    "in the left corner",
    "behind the house",
    "close to the wall",
)
EVENT: Final = (
    "the wind moves the leaves",
    "leaves fall to the ground",
    "rain falls",
    "snow falls softly",
    "smoke rises",
    "steam rises from the cup",
    "birds fly up into the sky",
    "waves roll in",
    "the sun goes down",
    "the sun rises",
    "the lights turn on",
    "people blur past",
    "people walk by on the right",
    "cars drive past from left to right",
    "cars pass by",
    "dust floats in the air",
    "the hair moves in the wind",
    "water flows down",
    "water runs over the stones",
    "clouds drift to the left",
    "clouds move by",
    "time passes",
    "everything is calm",
    "the crowd moves around",
    "shadows grow longer",
    "a train comes closer",
    "a boat drifts away",
    "the fire burns",
    "their motion emphasizing her calm presence",
    "the door swings open",
    "petals drop slowly",
    "the flag waves",
    "sparks fly upward",
    "the engine starts and it lifts off",
)
LIGHT: Final = (
    "soft light",
    "warm light",
    "golden hour",
    "neon light",
    "cinematic lighting",
    "high detail",
    "natural light with soft shadows",
    "photorealistic",
    "shallow depth of field",
    "film grain",
    "4k",
    "dramatic sky",
    "bright colors",
    "moody atmosphere",
    "documentary style",
    "the light is natural and soft",
    "the colors are rich and true",
    "every detail is sharp",
    "beautiful",
    "highly detailed, realistic",
)
SOUND: Final = (
    "the sound of the sea",
    "soft music plays",
    "birds sing",
    "a bell rings in the distance",
    "quiet room tone",
    "the sound of rain",
    "people talking",
    "the hum of the city",
    "a low tone",
    "wind in the trees",
    "gentle piano music",
    "footsteps echo",
    "ambient sound",
    "the natural sound of the place is heard, clear and close",
    "silence",
    "a deep rumble that rises",
    "high notes falling",
    "music slowly fades in",
    "no music",
    "traffic noise far away",
)
DEFECTS: Final = (
    "color distortion",
    "overexposure",
    "static",
    "blurry details",
    "subtitles",
    "style",
    "artwork",
    "painting",
    "frame",
    "still",
    "dim overall tone",
    "worst quality",
    "low quality",
    "jpeg compression artifacts",
    "ugly",
    "mutilated",
    "extra fingers",
    "poorly drawn hands",
    "poorly drawn face",
    "deformed",
    "disfigured",
    "malformed limbs",
    "fused fingers",
    "motionless frame",
    "cluttered background",
    "three legs",
    "crowded background",
    "walking backwards",
    "blurry",
    "watermark",
    "text",
    "logo",
    "bad anatomy",
    "distorted",
    "noise",
    "cartoon",
    "childish",
    "pc game",
    "console game",
    "video game",
    "out of focus",
    "jittery",
    "flicker",
    "low resolution",
    "grainy",
    "bad hands",
    "oversaturated",
    "cropped",
    "inconsistent motion",
    "shaky",
)


ONSETS: Final = ("b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "tr", "v", "w", "")
VOWELS: Final = ("a", "e", "i", "o", "u", "ea", "ou", "ee", "ai")
CODAS: Final = ("", "", "n", "r", "s", "t", "l", "ck", "nd", "ng", "m", "ed", "ly", "er")
GLUE: Final = ("the", "a", "of", "and", "in", "on", "with", "all", "is", "for", "his", "her", "my", "to", "at", "by")


def caption(rng: random.Random, *, bare: float = 0.0) -> tuple[str, int]:
    """A random caption and the class of its motion: an index into MOTIONS, or DROPPED for a list of defects.

    With probability `bare` it is a camera phrase and nothing else, which is where learning has to begin.
    """
    if rng.random() < 0.08:
        return _defects(rng), DROPPED
    if rng.random() < 0.1:
        return _write([_unknown(rng) for _ in range(rng.choice((1, 1, 2)))], rng), 0
    kind = rng.randrange(len(MOTIONS))
    if rng.random() < bare:
        return _write([_camera(MOTIONS[kind], rng)], rng), kind
    parts = [_scene(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 2)))]
    camera = _camera(MOTIONS[kind], rng)
    if MOTIONS[kind] == "still" and rng.random() < 0.6:
        camera = ""
        parts = parts or [_scene(rng)]
    if camera and parts and rng.random() < 0.15:
        camera += f" {rng.choice(('as', 'while'))} {rng.choice((rng.choice(EVENT), _scene(rng)))}"
    if camera:
        parts.insert(rng.randint(0, len(parts)), camera)
    parts += [rng.choice(LIGHT) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    if rng.random() < 0.4:
        parts.append(rng.choice(SOUND))
    if rng.random() < 0.2:
        rng.shuffle(parts)
    if kind == 0 and rng.random() < 0.03:
        return "", kind
    return _write(parts, rng), kind


def _defects(rng: random.Random) -> str:
    words = rng.sample(DEFECTS, rng.choice((2, 4, 6, 10, 20, 28)))
    return ", ".join(words)


def _unknown(rng: random.Random) -> str:
    """Words that no other caption has: whoever is not told of a camera is to stand still."""
    words = []
    for _ in range(rng.randint(2, 8)):
        syllables = (rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(1, 3)))
        words.append("".join(syllables))
        if rng.random() < 0.4:
            words.append(rng.choice(GLUE))
    return " ".join(words)


def _scene(rng: random.Random) -> str:
    match rng.randrange(6):
        case 0:
            return f"{rng.choice(WHO)} {rng.choice(DOES)}"
        case 1:
            return f"{rng.choice(WHO)} {rng.choice(DOES)} {rng.choice(IS)}"
        case 2:
            return f"{rng.choice(WHAT)} {rng.choice(IS)}"
        case 3:
            return rng.choice(EVENT)
        case 4:
            return f"{rng.choice(WHO)} {rng.choice(IS)}, {rng.choice(EVENT)}"
        case _:
            return rng.choice((rng.choice(WHAT), rng.choice(WHO)))


def _camera(name: str, rng: random.Random) -> str:
    if name == "still":
        return rng.choice(STILL)
    if rng.random() < 0.3:
        phrase = rng.choice(SHOTS[name])
    else:
        phrase = _verb(name, rng)
        if rng.random() < 0.85:
            phrase = f"{rng.choice(CAMERA)} {_paced(phrase, rng)}"
        elif rng.random() < 0.5:
            phrase = f"{rng.choice(CAMERA)} {rng.choice(('is', 'keeps', 'starts'))} {_gerund(phrase)}"
        else:
            phrase = rng.choice((_imperative(phrase), f"{rng.choice(CAMERA)} should {_imperative(phrase)}"))
    phrase = phrase.replace("{it}", rng.choice(IT)).replace("{slow} ", rng.choice(("", rng.choice(SLOW) + " ")))
    return phrase.replace("a an", "an").replace("  ", " ")


def _verb(name: str, rng: random.Random) -> str:
    kind, side = name.split(" ")
    match kind, side:
        case "pan", _:
            other = "right" if side == "left" else "left"
            where = rng.choice(TO_SIDE).replace("{side}", side).replace("{other}", other)
            return f"{rng.choice(SIDEWAYS)} {where}"
        case "tilt", _:
            return rng.choice(VERTICAL[side])
        case _, "in":
            return rng.choice(IN)
        case _:
            return rng.choice(OUT)


def _paced(phrase: str, rng: random.Random) -> str:
    match rng.randrange(4):
        case 0:
            return f"{rng.choice(PACE)} {phrase}"
        case 1:
            return f"{phrase} {rng.choice(PACE)}"
        case _:
            return phrase


def _stem(verb: str) -> str:
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    if verb.endswith(("shes", "ches", "goes", "sses")):
        return verb[:-2]
    return verb[:-1]


def _imperative(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    return f"{_stem(verb)} {rest}".strip()


def _gerund(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    stem = _stem(verb)
    doubled = {"pan": "panning", "get": "getting", "drop": "dropping"}
    word = doubled.get(stem) or (stem[:-1] if stem.endswith("e") and not stem.endswith("ee") else stem) + "ing"
    return f"{word} {rest}".strip()


def _write(parts: list[str], rng: random.Random) -> str:
    style = rng.randrange(4)
    if style == 0:
        text = ", ".join(parts)
    elif style == 1:
        text = ". ".join(p[:1].upper() + p[1:] for p in parts) + "."
    elif style == 2:
        text = ". ".join(parts)
    else:
        text = rng.choice((", ", " and ", "; ", " ")).join(parts)
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.03:
        text = text.upper()
    elif rng.random() < 0.15:
        text = text.lower()
    return text
