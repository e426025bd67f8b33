"""The work of an app that this process does in the background.

Runs end, and their channels end with them. Sources run while somebody listens. Presence says who listens.

`writer` stores the text and the events of one run. `keeper` renews the leases of all writers of this process. `run`
takes an app's iterables, has a thread of its own write each of them, and ends them when the process ends. `source` is
a function that makes a channel's events, and what runs it. `sources` asks the store which of them this process runs.

`presence` has the connections of this process to the channels of SSE_PRESENCE, and reports them to the store. `calls`
calls functions of the app that may wait, one after another.

The app's functions are passed in as callables. Nothing here knows Flask or gevent: a thread is a `threading.Thread`,
which is a greenlet under our worker.
"""
