"""`python -m pipeline` is `neuclip`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
