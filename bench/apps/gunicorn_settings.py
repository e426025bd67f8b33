"""gunicorn's settings for the apps in this folder."""

worker_connections = 15_000
keepalive = 75
control_socket_disable = True
