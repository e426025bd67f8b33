"""The routes under SSE_PREFIX, for Flask, and the embed script that they serve."""
