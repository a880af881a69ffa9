"""Describe the settings of recipes: allowed values, default and meaning.

    maskfeat settings [SECTION | SECTION.KEY]

Settings are given as SECTION.KEY=VALUE, or in the sections of a YAML file. docs/reference/settings.md has the same
descriptions.

Examples:

    maskfeat settings

    maskfeat settings optim

    maskfeat settings augment.mixup --finetune
"""

import json
import shutil
import textwrap
from dataclasses import asdict

from pipeline.config import Recipe
from pipeline.descriptions import REQUIRED, Description, chosen
from pipeline.finetune.config import FinetuneRecipe
from pipeline.settings import ConfigError
from shards.terminal import Parser, note, prepare, say

MOST_COLUMNS = 100


def main() -> int:
    """Return 0, or 2 for an unknown section or setting."""
    parser = Parser(__doc__)
    parser.add_argument("key", nargs="?", default="", metavar="SECTION[.KEY]", help="a section or a setting; else all")
    parser.add_argument("--finetune", action="store_true", help="the settings of fine-tuning, not of pre-training")
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object for each setting")
    prepare()
    arguments = parser.parse_args()
    try:
        sections = chosen(FinetuneRecipe if arguments.finetune else Recipe, arguments.key)
    except ConfigError as error:
        note(f"error: {error}")
        return 2
    if arguments.json:
        print(json.dumps([asdict(setting) for section in sections for setting in section.settings], indent=1))
        return 0
    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    for section in sections:
        if "." not in arguments.key:
            say(f"{section.name}: {section.meaning}")
        for setting in section.settings:
            tell(setting, width)
    return 0


def tell(setting: Description, width: int) -> None:
    """Print a setting on lines of at most `width` columns."""
    default = (
        f"  ({REQUIRED}, {setting.values})"
        if setting.default == REQUIRED
        else f"={setting.default}  ({setting.values})"
    )
    say(f"{setting.key}{default}")
    for line in textwrap.wrap(setting.meaning, width - 4, break_on_hyphens=False):
        say(f"    {line}")
