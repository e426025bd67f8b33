# Start nginx in its container with the checkout's nginx.conf: under the name in NAME, over the service's unix socket,
# with the certificate of the folder tls, and with the log where `docker compose logs` reads it.
set -eu
sed -e "s/push\.example/$NAME/" \
  -e 's/^\( *\)server 127\.0\.0\.1:8000;/\1server unix:\/run\/throughline\/throughline.sock;/' \
  -e '/listen \[::\]/d' \
  -e 's/\/etc\/nginx\/throughline\./\/throughline\/tls\/throughline./' \
  -e 's/\/var\/log\/nginx\/throughline\.log/\/dev\/stdout/' \
  -e 's/\/var\/log\/nginx\/error\.log/\/dev\/stderr/' \
  /throughline/nginx.conf >/etc/nginx/nginx.conf
exec nginx -g 'daemon off;'
