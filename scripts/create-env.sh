#!/usr/bin/env bash
# Creates the file that docker compose reads credentials from, with random ones. Never overwrites it.
set -euo pipefail

file="${1:?usage: create-env.sh FILE}"
if [ -e "$file" ]; then
  exit 0
fi
random() { # so many hexadecimal characters from the kernel's generator
  od -An -N "$(($1 / 2))" -tx1 /dev/urandom | tr -d ' \n'
}
umask 077
temporary="$file.$$"
trap 'rm -f "$temporary"' EXIT
cat >"$temporary" <<END
# Made by \`make up\`. Keep a copy in a safe place: without the cluster secret identities cannot be read.
COMPOSE_PROJECT_NAME=holdfast
HOLDFAST_ROOT_USER=root-$(random 8)
HOLDFAST_ROOT_PASSWORD=$(random 40)
HOLDFAST_CLUSTER_SECRET=$(random 64)
END
mv -n "$temporary" "$file"
echo "created $file with random credentials (readable by you only)"
