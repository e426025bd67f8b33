"""Throughline and its peers, side by side: `make bench`.

load.c          the load generator, driven by load.py: it knows no server, only templates of requests
raw.c           the raw C loop: the limit of a server that joins nothing, and the proof that the generator takes more
peers.py        how each server is started, and how it is asked (more.py: those in Go); their apps are in apps/
scenarios.py    what is measured on a server that runs
report.py       tables, goals, the page in docs/ and its chart
costs.py        two checkouts in turn, until the ratio of each cost is known
interval.py     how sure such a ratio is
__main__.py     rounds of all scenarios on all peers
"""
