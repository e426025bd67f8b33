"""The doctor: it finds out what is broken between a client and this service, and tells the remedy.

`measure` connects to the probe routes of a service and returns what it has seen as JSON. It asks by `way`, and reads
each `watched_stream` in a thread. The page of the doctor writes the same JSON in a browser.

`shape` checks that JSON, and `judge` turns it into `findings`. `arrivals` tells a buffering proxy from a slow way,
`proxies` recognises the proxies, and `remedies` knows what to set in each. `report` writes findings for people. These
modules are pure.
"""

LONGEST_WAIT = 90.0
"""Seconds for which the command watches a stream at most."""

STATUSES = (204, 400, 401, 403, 404, 409, 410, 413, 429, 503)
"""The statuses that the service's own answers have, each of which the doctor asks for."""
