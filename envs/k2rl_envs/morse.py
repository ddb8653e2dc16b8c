"""Morse code to decode.

Levels:

    1  three letters
    2  five letters
    3  eight letters and digits
    4  two words
    5  four words and a number
"""

from __future__ import annotations

from string import ascii_uppercase, digits

import numpy as np
from k2rl_rewards.puzzle import ShortAnswer

from k2rl_envs.generated import GeneratedGame, Puzzle, words

_SIGNS = words(
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. ----- "
    ".---- ..--- ...-- ....- ..... -.... --... ---.. ----."
)
CODE = dict(zip(ascii_uppercase + digits, _SIGNS, strict=True))
WORDS = words(
    "ACORN AMBER ANCHOR APPLE ARROW AUTUMN BAKER BEACH BIRD BOTTLE BRIDGE BROOK CABIN CANDLE CASTLE CHERRY CLOUD COAST "
    "COPPER CORAL COTTON CRANE DAWN DESERT DRUM EAGLE EARTH EMBER FALCON FEATHER FERRY FIELD FLUTE FOREST FOX FROST "
    "GARDEN GLASS GOLD GRAPE HARBOR HAWK HAZEL HEATHER HILL HONEY HORSE ISLAND IVORY JACKET JUNGLE KETTLE LADDER LAKE "
    "LANTERN LEMON LILY LION MAPLE MARBLE MEADOW MILL MIRROR MOON MOUNTAIN NIGHT OAK OCEAN OLIVE ORCHID OTTER PAPER "
    "PEARL PEPPER PIANO PILOT PINE PLANET POND QUARTZ QUEEN RABBIT RAIN RAVEN RIVER ROBIN ROCKET SADDLE SAIL SALT "
    "SHADOW SHELL SILVER SNOW SPARROW SPRING STONE STORM SUMMER SWAN TEMPLE THUNDER TIGER TOWER TRAIN TULIP TURTLE "
    "VALLEY VELVET VIOLIN VOYAGE WAGON WALNUT WATER WHALE WILLOW WINDOW WINTER WOLF YELLOW ZEBRA"
)
LEVELS = {1: (ascii_uppercase, 3), 2: (ascii_uppercase, 5), 3: (tuple(CODE), 8), 4: (WORDS, 2), 5: (WORDS, 4)}


class MorseGame(GeneratedGame):
    """Morse code of letters, digits and words; the answer is the text in capitals."""

    name = "morse"
    levels = LEVELS
    default_level = 2
    default_instruction = 'End with a line "#### text", where text is the decoded text alone.'
    reward = ShortAnswer()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle:
        signs, length = LEVELS[level]
        parts = [signs[int(i)] for i in draw.integers(len(signs), size=length)]
        if level == 5:
            parts.insert(int(draw.integers(length + 1)), str(int(draw.integers(10, 10_000))))
        text = (" " if signs is WORDS else "").join(parts)
        question = f"Decode this Morse code (a space between signs, / between words): {encode(text)}"
        return Puzzle(question, text, text, {"answer": text})


def encode(text: str) -> str:
    """`SOS AT` -> `... --- ... / .- -`."""
    return " / ".join(" ".join(CODE[c] for c in word) for word in text.split())
