"""What runs in a worker process of gunicorn's and knows gevent: nobody else imports it."""
