#!/bin/sh
# Entrypoint of the test image docker:dind. As the public image's: DOCKER_TLS_CERTDIR decides
# between TLS on 2376 and plain TCP on 2375, the socket is there in both; certificates (4096-bit
# RSA) are made unless a server's are there without the CA's key, when they are only verified.
set -eu

certificates=${DOCKER_TLS_CERTDIR:-}

key() { [ -s "$1" ] || openssl genrsa -out "$1" 4096; }

names() {
  ip -oneline address | awk '{ split($4, address, "/"); printf "IP:%s,", address[1] }'
  printf 'DNS:%s,DNS:docker,DNS:localhost' "$(cat /etc/hostname)"
  [ -z "${DOCKER_TLS_SAN:-}" ] || printf ',%s' "$DOCKER_TLS_SAN"
}

# sign NAME EXTENSIONS: makes NAME/cert.pem for NAME/key.pem.
sign() {
  printf '[longshore]\n%s\n' "$2" >"$1/openssl.cnf"
  openssl req -new -key "$1/key.pem" -out "$1/csr.pem" -subj "/CN=docker:dind $1"
  openssl x509 -req -in "$1/csr.pem" -CA ca/cert.pem -CAkey ca/key.pem -CAcreateserial \
    -days 365 -extfile "$1/openssl.cnf" -extensions longshore -out "$1/cert.pem"
  cp ca/cert.pem "$1/ca.pem"
}

make_certificates() (
  mkdir -p "$certificates"
  cd "$certificates"
  if [ -s server/ca.pem ] && [ -s server/cert.pem ] && [ -s server/key.pem ] && [ ! -s ca/key.pem ]; then
    openssl verify -CAfile server/ca.pem server/cert.pem
    return
  fi
  mkdir -p ca client server
  key ca/key.pem
  openssl req -new -x509 -key ca/key.pem -days 365 -subj '/CN=docker:dind CA' -out ca/cert.pem
  key server/key.pem
  sign server "$(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth' "$(names)")"
  key client/key.pem
  chmod 644 client/key.pem
  sign client extendedKeyUsage=clientAuth
)

case ${1:-} in
  '' | -*)
    if [ -n "$certificates" ]; then
      make_certificates
      server=$certificates/server
      set -- --host=tcp://0.0.0.0:2376 --tlsverify --tlscacert="$server/ca.pem" \
        --tlscert="$server/cert.pem" --tlskey="$server/key.pem" "$@"
    else
      set -- --host=tcp://0.0.0.0:2375 "$@"
    fi
    set -- dockerd --host=unix:///var/run/docker.sock "$@"
    ;;
esac
[ "$1" = dockerd ] || exec docker-entrypoint.sh "$@"
# Left by a container that was killed.
rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
init=$(command -v docker-init || command -v tini || true)
exec ${init:+"$init" --} "$@"
