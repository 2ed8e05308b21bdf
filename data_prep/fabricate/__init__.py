"""Corpora that are made here: drawn scenes, and emoji from Parquet files of images.

Both leave what any corpus starts from (URLs and captions in `metadata/*.parquet`) and held-out evaluation
tasks in DataComp's formats; `data_prep.serve` puts the images behind those URLs.
"""

from data_prep.fabricate.corpus import fabricate_scenes
from data_prep.fabricate.emoji import fabricate_emoji

__all__ = ["fabricate_emoji", "fabricate_scenes"]
