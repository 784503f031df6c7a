#!/bin/sh
# Makes a Debian machine one to try pod-steer in: Docker, the package, and two versions of a service on port 80. Run as root, with the
# package's file as argument. Both recipes beside this file call it.
set -eu

package=${1:?the file of the package is missing: cargo xtask package deb makes it}
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq docker.io curl "$package"
pod-steer doctor

for version in stable mainline; do
    docker rm --force "web-$version" >/dev/null 2>&1 || true
    docker run --detach --name "web-$version" --label pod-steer.service=web --label pod-steer.ports=80:80 \
        --label pod-steer.rollout=latest --label "pod-steer.version=$version" "nginx:$version"
done
until curl --fail --silent --max-time 5 --output /dev/null http://127.0.0.1/; do sleep 1; done
pod-steer status
