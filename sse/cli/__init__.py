"""The commands `flask sse …`.

From the bottom up: `local` publishes and follows in this process, over the store that the serving processes share, and
`remote` does the same over HTTP, from a running service. `lines` publishes the lines of standard input, and `tail`
follows channels. Both go on after each interruption, after a wait by `backoff`, until Ctrl-C or SIGTERM, which `ending`
turns into an orderly end. `piping` runs a command and writes its output to a channel. `doctor` measures the way to a
service and prints what is wrong. `commands` reads the command line and calls the others.
"""

from sse.cli.commands import cli as cli
