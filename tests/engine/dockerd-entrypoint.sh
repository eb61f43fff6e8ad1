#!/bin/sh
# Entrypoint of the test image docker:dind. As the public image's: DOCKER_TLS_CERTDIR decides
# between TLS on 2376 and plain TCP on 2375, the socket is there in both; certificates (4096-bit
# RSA) are made unless a server's are there without the CA's key, when they are only verified. Who
# is not root gets user namespaces and a network in user space of rootlesskit, the daemon's ports
# are made known to it, and DOCKERD_ROOTLESS_ROOTLESSKIT_{NET,MTU,FLAGS} are its flags.
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

user=$(id -u)
runtime=/var/run
if [ "$user" != 0 ]; then
  runtime=${XDG_RUNTIME_DIR:-/run/user/$user}
  export XDG_RUNTIME_DIR="$runtime"
fi
socket=unix://$runtime/docker.sock
case ${DOCKER_HOST:-} in unix://*) socket=$DOCKER_HOST ;; esac

ports=${DOCKERD_ROOTLESS_ROOTLESSKIT_FLAGS:-}
case ${1:-} in
  '' | -*)
    if [ -n "$certificates" ]; then
      make_certificates
      server=$certificates/server
      set -- --host=tcp://0.0.0.0:2376 --tlsverify --tlscacert="$server/ca.pem" \
        --tlscert="$server/cert.pem" --tlskey="$server/key.pem" "$@"
      ports="$ports -p 0.0.0.0:2376:2376/tcp"
    else
      set -- --host=tcp://0.0.0.0:2375 "$@"
      ports="$ports -p 0.0.0.0:2375:2375/tcp"
    fi
    set -- dockerd --host="$socket" "$@"
    ;;
esac
[ "$1" = dockerd ] || exec docker-entrypoint.sh "$@"
if [ "$user" != 0 ]; then
  mkdir -p "$runtime" "$HOME/.local/share/docker"
  if [ ! -w "$runtime" ] || [ ! -w "$HOME/.local/share/docker" ]; then
    echo >&2 "dockerd-entrypoint.sh: $HOME and $runtime must be writable for user $user"
    exit 1
  fi
  if [ "$(cat /proc/sys/user/max_user_namespaces 2>/dev/null)" = 0 ]; then
    echo >&2 "dockerd-entrypoint.sh: user.max_user_namespaces is 0: no user namespaces, no daemon without root"
    exit 1
  fi
  # shellcheck disable=SC2086
  exec rootlesskit --net="${DOCKERD_ROOTLESS_ROOTLESSKIT_NET:-slirp4netns}" \
    --mtu="${DOCKERD_ROOTLESS_ROOTLESSKIT_MTU:-1500}" --disable-host-loopback \
    --port-driver=builtin --copy-up=/etc --copy-up=/run $ports \
    "$@" --userland-proxy-path="$(command -v rootlesskit-docker-proxy)"
fi
# Left by a container that was killed.
rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
init=$(command -v docker-init || command -v tini || true)
exec ${init:+"$init" --} "$@"
