"""From a path to what is served: the gate first, then the card."""

from __future__ import annotations

from pathlib import Path

from modelyard.errors import ModelRefused
from modelyard.models.card import Card
from modelyard.models.card_gguf import card_of_gguf
from modelyard.models.card_huggingface import card_of_folder
from modelyard.models.gate import check_folder, check_gguf


def read_card(path: Path) -> Card:
    """The card of a GGUF file or a Hugging Face folder. Raises ModelRefused where the gate or the header says no."""
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelRefused(f"{path} has no config.json", hint="name the folder that holds config.json")
        check_folder(path)
        return card_of_folder(path)
    check_gguf(path)
    return card_of_gguf(path)
