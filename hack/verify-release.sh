#!/usr/bin/env bash
# Checks a release without a network: hack/verify-release.sh FOLDER PUBLIC-KEY.
# The key has to come from elsewhere than the release.
set -euo pipefail

if [[ $# != 2 ]]; then
	echo "verify-release: want the folder of a release and the file of its public key" >&2
	exit 2
fi
key=$(realpath "$2")
cd "$1"
signed() { openssl pkeyutl -verify -pubin -inkey "$key" -rawin -in "$1" -sigfile "$2" >/dev/null; }
signed SHA256SUMS SHA256SUMS.sig ||
	{ echo "verify-release: the checksums in $1 are not signed by $2" >&2; exit 1; }
sha256sum --check --strict --quiet SHA256SUMS
# What is there beside them was not released.
diff <(cut -c 67- SHA256SUMS | sort) <(find . ! -type d -printf '%P\n' | grep -vx 'SHA256SUMS\(\.sig\)\?' | sort) >&2 ||
	{ echo "verify-release: there are files in $1 that the checksums do not name" >&2; exit 1; }
# The blobs of images are named by their digests, which chart and manifests ask for.
awk -F '  ' '$2 ~ /\/blobs\/sha256\// { n = $2; sub(/.*\//, "", n); if (n != $1) { print "verify-release: " $2 " is not what its name says"; exit 1 } }' SHA256SUMS >&2
# The provenance, in its DSSE envelope, is by the same key, and about the other files as they are.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
field() { sed -n 's/.*"'"$1"'":"\([^"]*\)".*/\1/p' provenance.intoto.json | base64 --decode; }
field payload >"$scratch/statement"
field sig >"$scratch/signature"
{
	printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(stat --format %s "$scratch/statement")"
	cat "$scratch/statement"
} >"$scratch/signed"
signed "$scratch/signed" "$scratch/signature" ||
	{ echo "verify-release: the provenance in $1 is not signed by $2" >&2; exit 1; }
diff <(grep -v '  provenance.intoto.json$' SHA256SUMS | sort) <(sed 's/"predicateType":.*//; s/{"name":/\n&/g' "$scratch/statement" |
	sed -n 's/^{"name":"\([^"]*\)","digest":{"sha256":"\([^"]*\)"}}.*/\2  \1/p' | sort) >&2 ||
	{ echo "verify-release: the provenance in $1 is about other files" >&2; exit 1; }
commit=$(sed -n 's/.*"gitCommit":"\([^"]*\)".*/\1/p' "$scratch/statement")
echo "$1: all $(wc -l <SHA256SUMS) files are as they were released, from commit $commit"
