"""The hub: how the events of the store reach the subscribers of this process.

From the bottom up:

- `channel`: a `Channel` has a ring, a copy of the newest events of the store's ring, and the set of its subscribers.
- `subscriber`: a `Subscriber` has no queue. It has a position in each of its channels, and takes the entries after it:
  from the channel's ring, or from the store if that ring no longer reaches back so far.
- `pieces` joins the pieces of a text for subscribers that are behind.
- `schedule` decides how many channels the hub's thread works on at a time. `upkeep` does that work: it appends
  announced entries to the rings, and asks the store where an announcement is missing. `follower` is the thread that
  runs both.
- `store_reader` shares a reading of the store among all subscribers and polls that want the same.
- `recent_polls` remembers which channels were polled a short while ago, because their clients are about to ask again.
- `hub`: a `Hub` attaches and detaches subscribers, and limits how many there are.
"""
