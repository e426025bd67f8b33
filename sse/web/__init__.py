"""The routes under SSE_PREFIX, and the embed script that is served there.

From the bottom up: `request` parses the parts of a request as they are needed, and knows no Flask. `admission` takes a
parsed request through the limits, the right to read or publish, and the positions or the store. `answers` makes answers
as plain values, and adds the headers that every answer has. `answering` decides by these on the answer to a stream, a
poll or a publish request. `views` connects it to Flask's routes and responses, and `lane` sends its answers without
Flask, if `lane_rule` says that the app would not have seen the requests. `own_views` answers requests to the app's own
views with the same means. `hooks` has the responses and the hook that keep streams and polls working whatever the app's
own hooks do, and `presence` notes those on channels of SSE_PRESENCE. `script` is the embed script as it is served, and
`server_check` warns of a WSGI server that cannot hold streams. `readiness` says whether new clients should come here.
`doctor` has the probes of the doctor, `probe_request` reads requests for them, and `ticker` finds out if this process
stands still.
"""
