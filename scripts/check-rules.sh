#!/usr/bin/env bash
# Checks alerts.yml and runs its rule tests with promtool; says so where promtool cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v promtool >/dev/null; then
  echo "rules: SKIPPED, promtool is missing (Debian: apt-get install prometheus)"
  exit 0
fi
promtool check rules alerts.yml
promtool check config --syntax-only monitoring/prometheus/prometheus.yml
mapfile -t tests < <(grep -rlE '^tests:' tests monitoring --include="*.yml" --include="*.yaml" | sort)
[ ${#tests[@]} -gt 0 ] || { echo "rules: no rule tests found under tests/ and monitoring/" >&2; exit 1; }
for test in "${tests[@]}"; do
  echo "rules: $test"
  (cd "$(dirname "$test")" && promtool test rules "$(basename "$test")")
done
