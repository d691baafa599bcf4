"""`graphpass` and `python -m graphpass`: ready for signals before anything slow is imported."""

from __future__ import annotations

import sys

from graphpass import interrupt


def main() -> None:
    """Run the command line and exit."""
    try:
        interrupt.end_on_signals(*interrupt.ENDING_SIGNALS)
        from graphpass import cli

        cli.main()
    except KeyboardInterrupt:
        print("graphpass: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
