"""`python -m rune` is `rune`."""

from rune.cli.main import entry

if __name__ == "__main__":
    entry()
