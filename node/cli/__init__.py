"""The `holdfast` command."""

from __future__ import annotations

import sys

from node.cli.app import app
from node.cli.client import RequestFailed
from node.config import WrongConfig
from node.errors import ConfigError

EXIT_FAILED = 1
EXIT_CONFIG = 2


def main() -> None:
    """Runs the command; a wrong configuration is told in plain sentences, with exit code 2."""
    try:
        app()
    except WrongConfig as error:
        print("holdfast: the configuration is wrong:", file=sys.stderr)
        for problem in error.problems:
            print(f"  - {problem}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except ConfigError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except RequestFailed as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
