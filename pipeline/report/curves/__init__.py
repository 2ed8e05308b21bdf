"""Training curves, of one run or of many: which there are, and the part of a page that draws them."""
