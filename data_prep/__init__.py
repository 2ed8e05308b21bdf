"""Any list of image URLs and captions to verified WebDataset shards."""
