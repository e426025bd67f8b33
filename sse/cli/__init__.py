"""The commands `flask sse …`."""

from sse.cli.commands import cli as cli
