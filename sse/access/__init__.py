"""The rules for who may read, publish and revoke: keys, tokens, the app's own rule, limits, and what was revoked."""
