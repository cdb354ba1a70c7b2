#!/usr/bin/env bash
# Makes sure that Debian packages are there: hack/debian-packages.sh NAME...
# Looks for what each package brings first, so that a machine that has it (from wherever) installs nothing
# and needs neither root nor a mirror.
set -euo pipefail

present() {
	case $1 in
	awscli) [[ -x /usr/bin/aws ]] ;;
	libvm-ec2-perl) /usr/bin/perl -MVM::EC2 -e 1 2>/dev/null ;;
	php-async-aws-core) [[ -e /usr/share/php/AsyncAws/Core/autoload.php ]] ;;
	php-cli) [[ -x /usr/bin/php ]] ;;
	python3-awscrt) /usr/bin/python3 -c 'import awscrt' 2>/dev/null ;;
	python3-boto) /usr/bin/python3 -c 'import boto' 2>/dev/null ;;
	python3-boto3) /usr/bin/python3 -c 'import boto3' 2>/dev/null ;;
	python3-cryptography) /usr/bin/python3 -c 'import cryptography' 2>/dev/null ;;
	python3-jwt) /usr/bin/python3 -c 'import jwt' 2>/dev/null ;;
	ruby) [[ -x /usr/bin/ruby ]] ;;
	ruby-aws-sdk) /usr/bin/ruby -e 'require "aws-sdk-v1"' 2>/dev/null ;;
	ruby-aws-sdk-core) /usr/bin/ruby -e 'require "aws-sdk-core"' 2>/dev/null ;;
	ruby-fog-aws) /usr/bin/ruby -e 'require "fog/aws"' 2>/dev/null ;;
	gdal-bin) command -v ogrinfo ;;
	iproute2) command -v ip ;;
	kmod) command -v modprobe ;;
	nftables) command -v nft ;;
	nodejs) command -v node ;;
	qemu-system-x86) command -v qemu-system-x86_64 ;;
	xz-utils) command -v xz ;;
	ca-certificates) [[ -e /etc/ssl/certs/ca-certificates.crt ]] ;;
	containernetworking-plugins) [[ -x /usr/lib/cni/ptp ]] ;;
	libcap2-bin) command -v setcap ;;
	libc6-dev) [[ -e /usr/include/stdlib.h ]] ;;
	*) command -v "$1" ;;
	esac >/dev/null
}

missing=()
for package in "$@"; do
	present "$package" || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]} (names of Debian packages); install them, or run this as root on Debian" >&2
	exit 1
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# Lists of the last hour do: one target after the other comes here.
[[ $(find /var/lib/apt/lists -name '*_Packages*' -cmin -60 2>/dev/null) ]] || apt-get update -q
apt-get install -y -q --no-install-recommends "${missing[@]}"

for package in "${missing[@]}"; do
	present "$package" || {
		echo "$package was installed, but what it should bring is still not there" >&2
		exit 1
	}
done
