"""What the README says of the code is so; what was measured or published it can't check."""

import pathlib
import re

import jax
from flax import nnx

from vswin_jax.conversion.released import find
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.vtn import VTNConfig

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def _metadata(config) -> list[str]:
  if isinstance(config, VTNConfig):
    sizes = (config.width, config.num_layers, config.num_heads)
    return [f"`{config.backbone}`", *map(str, sizes)]
  depths, heads = (", ".join(map(str, sizes)) for sizes in (config.depths, config.num_heads))
  return [str(config.embed_dim), depths, heads]


def test_tables_of_models_are_the_catalog():
  rows = re.findall(r"^\| `(?:video_swin|vtn)_.*", README, re.MULTILINE)
  assert len([row for row in rows if row.count("|") > 6]) == len(CATALOG)
  for row, (name, config) in zip(rows, CATALOG.items()):
    model = nnx.eval_shape(lambda name=name: create_model(name))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    expected = [f"`{name}`", *_metadata(config), f"{parameters:,}"]
    assert cells[: len(expected)] == expected


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
  assert not re.findall(r"\b(?!JAX_|VSWIN_)[A-Z]+_[A-Z_]+\b", README)
