"""Requests and answers under SSE_PREFIX, and the embed script that is served there.

`request` reads a request, `admission` lets it through to its positions, and `answers` has the answers as values: all
without Flask. `views` has the routes for Flask, and `hooks` mends what the app's own hooks do to a stream. `script` is
the embed script, and `host` warns of a server that cannot hold streams.
"""
