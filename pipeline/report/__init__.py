"""Runs as pages that a person reads and numbers that a program reads: one by itself (`build`), many (`compare`)."""
