"""The fan-out of one process: `hub` follows the store, and each `subscriber` takes events from it."""
