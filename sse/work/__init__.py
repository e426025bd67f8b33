"""The app's work: sources, runs and presence. The app's functions are passed in as callables.

- `presence` has this process's connections to the channels of SSE_PRESENCE, and reports them to the store.
- `calls` calls functions of the app that may wait, one after another.
"""
