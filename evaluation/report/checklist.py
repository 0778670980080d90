"""The checklist of TRIPOD+AI in our words, filled where the software knows, blank where only the author does."""

from collections.abc import Mapping
from dataclasses import dataclass

TOPICS: Mapping[str, str] = {
    "1": "Title: model, population, outcome",
    "2": "Abstract",
    "3": "Background: clinical context, intended users, known inequalities",
    "4": "Objectives: development, evaluation, or both",
    "5": "Data: sources, dates, representativeness",
    "6": "Participants: setting, eligibility, treatments",
    "7": "Data preparation",
    "8": "Outcome: definition, assessment, blinding",
    "9": "Predictors: choice, measurement, blinding",
    "10": "Sample size",
    "11": "Missing data",
    "12a-c": "Analysis: use of data, predictors, type of model",
    "12d": "Analysis: differences between clusters",
    "12e-g": "Analysis: measures of performance, updating, calculation",
    "13": "Class imbalance",
    "14": "Fairness",
    "15": "Model output",
    "16": "Training against evaluation data",
    "17": "Ethical approval",
    "18a-d": "Open science: funding, interests, protocol, registration",
    "18e-f": "Open science: data and code",
    "19": "Patient and public involvement",
    "20": "Participants: flow, characteristics, comparison of parts",
    "21": "Model development: numbers in each analysis",
    "22": "Model specification",
    "23": "Model performance, with intervals and by group",
    "24": "Model updating",
    "25": "Interpretation",
    "26": "Limitations",
    "27": "Usability: input needed, expertise, next steps",
}


@dataclass(frozen=True)
class Item:
    """An item of the checklist.

    Args:
        number: Its number in TRIPOD+AI.
        topic: What it asks for.
        text: What the software knows; empty where only the author does.
    """

    number: str
    topic: str
    text: str = ""


def checklist_items(texts: Mapping[str, str]) -> list[Item]:
    """Return every item, with the texts that are known by its number.

    Args:
        texts: Number -> what the software knows.

    Raises:
        KeyError: A number is none of the checklist's.

    References:
        Collins GS, Moons KGM, Dhiman P, et al. BMJ 2024;385:e078378. doi:10.1136/bmj-2023-078378

    >>> [item.text for item in checklist_items({"4": "Does it work?"})][2:5]
    ['', 'Does it work?', '']
    """
    if unknown := sorted(set(texts) - set(TOPICS)):
        raise KeyError(f"The checklist has no item {', '.join(unknown)}.")
    return [Item(number, topic, texts.get(number, "")) for number, topic in TOPICS.items()]
