"""The commands `flask sse …`: `commands` reads the command line, the other modules do the work.

`local` works in this process, over the store; `remote` asks a running service over HTTP. `lines` publishes the lines of
standard input, and `tail` follows channels; both go on after every interruption, until `ending` stops them.
"""

from sse.cli.commands import cli as cli
