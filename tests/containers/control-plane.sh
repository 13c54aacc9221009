#!/usr/bin/env bash
# Builds Kubernetes' API server, controller manager and scheduler (1.20) from Debian's source package into a folder, once: about five minutes and 3 GB, as root.
# A test fixture on loopback, and nothing to serve with.
set -euo pipefail
out=${1:?the folder they go to}
[ -x "$out/kube-scheduler" ] && [ -x "$out/kube-controller-manager" ] && [ -x "$out/kube-apiserver" ] && exit 0

export DEBIAN_FRONTEND=noninteractive
own=/etc/apt/sources.list.d/debian.sources   # where this machine's packages come from, their source does too
sources=/etc/apt/sources.list.d/tenfold-test-src
trap 'rm -f "$sources".*' EXIT
if [ -f "$own" ]; then
    sed 's/^Types:.*/Types: deb-src/' "$own" > "$sources.sources"
else
    sed -n 's/^deb /deb-src /p' /etc/apt/sources.list > "$sources.list"
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends golang-1.19-go rsync etcd-server make dpkg-dev
work=$(mktemp -d)
trap 'rm -rf "$sources".* "$work"; true' EXIT
cd "$work"
apt-get source -qq --download-only kubernetes
mkdir -p src .go/src/k8s.io
tar -xf kubernetes_*.orig.tar.* --strip-components=1 -C src
ln -s "$work/src" .go/src/k8s.io/kubernetes
cd .go/src/k8s.io/kubernetes
PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$work/.go GOCACHE=$work/cache CGO_ENABLED=0 GOFLAGS=-mod=vendor GOPROXY=off GO111MODULE=auto \
    KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=clean make WHAT="cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler"
mkdir -p "$out"
cp _output/local/bin/linux/*/kube-{apiserver,controller-manager,scheduler} "$out"
