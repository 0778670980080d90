"""What a user reads who has misspelt a word of a configuration."""

from pathlib import Path

import pytest

from experiments.cli import main
from experiments.runtime import FontanelCLI, UsageError

CONFIG = Path(__file__).parent.parent.parent / "experiments" / "age2hie" / "phantom_finetune.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.cachee", "x"], "HIEOutcomeDataModule has no argument 'cachee'. Did you mean 'cache'?"),
        (["--model.network.widht", "8"], "networks.SFCN has no argument 'widht'. Did you mean 'width'?"),
        (["--modle.network.width", "8"], "no argument '--modle.network.width'. Did you mean '--model.network.width'?"),
        (["--trainer.max_epochs", "abc"], "trainer.max_epochs: Expected a <class 'int'>."),
        (["--config", "nowhere.yaml"], "config: File does not exist"),
    ],
)
def test_a_misspelt_word_is_named_in_a_sentence(words, said):
    with pytest.raises(UsageError) as caught:
        FontanelCLI(["--config", str(CONFIG), *words])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_exit_code_2_and_no_pages_of_usage(capsys):
    assert main(["fit", "--config", str(CONFIG), "--model.network.widht", "8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fontanel: error: ")
    assert "usage:" not in said
