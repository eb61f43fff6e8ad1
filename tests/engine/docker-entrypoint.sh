#!/bin/sh
# Entrypoint of the test image docker:cli. As the public image's: words that are docker's own get
# `docker` before them; without DOCKER_HOST, a mounted socket is used, else the host `docker`, with
# TLS when DOCKER_TLS_CERTDIR holds a client's certificate.
set -eu

is_docker_word() {
  case ${1:-} in
    '') return 1 ;;
    -*) return 0 ;;
    *) docker help "$1" >/dev/null 2>&1 ;;
  esac
}
client=${DOCKER_TLS_CERTDIR:+$DOCKER_TLS_CERTDIR/client}
has_certificate() {
  [ -n "$client" ] && [ -s "$client/ca.pem" ] && [ -s "$client/cert.pem" ] && [ -s "$client/key.pem" ]
}

if is_docker_word "$@"; then set -- docker "$@"; fi
if [ -z "${DOCKER_HOST:-}" ]; then
  if [ -S /var/run/docker.sock ]; then
    DOCKER_HOST=unix:///var/run/docker.sock
  elif [ -n "${DOCKER_TLS_VERIFY:-}" ] || has_certificate; then
    DOCKER_HOST=tcp://docker:2376
  else
    DOCKER_HOST=tcp://docker:2375
  fi
  export DOCKER_HOST
fi
if [ "${DOCKER_HOST#tcp:}" != "$DOCKER_HOST" ] && [ -z "${DOCKER_TLS_VERIFY:-}" ] &&
  [ -z "${DOCKER_CERT_PATH:-}" ] && has_certificate; then
  export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH="$client"
fi
exec "$@"
