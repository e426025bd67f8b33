"""The rules for who may read and publish, until when, and how often.

`decision` is the one place where a request is let through. It asks `token`, with `jwks`, and `keys` about the
credential that was sent. A stream or a waiting poll stands on a `permit`, which ends when its token expires or is
revoked; `revocations` knows what was revoked, in any process. `limits` counts, and `reload` reads a file again when it
changes.
"""
