"""The doctor: it finds out what is broken between a client and this service, and tells the remedy.

`measure` connects to the probe routes of a service and returns what it has seen as JSON. The page of the doctor writes
the same JSON in a browser. `shape` checks that JSON, and `judge` turns it into `findings`, with the help of `arrivals`,
which tells a buffering proxy from a slow one, `proxies`, which recognises the proxies on the way, and `remedies`, which
knows what to set in each. `report` writes findings for people. All modules but `measure` are pure.
"""
