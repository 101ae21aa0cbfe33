"""Openings of user turns: short templates of our own, which the model itself completes.

A template is text with two kinds of marks. ``{name}`` is replaced by a random word of that list.
``[[line:40]]``, ``[[sentence:40]]`` and ``[[text:90]]`` are holes that the model fills by sampling at most
that many tokens: up to the end of the line, of the sentence, or of its turn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

HOLE = re.compile(r"\[\[(line|sentence|text):(\d+)\]\]")
CHOICE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Hole:
    """A place that the model fills: how it ends, and how many tokens it may take."""

    kind: str
    max_tokens: int


Piece = str | Hole

#: How much longer than the template says a prompt's text may become; one of these is drawn for each prompt.
#: Long prompts are wanted, too: routers that knew short ones alone left out twice as much of long ones.
STRETCHES = (1.0, 1.6, 2.2)


def _words(text: str) -> list[str]:
    return text.split(",")


# fmt: off
WORDS: dict[str, list[str]] = {
    "language": _words(
        "German,German,German,German,German,French,French,Spanish,Spanish,Italian,Portuguese,"
        "Dutch,Swedish,Polish"
    ),
    "name": _words(
        "Anna,Ben,Carla,David,Emma,Frank,Grace,Henry,Irene,Jack,Karen,Leo,Maria,Nick,"
        "Olivia,Paul,Rosa,Sam,Tina,Victor,Mr,Brown,Mrs,Green,Doctor,Teacher,Customer,Clerk,"
        "Mother,Son"
    ),
    "scene": _words(
        "man,woman,boy,girl,child,group of people,young couple,dog,cat,horse,crowd,"
        "football player,musician,cook,worker in a yellow vest,family,woman in a red dress,"
        "man with a hat,two men,three children,old man,little girl in pink,street performer,"
        "cyclist,surfer,team of builders,bride,two dogs,baby,skateboarder"
    ),
    "doing": _words(
        "is riding,is standing near,is sitting on,is walking,are playing,is holding,is looking at,"
        "jumps over,is cooking,is sleeping,are waiting for,is climbing,runs through,is painting,"
        "is cleaning,plays"
    ),
    "topic": _words(
        "the history of a small town,a river,photosynthesis,a famous painter,"
        "the invention of the telephone,a football club,volcanoes,an ancient empire,a university,"
        "the human heart,a war in the nineteenth century,a species of bird,electric cars,"
        "a chess champion,the tides,a law about trade,a film festival,tea,bridges,a queen,"
        "computer memory,a desert,an airline,vaccines,jazz,a language family,a mountain,"
        "the printing press,sleep,a bank,honey bees,a religious movement,glass,a political party,"
        "steel,the Moon,maize,a composer"
    ),
    "opening": _words(
        "The,The,The,In,In 1,In 19,During the,After,By the end of,Although,One of the,It was,"
        "There are,When,According to,Since,As of,Many,Most,The first,The largest,At the,"
        "Between,Its,His,She was born"
    ),
    "subject": _words(
        "algebra,biology,cooking,gardening,running,saving money,learning a language,travel,music,"
        "history,physics,job interviews,friendship,pets,the weather,video games,time management,"
        "photography,health,small business,climate,teaching,reading,space,cars,movies,parenting,"
        "sleep,computers,art"
    ),
    "ask": _words(
        "What,Who,When,Where,Which,How many,Why,How,In what year,What is the name of,Who was"
    ),
    "say": _words(
        "Hi,Hello,Excuse me,Have you,I think,Do you,Can I,What,Good morning,I'm so,Did you,"
        "We need,How"
    ),
    "thing": _words(
        "apples,books,pencils,tickets,marbles,cookies,eggs,flowers,stamps,bottles,coins,chairs"
    ),
    "code": _words(
        "reverses a string,sorts a list of numbers,counts words,finds prime numbers,reads a CSV file,"
        "checks for a palindrome,computes a factorial,merges two dictionaries,removes duplicates,"
        "finds the largest number,converts temperatures,prints a pattern"
    ),
    "tool": _words(
        "Python,Python,Python,JavaScript,C,Java,SQL,Bash,HTML"
    ),
    "short": _words(
        "Briefly,In one sentence,In simple words,In detail,Step by step,For a child"
    ),
}

#: The numbers are weights: how often a kind of prompt is drawn.
TEMPLATES: list[tuple[float, str]] = [
    # Dialogues to summarise: one line is begun, and the model goes on with the others.
    (1.6, "Summarize the following dialogue.\n\n{name}: {say}[[text:110]]"),
    (1.6, "Summarize the following dialogue.\n\n#A#: Hello, how can I help?\n#B#: {say}[[text:120]]"),
    (1.6, "Summarize the following dialogue.\n\nSpeaker 1: {say} you here?\nSpeaker 2:[[text:120]]"),
    (0.8, "What are these people talking about?\n\nA: {say} it now.\nB:[[text:90]]"),
    (0.8, "Write a short summary of this conversation.\n\n{name}: {say} today.\n{name}:[[text:90]]"),
    # Texts to summarise or rewrite.
    (1.0, "Summarize this text in one sentence.\n\n{opening}[[text:110]]"),
    (0.7, "Summarize the following article about {topic}.\n\n{opening}[[text:120]]"),
    (0.5, "Give this paragraph a title.\n\n{opening}[[text:80]]"),
    (0.5, "Rewrite this more simply: {opening}[[line:50]]"),
    (0.4, "Correct the grammar: [[line:25]]"),
    (0.4, "Is this review positive or negative? [[line:50]]"),
    # Translations.
    (2.5, "Translate to {language}: A {scene} {doing}[[sentence:18]]"),
    (1.5, "Translate to {language}: {scene} {doing}[[sentence:18]]"),
    (1.0, "Translate to {language}: {opening}[[sentence:25]]"),
    (0.7, "Translate into {language}: {say}[[line:16]]"),
    (0.5, "How do you say \"{say}[[sentence:10]]\" in {language}?"),
    # Questions on a passage, or without one.
    (2.5, "Answer the question from the passage.\n\nPassage: {opening}[[text:110]]"
          "\n\nQuestion: {ask}[[line:18]]"),
    (1.5, "Answer the question from the passage.\n\nPassage: Here is a text on {topic}. {opening}[[text:100]]"
          "\n\nQuestion: {ask}[[line:18]]"),
    (0.7, "{opening}[[text:90]]\n\n{ask}[[line:16]]"),
    (0.7, "Read the text and answer.\n\nText: {opening}[[text:90]]\n\nQ: {ask}[[line:16]]"),
    (1.0, "{ask}[[line:20]]"),
    (0.5, "{short}, explain {topic}."),
    # Mathematics.
    (0.8, "{name} has [[sentence:30]] How many {thing}[[line:20]]"),
    (0.5, "Solve: [[line:20]]"),
    (0.4, "What is [[line:12]]"),
    # Code, lists, letters, stories, chat.
    (0.7, "Write a {tool} function that {code}."),
    (0.5, "Write {tool} code that {code}[[line:20]]"),
    (0.5, "What does this code do?\n\ndef[[text:60]]"),
    (0.6, "List five [[line:16]]"),
    (0.6, "Give me some tips about {subject}."),
    (0.5, "Write an email to {name} about[[line:16]]"),
    (0.5, "Write a short story about {topic}."),
    (0.3, "Write a poem about[[line:12]]"),
    (0.6, "I have a question about {subject}. [[line:40]]"),
    (0.6, "Hi! [[line:30]]"),
    (0.5, "Can you [[line:24]]"),
    (0.8, "[[text:60]]"),
]

#: What a user says after an answer.
NEXT: list[tuple[float, str]] = [
    (1.0, "Why?"),
    (0.5, "Are you sure?"),
    (0.6, "Give me an example."),
    (0.6, "Can you explain that more simply?"),
    (0.6, "Say that in one sentence."),
    (0.4, "Make it longer."),
    (0.4, "Translate that into {language}."),
    (0.6, "Thanks! [[line:24]]"),
    (0.6, "But[[line:24]]"),
    (0.8, "And what about[[line:16]]"),
    (0.5, "Tell me more about[[line:12]]"),
    (0.5, "I don't understand[[line:16]]"),
    (0.5, "Can you [[line:24]]"),
    (1.0, "{ask}[[line:20]]"),
    (0.7, "[[text:40]]"),
]
#: How often a user asks about something else instead.
CHANGE = 0.25
# fmt: on


def draw_next(rng: random.Random) -> list[Piece]:
    """Draw what a user says after an answer, as ``draw`` does; texts are not stretched."""
    return draw(rng, TEMPLATES if rng.random() < CHANGE else NEXT, (1.0,))


def draw(
    rng: random.Random,
    templates: Sequence[tuple[float, str]] = TEMPLATES,
    stretches: Sequence[float] = STRETCHES,
) -> list[Piece]:
    """Draw one template and return its pieces, words chosen: text and holes in turn."""
    template = rng.choices([text for _, text in templates], [weight for weight, _ in templates])[0]
    names = rng.sample(WORDS["name"], 2)
    turn = 0

    def choose(match: re.Match[str]) -> str:
        nonlocal turn
        if match[1] == "name":  # speakers of a dialogue take turns
            turn += 1
            return names[(turn - 1) % 2]
        return rng.choice(WORDS[match[1]])

    text = CHOICE.sub(choose, template)
    stretch = rng.choice(stretches)
    pieces: list[Piece] = []
    end = 0
    for match in HOLE.finditer(text):
        tokens = int(match[2]) * (stretch if match[1] == "text" else 1)
        pieces += [text[end : match.start()], Hole(match[1], round(tokens))]
        end = match.end()
    pieces.append(text[end:])
    return [piece for piece in pieces if piece != ""]
