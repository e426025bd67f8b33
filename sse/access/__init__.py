"""The rules for who may read and publish, until when, and how often.

From the bottom up: `reload` reads a file, and reads it again when it changes. `keys` has the publishing keys, and
`jwks` the public keys of other issuers of tokens. `token` makes and verifies tokens and tickets; each gives a `Grant`,
which lists the patterns of its channels. `revocations` knows the subjects, channels and tokens that any process has
revoked. `decision` asks all of these, and is the one place where a request is let through or refused. A stream or poll
that is let through gets a `permit`, which says when its right to read expires, and wakes it if the right is revoked
before that. `limits` counts requests and events, and refuses them when they come too often. `passes` makes and checks
the passes that open the doctor's probes.
"""
