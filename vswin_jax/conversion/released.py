"""The checkpoints others have published that this library can read: names, places, metadata.

Figures are those of the publishers, on their copies of the data; nothing here was measured with
this library.
"""

import dataclasses

from vswin_jax.common.checks import closest

FAMILIES = ("official", "mmaction2", "torchvision", "swin_2d", "vtn")
# Logits of a head for each data set.
NUM_CLASSES = {
  "kinetics400": 400,
  "kinetics600": 600,
  "kinetics700": 700,
  "kinetics710": 710,
  "something_something_v2": 174,
  "imagenet_1k": 1000,
  "imagenet_22k": 21841,
}


class UnknownName(ValueError):
  """No released checkpoint of this name; the message names the nearest."""


@dataclasses.dataclass(frozen=True)
class Released:
  """One published file; None: not known.

  Attributes:
    name: in this catalog, such as "swin_t_k400_official".
    file: its file name.
    url: where it lies.
    family: one of `FAMILIES`, the kind of its parameter names.
    model: the model of `models.CATALOG` it becomes; 2D weights are inflated to it.
    dataset: whose classes the head has, a key of `NUM_CLASSES`.
    window: tokens of an attention window, (time, height, width), for 2D weights (height, width).
    top1: published accuracy in percent.
    top5: published accuracy in percent.
    views: clips x crops of a video behind these accuracies.
    parameters: scalars of the model with this head.
    macs: billions of multiply-accumulates of one clip or image: 32 frames at 224 x 224, products
      of attention included; for 2D weights as published; for VTN 250 frames as published, which
      leaves those products out (4397 with them).
    config: the config of this library with the same training recipe.
    size: bytes of the file.
    sha256: leading hexadecimal digits, as many as are known.
  """

  name: str
  file: str
  url: str
  family: str
  model: str
  dataset: str
  window: tuple[int, ...] | None
  parameters: int
  macs: float | None
  top1: float | None = None
  top5: float | None = None
  views: str | None = None
  config: str | None = None
  size: int | None = None
  sha256: str | None = None


def _official(name: str, model: str, dataset: str, file: str, **metadata) -> Released:
  """Of the authors of Video Swin."""
  base = "https://github.com/SwinTransformer/storage/releases/download/v1.0.4/"
  metadata = {"window": (8, 7, 7), **metadata}
  return Released(name, file, base + file, "official", model, dataset, **metadata)


def _mmaction2(
  name: str, model: str, dataset: str, config: str, suffix: str, **metadata
) -> Released:
  """Of mmaction2 1.x; the second part of the suffix are the first digits of the SHA-256."""
  base = "https://download.openmmlab.com/mmaction/v1.0/recognition/swin/"
  file = f"{config}_{suffix}.pth"
  metadata = {"window": (8, 7, 7), "views": "4x3", "sha256": suffix.split("-")[1], **metadata}
  return Released(name, file, f"{base}{config}/{file}", "mmaction2", model, dataset, **metadata)


def _torchvision(name: str, model: str, file: str, **metadata) -> Released:
  """Of torchvision, which took over the official weights; last in the name: the SHA-256."""
  url = f"https://download.pytorch.org/models/{file}"
  digits = file.removesuffix(".pth").split("-")[1]
  metadata = {"window": (8, 7, 7), "views": "12x1", "sha256": digits, **metadata}
  return Released(name, file, url, "torchvision", model, "kinetics400", **metadata)


def _swin_2d(
  name: str,
  file: str,
  parameters: int,
  macs: float,
  top1: float | None = None,
  top5: float | None = None,
  release: str = "v1.0.0",
) -> Released:
  """Of the authors of the 2D Swin Transformer, where Video Swin starts from."""
  return Released(
    name,
    file,
    f"https://github.com/SwinTransformer/storage/releases/download/{release}/{file}",
    "swin_2d",
    f"video_{name[:6]}",
    "imagenet_22k" if file.endswith("_22k.pth") else "imagenet_1k",
    window=(12, 12) if "window12" in file else (7, 7),
    parameters=parameters,
    macs=macs,
    top1=top1,
    top5=top5,
  )


RELEASED: tuple[Released, ...] = (
  _official(
    "swin_t_k400_official",
    "video_swin_t",
    "kinetics400",
    "swin_tiny_patch244_window877_kinetics400_1k.pth",
    parameters=28_158_070,
    macs=87.8,
    top1=78.8,
    top5=93.6,
    views="4x3",
    config="configs/k400_swin_t.py",
  ),
  _official(
    "swin_s_k400_official",
    "video_swin_s",
    "kinetics400",
    "swin_small_patch244_window877_kinetics400_1k.pth",
    parameters=49_816_678,
    macs=165.7,
    top1=80.6,
    top5=94.5,
    views="4x3",
    config="configs/k400_swin_s.py",
  ),
  _official(
    "swin_b_k400_official",
    "video_swin_b",
    "kinetics400",
    "swin_base_patch244_window877_kinetics400_1k.pth",
    parameters=88_048_984,
    macs=281.3,
    top1=80.6,
    top5=94.6,
    views="4x3",
    config="configs/k400_swin_b.py",
  ),
  _official(
    "swin_b_in22k_k400_official",
    "video_swin_b",
    "kinetics400",
    "swin_base_patch244_window877_kinetics400_22k.pth",
    parameters=88_048_984,
    macs=281.3,
    top1=82.7,
    top5=95.5,
    views="4x3",
  ),
  _official(
    "swin_b_in22k_k600_official",
    "video_swin_b",
    "kinetics600",
    "swin_base_patch244_window877_kinetics600_22k.pth",
    parameters=88_253_984,
    macs=281.3,
    top1=84.0,
    top5=96.5,
    views="4x3",
    size=382_579_368,
  ),
  # Published without accuracies, as the start of the next.
  _official(
    "swin_b_w16_in22k_k400_official",
    "video_swin_b",
    "kinetics400",
    "swin_base_patch244_window1677_kinetics400_22k.pth",
    window=(16, 7, 7),
    parameters=89_065_688,
    macs=320.4,
  ),
  _official(
    "swin_b_w16_ssv2_official",
    "video_swin_b",
    "something_something_v2",
    "swin_base_patch244_window1677_sthv2.pth",
    window=(16, 7, 7),
    parameters=88_834_038,
    macs=320.4,
    top1=69.6,
    top5=92.7,
    views="1x3",
    size=473_410_081,
  ),
  _mmaction2(
    "swin_t_k400_mmaction2",
    "video_swin_t",
    "kinetics400",
    "swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    "20220930-241016b2",
    parameters=28_158_070,
    macs=87.8,
    top1=78.90,
    top5=93.77,
  ),
  _mmaction2(
    "swin_s_k400_mmaction2",
    "video_swin_s",
    "kinetics400",
    "swin-small-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    "20220930-e91ab986",
    parameters=49_816_678,
    macs=165.7,
    top1=80.54,
    top5=94.46,
  ),
  _mmaction2(
    "swin_b_k400_mmaction2",
    "video_swin_b",
    "kinetics400",
    "swin-base-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    "20220930-182ec6cc",
    parameters=88_048_984,
    macs=281.3,
    top1=80.57,
    top5=94.49,
  ),
  _mmaction2(
    "swin_l_in22k_k400_mmaction2",
    "video_swin_l",
    "kinetics400",
    "swin-large-p244-w877_in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb",
    "20220930-78ad8b11",
    parameters=196_953_916,
    macs=603.3,
    top1=83.46,
    top5=95.91,
  ),
  _mmaction2(
    "swin_l_in22k_k700_mmaction2",
    "video_swin_l",
    "kinetics700",
    "swin-large-p244-w877_in22k-pre_16xb8-amp-32x2x1-30e_kinetics700-rgb",
    "20220930-f8d74db7",
    parameters=197_415_016,
    macs=603.3,
    top1=75.92,
    top5=92.72,
  ),
  # Its publisher gives the parameters and FLOPs of a Swin-L, by mistake.
  _mmaction2(
    "swin_s_k710_mmaction2",
    "video_swin_s",
    "kinetics710",
    "swin-small-p244-w877_in1k-pre_32xb4-amp-32x2x1-30e_kinetics710-rgb",
    "20230612-8e082ff1",
    parameters=50_055_068,
    macs=165.7,
    top1=76.90,
    top5=92.96,
  ),
  _torchvision(
    "swin_t_k400_torchvision",
    "video_swin_t",
    "swin3d_t-7615ae03.pth",
    parameters=28_158_070,
    macs=87.8,
    top1=77.715,
    top5=93.519,
    config="configs/k400_swin_t.py",
  ),
  _torchvision(
    "swin_s_k400_torchvision",
    "video_swin_s",
    "swin3d_s-da41c237.pth",
    parameters=49_816_678,
    macs=165.7,
    top1=79.521,
    top5=94.158,
    config="configs/k400_swin_s.py",
  ),
  _torchvision(
    "swin_b_k400_torchvision",
    "video_swin_b",
    "swin3d_b_1k-24f7c7c6.pth",
    parameters=88_048_984,
    macs=281.3,
    top1=79.427,
    top5=94.386,
    config="configs/k400_swin_b.py",
  ),
  _torchvision(
    "swin_b_in22k_k400_torchvision",
    "video_swin_b",
    "swin3d_b_22k-7c6ae6fa.pth",
    parameters=88_048_984,
    macs=281.3,
    top1=81.643,
    top5=95.574,
  ),
  _swin_2d("swin_t_in1k_2d", "swin_tiny_patch4_window7_224.pth", 28_288_354, 4.5, 81.2, 95.5),
  _swin_2d("swin_s_in1k_2d", "swin_small_patch4_window7_224.pth", 49_606_258, 8.7, 83.2, 96.2),
  _swin_2d("swin_b_in1k_2d", "swin_base_patch4_window7_224.pth", 87_768_224, 15.4, 83.5, 96.5),
  _swin_2d("swin_b_w12_in1k_2d", "swin_base_patch4_window12_384.pth", 87_903_584, 47.1, 84.5, 97.0),
  # The accuracies published beside 22K weights are those of their fine-tuned versions.
  _swin_2d(
    "swin_t_in22k_2d", "swin_tiny_patch4_window7_224_22k.pth", 44_315_083, 4.5, release="v1.0.8"
  ),
  _swin_2d(
    "swin_s_in22k_2d", "swin_small_patch4_window7_224_22k.pth", 65_632_987, 8.7, release="v1.0.8"
  ),
  _swin_2d("swin_b_in22k_2d", "swin_base_patch4_window7_224_22k.pth", 109_130_249, 15.4),
  _swin_2d("swin_b_w12_in22k_2d", "swin_base_patch4_window12_384_22k.pth", 109_265_609, 47.1),
  _swin_2d("swin_l_in22k_2d", "swin_large_patch4_window7_224_22k.pth", 228_565_093, 34.5),
  _swin_2d("swin_l_w12_in22k_2d", "swin_large_patch4_window12_384_22k.pth", 228_768_133, 103.9),
  _swin_2d(
    "swin_t_in22k_in1k_2d",
    "swin_tiny_patch4_window7_224_22kto1k_finetune.pth",
    28_288_354,
    4.5,
    80.9,
    96.0,
    release="v1.0.8",
  ),
  _swin_2d(
    "swin_s_in22k_in1k_2d",
    "swin_small_patch4_window7_224_22kto1k_finetune.pth",
    49_606_258,
    8.7,
    83.2,
    97.0,
    release="v1.0.8",
  ),
  _swin_2d(
    "swin_b_in22k_in1k_2d", "swin_base_patch4_window7_224_22kto1k.pth", 87_768_224, 15.4, 85.2, 97.5
  ),
  _swin_2d(
    "swin_b_w12_in22k_in1k_2d",
    "swin_base_patch4_window12_384_22kto1k.pth",
    87_903_584,
    47.1,
    86.4,
    98.0,
  ),
  _swin_2d(
    "swin_l_in22k_in1k_2d",
    "swin_large_patch4_window7_224_22kto1k.pth",
    196_532_476,
    34.5,
    86.3,
    97.9,
  ),
  _swin_2d(
    "swin_l_w12_in22k_in1k_2d",
    "swin_large_patch4_window12_384_22kto1k.pth",
    196_735_516,
    103.9,
    87.3,
    98.2,
  ),
  Released(
    "vtn_vit_b_k400",
    "VTN_VIT_B_KINETICS.pyth",
    "https://researchpublic.blob.core.windows.net/vtn/VTN_VIT_B_KINETICS.pyth",
    "vtn",
    "vtn_vit_b",
    "kinetics400",
    window=None,
    parameters=113_502_352,
    macs=4218.0,
    top1=77.72,
    top5=93.24,
    views="1x1",
    config="configs/k400_vtn_vit_b.py",
    sha256="779682d33e7afc32c3eff910e151eab30e7aed375acf7743cfe3041a83dcbf3a",
  ),
)


def find(name: str) -> Released:
  """The checkpoint of a catalog name or a file name.

  Raises:
    UnknownName: neither.
  """
  for released in RELEASED:
    if name in (released.name, released.file):
      return released
  known = [released.file if "." in name else released.name for released in RELEASED]
  raise UnknownName(f"no released checkpoint is called {name!r}: {closest(name, known)}")


def identify(path_name: str, sha256: str, size: int) -> Released | None:
  """Recognizes a file, None if it is none of these.

  Where digits of the SHA-256 are known they decide, so a renamed file is recognized and another
  of the same name is not; elsewhere the name has to do, and the size if known.

  Args:
    path_name: the file's name, or a path to it.
    sha256: of its contents, 64 hexadecimal digits.
    size: of the file in bytes.
  """
  file = path_name.replace("\\", "/").rsplit("/", 1)[-1]
  for released in RELEASED:
    if released.sha256 is None:
      if released.file == file and released.size in (None, size):
        return released
    elif sha256.lower().startswith(released.sha256):
      return released
  return None


def table() -> str:
  """The catalog for people: a header and one line for each checkpoint."""
  figures = ("top-1", "top-5", "M params", "GMACs")
  rows = [("name", "family", "data set", "window", *figures, "views", "recipe", "file")]
  for released in RELEASED:
    cells = (
      released.name,
      released.family,
      released.dataset,
      None if released.window is None else "x".join(map(str, released.window)),
      None if released.top1 is None else f"{released.top1:.1f}",
      None if released.top5 is None else f"{released.top5:.1f}",
      f"{released.parameters / 1e6:.1f}",
      released.macs,
      released.views,
      released.config,
      released.url,
    )
    rows.append(tuple("-" if cell is None else str(cell) for cell in cells))
  widths = [max(map(len, column)) for column in zip(*rows)]
  is_number = [title in figures for title in rows[0]]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if number else cell.ljust(width)
      for cell, width, number in zip(row, widths, is_number)
    ).rstrip()
    for row in rows
  )
