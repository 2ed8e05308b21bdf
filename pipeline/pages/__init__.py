"""What all pages share: one file each, the same look, text from data only ever as text."""
