"""The embed script. The wheel has static/sse.js here; in the checkout, this folder is empty."""
