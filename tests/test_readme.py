"""What the README says of the code is so; what was measured or published it can't check."""

import pathlib
import re

import jax
from flax import nnx

from vswin_jax.conversion.released import find
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.parameters import split_model

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_table_of_models_is_the_catalog():
  rows = [line for line in README.splitlines() if line.startswith("| `video_swin_")]
  assert len(rows) == len(CATALOG)
  for row, (name, config) in zip(rows, CATALOG.items()):
    model = nnx.eval_shape(lambda name=name: create_model(name))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(split_model(model)[1]))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == [
      f"`{name}`",
      str(config.embed_dim),
      ", ".join(map(str, config.depths)),
      ", ".join(map(str, config.num_heads)),
      f"{parameters:,}",
    ]


def test_converted_names_are_in_the_catalog():
  names = re.findall(r"vswin_jax\.convert (\w+) ", README)
  assert names
  for name in names:
    assert find(name).name == name


def test_every_config_is_named():
  for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py"):
    assert f"`configs/{path.name}`" in README, path.name


def test_links_lead_somewhere():
  links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
  assert "docs/quickstart_report.png" in links
  for link in links:
    assert (pathlib.Path(__file__).parents[1] / link).exists(), link


def test_nothing_is_left_to_fill_in():
  assert not re.findall(r"^[A-Z_]+_TABLE$", README, re.MULTILINE)
