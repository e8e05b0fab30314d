"""The toy app as a program: what a second process of ddp or torchrun starts."""

import sys

from toyapp.row import APP

from manyhead_core.cli.main import run

if __name__ == "__main__":
    sys.exit(run(None, {APP.name: APP}, (), "0"))
