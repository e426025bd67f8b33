"""The fan-out of one process.

`hub` keeps the register of subscribers, `follower` is the thread that moves each `channel` forward, and a `subscriber`
takes events from there. `reading` and `upkeep` ask the store, `turns` says how much at a time.
"""
