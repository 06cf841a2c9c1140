import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import word_list
from pipeline.types import DEFAULT_NEGATIVE_PROMPT

RULES = word_list.shipped()
TABLES = tomllib.loads(Path(word_list.__file__).with_name("safety_words.toml").read_text("utf-8"))["rules"]

HARMLESS = (
    "A woman stands still amid a busy neon-lit street at night. The camera slowly dollies in toward her face.",
    "People blur past, their motion emphasizing her calm presence.",
    "A toddler laughs and claps in the kitchen while her mother sings.",
    "Children in swimsuits run into the sea, a teenager throws a ball.",
    "Two kids build a sandcastle; a young girl waves at the camera.",
    "A baby sleeps in a crib, minor key piano music plays.",
    "The pilot leans over the cockpit instruments above Essex and Scunthorpe.",
    "A cock crows on the fence; two blue tits and great tits peck at seeds.",
    "Grilled chicken breast sizzles in a pan, close-up of the thighs turning golden.",
    "A cat called Pussy Willow stretches; the pussycat purrs beside pussy willow branches.",
    "Dick Turpin rides through the fog on his horse.",
    "The comet is visible to the naked eye above naked trees.",
    "She applies nude lipstick and a nude eyeshadow palette in the mirror.",
    "A naked mole rat digs; a naked flame flickers on the gas stove.",
    "A topless jeep drives along the beach road at sunset.",
    "A sexton opens the church; middlesex county sign; a sextant on the desk.",
    "An adult couple dances a sensual tango in a dim hall.",
    "A sexy red sports car drifts around the corner.",
    "The model wears lingerie in a fashion advertisement, soft light.",
    "A mother breastfeeds her newborn in a quiet room.",
    "A surgeon operates on an open heart, monitors beep.",
    "A zombie staggers out of the fog with blood on its shirt.",
    "A knight swings his sword and the dragon falls.",
    "A soldier fires his gun; explosions in the distance.",
    "Dracula bites, rapeseed fields glow yellow, grapes are pressed.",
    "A rapper performs; the drapes sway; therapist's office.",
    "The assassin hides; a class assesses the passage; analysis of the canal.",
    "Michelangelo's David statue in a museum, tourists walk by.",
    "Steam rises from food porn style ramen.",
    "A gory detail is left out; the gorge roars.",
    "A couple hugs in bed under a blanket on a lazy Sunday.",
    "No nudity, no violence: a family picnic.",
    "Pan left across the valley, wind sounds.",
    "Ein Kind spielt im Garten. Une femme marche. \u732b\u304c\u8d70\u308b\u3002",
    DEFAULT_NEGATIVE_PROMPT,
    "",
)

UNSAFE = (
    ("A naked woman lies on the bed.", "nudity"),
    ("she UNDRESSES slowly", "nudity"),
    ("full-frontal shot of a man", "nudity"),
    ("Two people having sex in a car", "sexual acts"),
    ("hardcore porn video", "sexual acts"),
    ("a man masturbating", "sexual acts"),
    ("strip-tease on a stage", "sexual acts"),
    ("a sexy schoolgirl", "minors in a sexual way"),
    ("A child dances seductively", "minors in a sexual way"),
    ("teens, sensual, slow motion", "minors in a sexual way"),
    ("lolicon art", "sexual content about minors"),
    ("he rapes her", "sexual violence"),
    ("a man is beheaded with an axe", "gore"),
    ("a dismembered body", "gore"),
    ("he slits his wrists", "self-harm"),
    ("\uff4e\uff41\uff4b\uff45\uff44 woman", "nudity"),
    ("n\u00e4ked woman", "nudity"),
    ("nak\u200bed woman", "nudity"),
    ("naked_woman", "nudity"),
    ("visible to the naked eye, a naked woman", "nudity"),
)


@pytest.mark.parametrize("prompt", HARMLESS)
def test_a_harmless_prompt_passes(prompt):
    assert word_list.flagged(prompt, RULES) is None


@pytest.mark.parametrize(("prompt", "rule"), UNSAFE)
def test_an_unsafe_prompt_is_flagged_by_its_rule(prompt, rule):
    assert word_list.flagged(prompt, RULES) == rule


@pytest.mark.parametrize("table", TABLES, ids=[table["name"] for table in TABLES])
def test_every_phrase_of_the_list_flags(table):
    for phrase in table["any"]:
        words = " ".join([phrase.replace("*", "ing"), *table.get("with", [])[:1]])
        assert word_list.flagged(f"So {words}, then.", RULES), phrase


@pytest.mark.parametrize("table", TABLES, ids=[table["name"] for table in TABLES])
def test_every_phrase_of_the_list_is_written_as_prompts_are_read(table):
    for phrase in (*table["any"], *table.get("with", []), *table.get("except", [])):
        assert word_list.plain(phrase.replace("*", "")) == phrase.replace("*", "")


def test_the_demo_prompts_pass():
    for line in Path("tests/demo/paraphrases.txt").read_text("utf-8").splitlines():
        assert word_list.flagged(line, RULES) is None, line


@given(st.text(max_size=300))
def test_any_text_can_be_looked_at(text):
    assert word_list.flagged(text, RULES) in {None, *(table["name"] for table in TABLES)}
