"""Published figures: that an experiment still finds those that its cards were kept with."""

import json
from pathlib import Path

import pytest

from s2s_jax import published

CARDS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent.parent / "experiments/results").glob("*.json"))]
FOUND = {
    "addition": lambda data, config: published.ADDITION.get(data, []),
    "pixels": lambda data, config: published.PIXELS.get((config["order"], config["cell"]), []),
    "long_sequences": lambda data, config: published.LONG_SEQUENCES.get((config["task"], config["length"], config["cell"]), []),
    "handwriting": lambda data, config: published.HANDWRITING.get(data, []),
    "text_classification": lambda data, config: published.text_classification(data, config["model"]),
    "forecasting": lambda data, config: (
        published.etth1(len(config["targets"]) or 7, config["look_back"], config["horizon"]) if data == "etth1" else []
    ),
    "translation": lambda data, config: published.TRANSLATION.get(
        (config["dataset"], *((config["source"], config["target"]) if config["dataset"] == "multi30k" else (None, None))), []
    ),
}


@pytest.mark.parametrize("experiment", FOUND)
def test_the_figures_of_the_cards_are_those_of_the_tables(experiment):
    """Metric, value and source: how may be said in other words."""
    cards = [card for card in CARDS if card["experiment"] == experiment and card.get("config") and card["published"]]
    assert cards
    for card in cards:
        found, kept = (
            sorted((entry["metric"], entry["value"], entry["source"]) for entry in entries)
            for entries in (FOUND[experiment](card["dataset"], card["config"]), card["published"])
        )
        assert found == kept, card["command"]


def test_ag_news_has_those_of_the_network():
    assert [entry["value"] for entry in published.text_classification("ag_news_subset", "vdcnn29")] == [0.913]
    assert published.text_classification("ag_news_subset", "recurrent") == published.text_classification("own", "vdcnn29") == []
