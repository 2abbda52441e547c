#!/bin/sh
# aarch64_root.sh FOLDER PACKAGE...   Debian packages for arm64 and the libraries that they need,
# unpacked into FOLDER. apt works on lists of its own there: the system's stay as they are, and
# nobody need be root.
set -eu
folder=$1
shift
rm -rf "$folder"
mkdir -p "$folder/apt/lists/partial" "$folder/apt/archives/partial" "$folder/packages"
folder=$(cd "$folder" && pwd)
: >"$folder/apt/status"
options="-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
    -o Dir::State=$folder/apt -o Dir::State::status=$folder/apt/status -o Dir::Cache=$folder/apt"
apt-get $options -qq update
# Of what they need, the libraries alone: the C library comes with the cross compiler.
needed=$(apt-cache $options depends --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces "$@" | sed -n 's/^ *Depends: \(lib.*\)/\1/p' | grep -v '^libc6' | sort -u)
cd "$folder/packages"
apt-get $options -qq download "$@" $needed
for package in *.deb; do
    dpkg -x "$package" "$folder"
done
rm -rf "$folder/apt" "$folder/packages"
