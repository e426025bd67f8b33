"""The work of an app that this process does in the background: runs, whose channels end with them.

`writer` stores the text and the events of one run. `keeper` renews the leases of all writers of this process. `run`
takes an app's iterables, has a thread of its own write each of them, and ends them when the process ends.

The app's functions are passed in as callables. Nothing here knows Flask or gevent: a thread is a `threading.Thread`,
which is a greenlet under our worker.
"""
